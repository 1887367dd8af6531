"""Tables, fields and progress lines in a hundred plain columns."""

from __future__ import annotations

import io
import warnings

import pytest

from undiffuse import cli
from undiffuse.cli.console import Live, fail, fields, say, table
from undiffuse.util.errors import Advice


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _a_terminal_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def test_table_aligns_and_cuts() -> None:
    text = table([["a", 1, "x"], ["long", 22, "y" * 200]], ("name", "n", "note"), right=(1,), indent=2)
    lines = text.splitlines()
    assert lines[0].rstrip() == "  name   n  note"
    assert lines[2] == "  a      1  x"
    assert lines[3].startswith("  long  22  yyy")
    assert lines[3].endswith("...")
    assert max(map(len, lines)) == 100
    assert table([]) == ""


def test_table_wraps_text_at_the_end_of_a_row() -> None:
    words = [f"word{k}" for k in range(30)]
    lines = table([["a", " ".join(words)], ["b", "short"]], ("name", "note")).splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(" ".join(lines[2:-1]).split()) == "a " + " ".join(words)
    assert all(line.startswith("      word") for line in lines[3:-1])
    assert lines[-1] == "b     short"


def test_fields_align_wrap_and_leave_out() -> None:
    text = fields([("a", "one\ntwo"), ("nothing", None), ("longer", "w " * 80)])
    lines = text.splitlines()
    assert lines[:2] == ["  a       one", "          two"]
    assert all(line.startswith("          ") for line in lines[3:])
    assert max(map(len, lines)) <= 100
    assert "nothing" not in text


def test_a_narrow_terminal_drops_whole_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, shown in ((80, "one two  three  four"), (15, "one two  three"), (14, "one two"), (7, "one...")):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Terminal()
        Live(out).show(["one two", "three", "", "four"])
        assert out.getvalue() == "\r" + shown
    everywhere = io.StringIO()
    Live(everywhere).show(["one two", "three", "four"])
    assert everywhere.getvalue() == "one two  three  four\n"


def test_important_lines_are_always_shown() -> None:
    out = io.StringIO()
    live = Live(out)
    live.show("one")
    live.show("two")
    live.show("three", important=True)
    assert out.getvalue() == "one\nthree\n"


def test_only_rank_zero_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    out = io.StringIO()
    say("hello")
    Live(out).show("hello", important=True)
    assert capsys.readouterr().out == ""
    assert out.getvalue() == ""
    fail("broken")
    assert capsys.readouterr().err == "undiffuse (rank 1): error: broken\n"


def test_a_warning_for_users_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="another") as others:
        for speaks in (True, False):  # a process that does not speak for all is silent
            with cli._advice(speaks):
                warnings.warn("bf16 is emulated", Advice, stacklevel=1)
                warnings.warn("another library's", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "undiffuse: note: bf16 is emulated\n"
    assert {one.category for one in others} == {UserWarning}
