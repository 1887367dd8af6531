"""A first look at data before a run: classes, and what a few images suggest about size and channels."""

from __future__ import annotations

import statistics
from functools import cached_property
from typing import Any

import numpy as np

from undiffuse.data.dataset import DataConfig
from undiffuse.data.decoding import describe
from undiffuse.data.images import prepare, size_pair
from undiffuse.data.ranges import FoundRange
from undiffuse.data.sources import BrokenImageError, Source
from undiffuse.data.summary import DataSummary, scan

__all__ = ["GREY_MODES", "DataProbe"]

_SAMPLED = 64  # images from which size and channels are guessed
_LARGEST = 64  # largest size that is chosen automatically
_LARGEST_HALVED_BY_8 = 96  # longest side of the general recipes whose networks need multiples of 8, beyond it of 16
_OUTLINED = 16  # pixels of the side at which outlines are looked at
_WHITE = 245
GREY_MODES = {"1", "L", "LA", "I;16", "I", "I;16B"}


class DataProbe:
    """What a data set suggests for training.

    Args:
        source: The images, not yet screened for broken ones. Images are only read when a guess needs them.
        value_range: The range of stored values, declared or found.
        config: How the images are prepared, if it is known.

    Attributes:
        value_range: (low, high), or None.
        found_range: The range if it was found.
    """

    def __init__(
        self,
        source: Source,
        value_range: tuple[float, float] | FoundRange | None = None,
        config: DataConfig | None = None,
    ) -> None:
        self.source, self._config = source, config
        self.found_range = value_range if isinstance(value_range, FoundRange) else None
        self.value_range = value_range.pair if isinstance(value_range, FoundRange) else value_range
        names = source.label_names
        self.classes = None if names is None else len(names)
        self._summary: DataSummary | None = None

    @property
    def summary(self) -> DataSummary:
        """Sizes and modes of up to 64 images."""
        if self._summary is None:
            config = self._config or DataConfig(path="", size=8, value_range=self.value_range)
            self._summary = scan(self.source, config, limit=_SAMPLED)
        return self._summary

    @property
    def short_side(self) -> int:
        """Median of the shorter sides, in pixels."""
        sides = [min(size) for size, count in self.summary.sizes.items() for _ in range(count)]
        return int(statistics.median(sides)) if sides else _LARGEST

    @property
    def size(self) -> int:
        """The size to train at if none is given: 64, 32, or the multiple of 8 next to the images' own size."""
        if self.short_side >= _LARGEST:
            return _LARGEST
        return 32 if self.short_side >= 24 else max(8, round(self.short_side / 8) * 8)

    @property
    def whole_size(self) -> tuple[int, int] | None:
        """(height, width) that keeps images whole if all have one shape that is not square; otherwise None."""
        if len(self.summary.sizes) != 1:
            return None
        width, height = next(iter(self.summary.sizes))
        step = 8 if max(width, height) <= _LARGEST_HALVED_BY_8 else 16
        if width != height and min(width, height) <= _LARGEST and width % step == height % step == 0:
            return height, width  # their own shape fits a network
        short, ratio = self.size, max(width, height) / min(width, height)
        multiple = 8 if short * ratio <= _LARGEST_HALVED_BY_8 else 16
        longer = max(1, round(short * ratio / multiple)) * multiple
        short = max(1, round(short / multiple)) * multiple
        if longer <= short:
            return None
        return (short, longer) if width > height else (longer, short)

    @property
    def channels(self) -> int:
        """1 if all images are stored grey, 3 if any has colours, else as many as are stored."""
        return self.summary.channels if self.summary.modes else 3

    @property
    def preparation(self) -> dict[str, Any]:
        """How a training prepares these images if nothing else is said: arguments of `DataConfig`."""
        size = self.whole_size or self.size
        fit = "pad" if self.fits_padded(size) else "crop"
        pad = {"pad_value": self.pad_value} if fit == "pad" else {}
        return {"size": size, "fit": fit, "channels": self.channels, **pad}

    @cached_property
    def pad_value(self) -> int:
        """The border of fit="pad" that goes on with the images': 255 where most of their outlines are white, else 0."""
        light = []
        for i in np.unique(np.linspace(0, len(self.source) - 1, min(len(self.source), _SAMPLED)).astype(np.int64)):
            try:
                picture = self.source.image(int(i))
                info = describe(picture)
                if info.depth != "8":
                    return 0
                pixels = prepare(picture, _OUTLINED, info.channels if info.planes else info.channels - info.alpha)
            except (BrokenImageError, OSError, ValueError):
                continue
            outline = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            light.append(float((outline >= _WHITE).mean()))
        return 255 if light and statistics.median(light) > 0.5 else 0

    def fits_padded(self, size: int | tuple[int, int]) -> bool:
        """Returns whether all images have one size that is at most a fifth smaller than `size`.

        A border then changes them less than enlarging does.
        """
        sizes = self.summary.sizes
        height, width = size_pair(size)
        return len(sizes) == 1 and all(0.8 * width <= w <= width and 0.8 * height <= h <= height for w, h in sizes)
