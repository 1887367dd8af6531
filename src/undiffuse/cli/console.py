"""Prints plain lines on stdout, and progress and errors on stderr. ASCII, at most 100 columns.

Of several processes only rank 0 prints.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from undiffuse.util.launch import is_main_process, own_rank
from undiffuse.util.tables import WIDTH, fields, table
from undiffuse.util.text import duration, printable, shorten

__all__ = ["WIDTH", "Live", "duration", "fail", "fields", "say", "shorten", "table"]

PLAIN_EVERY = 15.0  # seconds between two progress lines where stderr is not a terminal


def say(text: str = "") -> None:
    """Prints one or more lines on stdout (rank 0 only)."""
    if is_main_process():
        print(printable(text), flush=True)


def fail(text: str, prefix: str = "error: ") -> None:
    """Prints an error on stderr: `undiffuse: error: text`."""
    who = "undiffuse" if is_main_process() else f"undiffuse (rank {own_rank()})"
    print(f"{who}: {prefix}{printable(text)}", file=sys.stderr, flush=True)


def _columns() -> int:
    import shutil  # slow to import, and help does not need it

    return shutil.get_terminal_size((WIDTH, 24)).columns


class Live:
    """A progress line: overwritten in place on a terminal, elsewhere printed every 15 seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._shown = ""
        self._last = -math.inf

    def show(self, text: str | Sequence[str], important: bool = False) -> None:
        """Shows the line.

        Args:
            text: The line, or its parts. A terminal shows as many of the first parts as fit in its width.
            important: Show the line at once, also where stderr is not a terminal.
        """
        now = time.monotonic()
        parts = [text] if isinstance(text, str) else [part for part in text if part]
        width = _columns() - 1
        while self.terminal and len(parts) > 1 and len("  ".join(parts)) > width:
            parts.pop()
        text = printable("  ".join(parts))
        if not is_main_process() or text == self._shown:
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
        """Removes the line, so that something else can be printed."""
        if self.terminal and self._shown:
            width = _columns() - 1
            self.stream.write("\r" + " " * min(len(self._shown), width) + "\r")
            self.stream.flush()
        self._shown = ""
