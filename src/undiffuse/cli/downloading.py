"""What commands show while files come in or are converted, and --offline."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from undiffuse import downloads
from undiffuse.util.progress import Progress

OFFLINE = "UNDIFFUSE_OFFLINE"


@contextlib.contextmanager
def downloading(offline: bool = False) -> Iterator[None]:
    """Within it long work on files has a progress line, and with `offline` nothing is downloaded."""
    before = os.environ.get(OFFLINE)
    if offline:
        os.environ[OFFLINE] = "1"
    shown = _Shown()
    try:
        with downloads.reporting(shown.report):
            yield
    finally:
        shown.clear()
        if offline:
            os.environ.pop(OFFLINE)
            if before is not None:
                os.environ[OFFLINE] = before


class _Shown:
    """One line for the file that is being worked on."""

    def __init__(self) -> None:
        self.line: Progress | None = None

    def report(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes; the line goes away at the end."""
        megabytes = (total or 0) / 1e6
        if self.line is None or (self.line.what, self.line.total) != (what, megabytes):
            self.clear()
            self.line = Progress(what, megabytes, "MB").__enter__()
        self.line.advance(done / 1e6 - self.line.done)
        if total is not None and done >= total:
            self.clear()

    def clear(self) -> None:
        """Take the line away."""
        if self.line is not None:
            self.line.__exit__()
        self.line = None
