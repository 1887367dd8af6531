"""What commands say: plain lines on stdout, progress and errors on stderr. ASCII, at most 100 columns.

Under torchrun only rank 0 speaks.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from undiffuse.util.tables import WIDTH, fields, table

__all__ = ["WIDTH", "Live", "Progress", "duration", "fail", "fields", "is_main", "say", "shorten", "table"]

PLAIN_EVERY = 15.0  # seconds between two progress lines where nobody watches


def is_main() -> bool:
    """False in the helper processes of a torchrun."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """One or more lines on stdout (rank 0 only)."""
    if is_main():
        print(text, flush=True)


def fail(text: str, prefix: str = "error: ") -> None:
    """An error on stderr: `undiffuse: error: text`."""
    who = "undiffuse" if is_main() else f"undiffuse (rank {os.environ['RANK']})"
    print(f"{who}: {prefix}{text}", file=sys.stderr, flush=True)


def shorten(text: str, width: int) -> str:
    """At most `width` characters, the end replaced by "..." where it is longer."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def duration(seconds: float) -> str:
    """75 -> "1m15s", 8000 -> "2h13m", 3.21 -> "3.2s"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f}s"
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    return f"{s // 3600}h{s % 3600 // 60:02d}m" if s < 86400 else f"{s // 86400}d{s % 86400 // 3600:02d}h"


class Live:
    """A line that is written over on a terminal; elsewhere a plain line every fifteen seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._shown = ""
        self._last = -math.inf

    def show(self, text: str | Sequence[str], important: bool = False) -> None:
        """The line as it is now. `important` lines are shown also where nobody watches.

        Of a line given in parts, a terminal shows as many of the first as fit, each one whole.
        """
        now = time.monotonic()
        parts = [text] if isinstance(text, str) else [part for part in text if part]
        width = shutil.get_terminal_size((WIDTH, 24)).columns - 1
        while self.terminal and len(parts) > 1 and len("  ".join(parts)) > width:
            parts.pop()
        text = "  ".join(parts)
        if not is_main() or text == self._shown:
            return
        if self.terminal:
            if now - self._last < 0.08 and not important:
                return
            self.stream.write("\r" + shorten(text, width).ljust(min(len(self._shown), width)))
        elif important or now - self._last >= PLAIN_EVERY:
            self.stream.write(text + "\n")
        else:
            return
        self.stream.flush()
        self._shown, self._last = text, now

    def clear(self) -> None:
        """Take the line away, so that something else may be printed."""
        if self.terminal and self._shown:
            width = shutil.get_terminal_size((WIDTH, 24)).columns - 1
            self.stream.write("\r" + " " * min(len(self._shown), width) + "\r")
            self.stream.flush()
        self._shown = ""


class Progress(Live):
    """Progress through `total` units of work: part done, speed, time left. A context; the line goes at its end.

    with Progress("sampling", 20, "images") as progress:
        progress.advance(0.5)   # fractions of a unit are fine
    """

    def __init__(self, what: str, total: float, unit: str, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self._begin = time.monotonic()
        self._last = self._begin  # a short job says nothing where nobody watches

    def __enter__(self) -> Progress:
        if self.terminal:
            self.show(f"{self.what} ...", important=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def advance(self, amount: float) -> None:
        """`amount` more units are done."""
        self.done += amount
        seconds = time.monotonic() - self._begin
        speed = self.done / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / speed if speed > 0 else math.inf
        share = min(1.0, self.done / self.total) if self.total else 1.0
        bar = "#" * int(24 * share)
        rate = f"{speed:.1f} {self.unit}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed > 0 else ""
        done = f"{int(self.done + 1e-6):,}/{int(self.total):,} {self.unit}"
        line = f"{self.what} [{bar:<24}] {100 * share:3.0f}%"
        self.show([line, done, rate, f"{duration(left)} left"])
