"""Tables, fields and progress lines in a hundred plain columns."""

from __future__ import annotations

import io

import pytest

from undiffuse.cli import console
from undiffuse.cli.console import Live, Progress, duration, fields, say, shorten, table


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


def test_duration() -> None:
    assert [duration(s) for s in (0.04, 3.21, 59, 75)] == ["0.0s", "3.2s", "59s", "1m15s"]
    assert [duration(s) for s in (8000, 100_000)] == ["2h13m", "1d03h"]
    assert duration(float("inf")) == "?"


def test_shorten() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abc..."


def test_a_terminal_gets_one_line_that_is_written_over() -> None:
    out = Terminal()
    with Progress("sampling", 4, "images", out) as progress:
        progress._last = -1e9  # as if the last refresh were long ago
        progress.advance(1)
    written = out.getvalue()
    assert "\n" not in written
    assert "1/4 images" in written
    assert " 25%" in written
    assert written.endswith("\r")  # gone at the end
    assert max(len(part) for part in written.split("\r")) < 80


def test_a_narrow_terminal_drops_whole_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, shown in ((80, "one two  three  four"), (15, "one two  three"), (14, "one two"), (7, "one...")):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Terminal()
        Live(out).show(["one two", "three", "", "four"])
        assert out.getvalue() == "\r" + shown
    everywhere = io.StringIO()
    Live(everywhere).show(["one two", "three", "four"])
    assert everywhere.getvalue() == "one two  three  four\n"


def test_elsewhere_a_plain_line_now_and_then() -> None:
    out = io.StringIO()
    with Progress("sampling", 4, "images", out) as progress:
        progress.advance(1)
        assert out.getvalue() == ""  # a short job is silent
        progress._last -= console.PLAIN_EVERY
        progress.advance(1)
        progress.advance(1)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert "2/4 images" in lines[0]
    assert "\r" not in lines[0]


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
    console.fail("broken")
    assert capsys.readouterr().err == "undiffuse (rank 1): error: broken\n"
