"""Shows the progress of downloads and conversions, and implements --offline."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from undiffuse import downloads
from undiffuse.util.progress import Progress

OFFLINE = "UNDIFFUSE_OFFLINE"


@contextlib.contextmanager
def downloading(offline: bool = False) -> Iterator[None]:
    """Shows a progress line for downloads and conversions within the context.

    Args:
        offline: Download nothing within the context.
    """
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
    """The progress line of the current file."""

    def __init__(self) -> None:
        self.line: Progress | None = None

    def report(self, what: str, done: int, total: int | None) -> None:
        """Shows that `done` of `total` bytes are done; removes the line at the end."""
        megabytes = (total or 0) / 1e6
        if self.line is None or (self.line.what, self.line.total) != (what, megabytes):
            self.clear()
            self.line = Progress(what, megabytes, "MB").__enter__()
        self.line.advance(done / 1e6 - self.line.done)
        if total is not None and done >= total:
            self.clear()

    def clear(self) -> None:
        """Removes the line."""
        if self.line is not None:
            self.line.__exit__()
        self.line = None
