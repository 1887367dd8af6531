"""What commands say: plain lines on stdout, progress and errors on stderr. ASCII, at most 100 columns.

Under torchrun only rank 0 speaks.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from undiffuse.util.text import duration, shorten  # noqa: F401

WIDTH = 100
NARROWEST = 20  # columns below which wrapped text is no help
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


def table(
    rows: Sequence[Sequence[object]], head: Sequence[str] = (), right: Sequence[int] = (), indent: int = 0
) -> str:
    """Rows as aligned columns, two spaces apart; `right` are the numbers of right-aligned columns.

    Text in the last column is wrapped where the line would be longer than 100 columns; what cannot be wrapped is cut.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [list(head), *cells] if head else cells
    if not lines:
        return ""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    out = []
    last = len(widths) - 1
    start = indent + sum(widths[:last]) + 2 * last
    for line in lines:
        wrapped = [line[last]] if last in right else _wrap(line[last], max(WIDTH - start, NARROWEST))
        line = [*line[:last], wrapped[0]]
        parts = [cell.rjust(widths[k]) if k in right else cell.ljust(widths[k]) for k, cell in enumerate(line)]
        out.append(shorten((" " * indent + "  ".join(parts)).rstrip(), WIDTH))
        out += [shorten(" " * start + rest, WIDTH) for rest in wrapped[1:]]
    if head:
        out.insert(1, " " * indent + "  ".join("-" * w for w in widths)[: WIDTH - indent])
    return "\n".join(out)


def fields(rows: Sequence[tuple[str, object]], indent: int = 2) -> str:
    """`name  value` lines, values under each other; rows whose value is None are left out. Long values are wrapped."""
    shown = [(name, str(value)) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    start = indent + width + 2
    lines = []
    for name, value in shown:
        wrapped = [part for line in value.splitlines() or [""] for part in _wrap(line, WIDTH - start)]
        lines.append(f"{' ' * indent}{name.ljust(width)}  {wrapped[0]}".rstrip())
        lines += [" " * start + part for part in wrapped[1:]]
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width`, broken at spaces; a longer word (a path, a hash) stays whole."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _columns() -> int:
    import shutil  # slow to import, and help does not need it

    return shutil.get_terminal_size((WIDTH, 24)).columns


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
        width = _columns() - 1
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
            width = _columns() - 1
            self.stream.write("\r" + " " * min(len(self._shown), width) + "\r")
            self.stream.flush()
        self._shown = ""
