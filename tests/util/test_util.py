"""Text and progress: what messages are made of."""

from __future__ import annotations

import io

import pytest

from undiffuse.util import progress as progress_module
from undiffuse.util.errors import ConfigError
from undiffuse.util.progress import Progress
from undiffuse.util.text import count_of, duration, join_names, shorten, size_text


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _a_terminal_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def test_duration() -> None:
    assert [duration(s) for s in (0.04, 3.21, 59, 75)] == ["0.0s", "3.2s", "59s", "1m15s"]
    assert [duration(s) for s in (8000, 100_000)] == ["2h13m", "1d03h"]
    assert duration(float("inf")) == "?"


def test_shorten() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abc..."


def test_counts_names_and_sizes() -> None:
    assert [count_of(n, "image") for n in (1, 2, 2000)] == ["1 image", "2 images", "2,000 images"]
    assert [count_of(2, noun) for noun in ("entry", "key", "class")] == ["2 entries", "2 keys", "2 classes"]
    assert join_names(["a"]) == "a"
    assert join_names(["a", "b", "c"], last=" or ") == "a, b or c"
    assert join_names(range(30), 2) == "0, 1 and 28 more"
    assert join_names([]) == ""
    assert (size_text(2215352344), size_text(5e7)) == ("2.2 GB", "50 MB")


def test_an_error_names_its_field() -> None:
    error = ConfigError("eta", "is the noise of ddim")
    assert str(error) == "eta is the noise of ddim"
    assert isinstance(error, ValueError)


def test_a_terminal_gets_one_line_that_is_written_over() -> None:
    out = Terminal()
    with Progress("sampling", 4, "images", out) as progress:
        progress._bar.mininterval = 0
        progress.advance(1)
    written = out.getvalue()
    assert "\n" not in written
    assert "1/4 images" in written
    assert " 25%" in written
    assert written.endswith("\r")  # gone at the end


def test_elsewhere_a_plain_line_now_and_then() -> None:
    out = io.StringIO()
    with Progress("sampling", 4, "images", out) as progress:
        progress.advance(1)
        assert out.getvalue() == ""  # a short job is silent
        progress._shown -= progress_module.PLAIN_EVERY
        progress.advance(1)
        progress.advance(1)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert "2/4 images" in lines[0]
    assert "\r" not in lines[0]


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    out = Terminal()
    with Progress("sampling", 4, "images", out) as progress:
        progress.advance(4)
    assert (out.getvalue(), progress.done) == ("", 4)
