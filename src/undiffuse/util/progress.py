"""Progress bars: tqdm, on rank 0 only, in fractions of a unit."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any, TextIO

from undiffuse.util.launch import is_main_process
from undiffuse.util.text import compared_time, duration

__all__ = ["NoProgress", "Progress", "progress_of"]

PLAIN_EVERY = 15.0  # seconds between two lines where the output is no terminal
LONG = 60.0  # seconds from which work says how long it will take, and at the end how wrong that was
_SETTLED = 0.02  # share of the work after which the speed is believed
_AT_LEAST = 3.0  # seconds
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


class NoProgress:
    """Counts work without showing it; the interface of `Progress`."""

    def __init__(self, total: float = 0.0) -> None:
        self.total, self.done = total, 0.0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the bar."""

    def advance(self, amount: float) -> None:
        """Adds `amount` units of finished work; it may be a fraction, or negative where work has to be redone."""
        self.done += amount

    def clear(self) -> None:
        """Removes the bar from the terminal so that a line can be printed; it comes back with the next advance."""

    def expect(self, seconds: float) -> None:
        """Says how long the work will take, where that was measured otherwise and printed already."""


class Progress(NoProgress):
    """A progress bar with speed and time left.

    Example:
        with Progress("sampling", 20, "images") as progress:
            progress.advance(0.5)

    Args:
        what: What is being done, shown in front of the bar.
        total: Units of work in all.
        unit: Name of a unit, for example "images".
        stream: Where to draw; standard error by default.
    """

    def __init__(self, what: str, total: float, unit: str, stream: TextIO | None = None) -> None:
        super().__init__(total)
        self.what = what
        from tqdm import tqdm

        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._began = time.monotonic()
        self._expected: float | None = None
        self._shown = time.monotonic()  # elsewhere than on a terminal a short job prints nothing
        self._bar = tqdm(
            desc=what, total=total, unit=f" {unit}", file=self._stream if self._terminal else io.StringIO(),
            disable=not is_main_process(), leave=False, ascii=" #", dynamic_ncols=self._terminal, bar_format=_FORMAT,
        )  # fmt: skip

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        took = time.monotonic() - self._began
        done = bool(self.total) and self.done >= 0.999 * self.total
        if done and self._expected is not None and max(took, self._expected) >= LONG and not any(error):
            self._say(f"{self.what}: {compared_time(self._expected, took)}")

    def expect(self, seconds: float) -> None:
        """See `NoProgress.expect`."""
        self._expected = seconds

    def _estimate(self) -> None:
        """Says once, as soon as the speed is known, how long all of it will take, if that is long."""
        took = time.monotonic() - self._began
        if self._expected is None and took >= _AT_LEAST and self.done >= _SETTLED * self.total > 0:
            self._expected = took * self.total / self.done
            if self._expected >= LONG:
                self.clear()
                self._say(f"{self.what}: about {duration(self._expected)} in all")

    def _say(self, text: str) -> None:
        if is_main_process():
            self._stream.write(text + "\n")
            self._stream.flush()

    def advance(self, amount: float) -> None:
        """See `NoProgress.advance`."""
        super().advance(amount)
        self._estimate()
        self._bar.update(min(amount, self.total - self._bar.n) if self.total else amount)  # not past it by rounding
        if not self._terminal and is_main_process() and time.monotonic() - self._shown >= PLAIN_EVERY:
            self._shown = time.monotonic()
            self._stream.write(self._bar.format_meter(**{**self._bar.format_dict, "ncols": 80}) + "\n")
            self._stream.flush()

    def clear(self) -> None:
        """See `NoProgress.clear`."""
        self._bar.clear()


def progress_of(progress: bool | NoProgress, what: str, total: float, unit: str) -> NoProgress:
    """Returns what counts some work.

    Args:
        progress: Whether to show a bar; or an object that counts, whose total is set.
        what: See `Progress`.
        total: See `Progress`.
        unit: See `Progress`.
    """
    if isinstance(progress, NoProgress):
        progress.total = total
        return progress
    return Progress(what, total, unit) if progress else NoProgress(total)
