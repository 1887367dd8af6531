"""What a person sees of a running training: a progress bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from undiffuse.training.events import Event, format_progress, progress_parts
from undiffuse.util.launch import is_main_process

__all__ = ["TrainingProgress"]

_PLAIN_EVERY = 15.0  # seconds between two lines where the output is no terminal
_NUMBERS_EVERY = 1.0  # seconds between two looks at the loss, which cost a little
_FORMAT = "{percentage:5.1f}% |{bar}| {n:,.0f}/{total:,.0f} images [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_IN_BAR = ("images", "images/s", "left")  # parts of a line that the bar shows itself


class TrainingProgress:
    """A listener of `undiffuse.training.train` that shows progress after the first update and then continually.

    Args:
        stream: Where to write; standard error by default. Only the main process writes.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self.trained = False
        self._bar: Any = None
        self._shown_at = -math.inf
        self._first = True

    def __call__(self, record: Event) -> None:
        """Shows a record that is no progress; the last of all progress is shown in full."""
        if record.kind == "train":
            if record.images >= record.values["total_images"] and not self.terminal:
                self._line(format_progress(record))
        elif record.kind not in ("start", "end", "save"):
            self._line(format_progress(record))

    def update(self, images: int, total: int, record: Callable[[], Event]) -> None:
        """Shows how far the run is; `record` makes a "train" record of the moment."""
        self.trained = True
        if not is_main_process():
            return
        now = time.monotonic()
        if self.terminal:
            self._bar_of(total, images, record)
            if now - self._shown_at >= _NUMBERS_EVERY:
                parts = [part for part in progress_parts(record())[1:] if not part.endswith(_IN_BAR)]
                self._bar.set_postfix_str("  ".join(parts[:4]), refresh=False)
                self._shown_at = now
            self._bar.update(images - self._bar.n)
        elif self._first or (now - self._shown_at >= _PLAIN_EVERY and images < total):
            self._shown_at = now
            if images < total:
                self._line(format_progress(record()))
        self._first = False

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _bar_of(self, total: int, images: int, record: Callable[[], Event]) -> None:
        if self._bar is None:
            from tqdm import tqdm

            before = images - (images // max(1, record().steps))  # the speed counts from where this run resumed
            self._bar = tqdm(
                total=total, initial=max(0, before), unit=" images", file=self.stream, leave=False, dynamic_ncols=True,
                ascii=True, mininterval=0.1, bar_format=_FORMAT,
            )  # fmt: skip

    def _line(self, text: str) -> None:
        if not is_main_process():
            return
        if self._bar is not None:
            self._bar.clear()
        self.stream.write(text + "\n")
        self.stream.flush()
