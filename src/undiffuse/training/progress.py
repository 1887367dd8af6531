"""What a person sees of a running training: a progress bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from undiffuse.training.events import Event, format_progress, progress_parts
from undiffuse.util.launch import is_main_process
from undiffuse.util.progress import LONG
from undiffuse.util.text import compared_time

__all__ = ["TrainingProgress"]

_PLAIN_EVERY = 15.0  # seconds between two lines where the output is no terminal
_NUMBERS_EVERY = 1.0  # seconds between two looks at the loss, which cost a little
_FORMAT = "{percentage:5.1f}% |{bar}| {n:,.0f}/{total:,.0f} images [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_RECORDS = 8  # in each of the two quarters that are compared
_NOISE = 0.01  # relative standard error up to which they are compared at all
_LEAST = 0.005  # relative improvement below which the error counts as unchanged
_IN_BAR = ("images", "images/s", "left")  # parts of a line that the bar shows itself


class Plateau:
    """Notices that the error of a training has stopped improving, and says so once.

    The error is noisy, because every record has other noise levels: the last quarter of the records so far is compared
    with the quarter before it, and the difference of their means with its standard error.
    """

    def __init__(self) -> None:
        self._values: list[tuple[int, float]] = []
        self._said = False

    def __call__(self, record: Event) -> str | None:
        """Takes a "train" record and returns a line for the user, or None."""
        name = "mse" if "mse" in record.values else "loss"
        value = float(record.values.get(name, math.nan))
        if math.isfinite(value):
            self._values.append((record.images, value))
        part = len(self._values) // 4
        if self._said or part < _RECORDS or record.images >= record.values["total_images"]:
            return None
        earlier = [v for _, v in self._values[-2 * part : -part]]
        later = [v for _, v in self._values[-part:]]
        before, after = statistics.fmean(earlier), statistics.fmean(later)
        error = math.sqrt((statistics.variance(earlier) + statistics.variance(later)) / part)
        if error > _NOISE * abs(before) or before - after > max(2 * error, _LEAST * abs(before)):
            return None
        self._said = True
        since = self._values[-2 * part][0]
        return (
            f"note: the error has hardly changed since {since:,} images ({name} {before:.4g}, now {after:.4g}); "
            "pictures often improve after that, above all while the learning rate falls: compare previews"
        )


class TrainingProgress:
    """A listener of `undiffuse.training.train` that shows progress after the first update and then continually.

    Args:
        stream: Where to write; standard error by default. Only the main process writes.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self.trained = False
        self._plateau = Plateau()
        self._began = time.monotonic()
        self._first_update: tuple[int, float] | None = None
        self._expected: float | None = None
        self._total = 0
        self._bar: Any = None
        self._shown_at = -math.inf
        self._first = True

    def __call__(self, record: Event) -> None:
        """Shows a record that is no progress; the last of all progress is shown in full."""
        if record.kind == "train":
            if record.images >= record.values["total_images"] and not self.terminal:
                self._line(format_progress(record))
            text = self._plateau(record)
            if text is not None:
                self._line(text)
        elif record.kind == "end":
            took = time.monotonic() - self._began
            if self._expected is not None and record.images >= self._total and max(took, self._expected) >= LONG:
                self._line(f"training: {compared_time(self._expected, took)}")
        elif record.kind not in ("start", "save"):
            self._line(format_progress(record))

    def expect(self, seconds: float | None) -> None:
        """Says how long the training will take; without, the speed of its first part decides."""
        self._expected = seconds
        self._began = time.monotonic()

    def update(self, images: int, total: int, record: Callable[[], Event]) -> None:
        """Shows how far the run is; `record` makes a "train" record of the moment."""
        self.trained = True
        if not is_main_process():
            return
        now = time.monotonic()
        self._total = total
        first, began = self._first_update = self._first_update or (images, now)
        if self._expected is None and images - first >= max(1, (total - first) // 50):
            self._expected = now - self._began + (now - began) * (total - images) / (images - first)
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
                ascii=" #", mininterval=0.1, bar_format=_FORMAT,
            )  # fmt: skip

    def say(self, text: str) -> None:
        """Writes a line above the bar; only the main process does."""
        self._line(text)

    def _line(self, text: str) -> None:
        if not is_main_process():
            return
        if self._bar is not None:
            self._bar.clear()
        self.stream.write(text + "\n")
        self.stream.flush()
