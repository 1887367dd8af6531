"""The range of stored values: what pictures hold, and a window found by percentiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from undiffuse.data.channels import values_of
from undiffuse.data.sources import BrokenImageError, FileSource, Source

__all__ = ["FoundRange", "declared_for", "declared_range", "find_value_range", "recorded_range"]

_LOOKED_AT = 64
_RECORDS = 16
_PIXELS = 1 << 16
"""Values of each picture that take part in the percentiles, evenly spaced."""
TAIL = 0.1
"""Per cent of the values that lie below the low end of a found range, and above its high end."""


@dataclass(frozen=True, kw_only=True)
class FoundRange:
    """A range found by percentiles.

    Attributes:
        low: the value of which 0.1 % of all values are smaller.
        high: the value of which 0.1 % of all values are larger.
        smallest: of the values looked at.
        largest: of the values looked at.
        looked_at: how many pictures were looked at.
    """

    low: float
    high: float
    smallest: float
    largest: float
    looked_at: int

    @property
    def pair(self) -> tuple[float, float]:
        """(low, high), as `DataConfig.value_range` takes it."""
        return self.low, self.high

    def text(self) -> str:
        """A sentence on where the range comes from."""
        return (
            f"range {self.low:g}..{self.high:g}: {TAIL:g} % of the values of {self.looked_at:,} pictures lie below it "
            f"and {TAIL:g} % above; all are {self.smallest:g}..{self.largest:g}"
        )


def find_value_range(source: Source, limit: int = _LOOKED_AT) -> FoundRange:
    """A range that leaves 0.1 % of the values beyond each of its ends.

    Args:
        source: the pictures; at most `limit` of them, evenly spaced, are looked at.
        limit: how many.

    Raises:
        ValueError: no picture can be read, or all values are the same.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), limit)).astype(np.int64))
    parts, ends, whole = [], [], True
    for i in chosen:
        try:
            values = values_of(source.image(int(i))).ravel()
        except BrokenImageError:
            continue
        whole = whole and values.dtype.kind in "iu"
        values = values[np.isfinite(values)].astype(np.float64)
        if len(values):
            ends.append((values.min(), values.max()))
            parts.append(values[:: -(-len(values) // _PIXELS)])
    if not parts:
        raise ValueError(f"{source.where}: no range can be found, because no picture can be read")
    low, high = (float(v) for v in np.percentile(np.concatenate(parts), [TAIL, 100 - TAIL]))
    smallest, largest = float(min(low_ for low_, _ in ends)), float(max(high_ for _, high_ in ends))
    if whole:
        low, high = math.floor(low), math.ceil(high)
    if low == high:
        low, high = smallest, largest
    if low == high:
        raise ValueError(f"{source.where}: all values looked at are {low:g}, so that no range can be found")
    return FoundRange(low=low, high=high, smallest=smallest, largest=largest, looked_at=len(parts))


def recorded_range(source: FileSource) -> tuple[float, float] | None:
    """The value range that the records of pictures of this library name.

    Args:
        source: files, of which up to 16, evenly spaced, are looked at.

    Returns:
        (low, high); None if a file names none, or if they differ.
    """
    found: set[tuple[float, float] | None] = set()
    for i in np.unique(np.linspace(0, len(source) - 1, min(len(source), _RECORDS)).astype(np.int64)):
        if not source.name(int(i)).lower().endswith((".png", ".tif", ".tiff")):
            return None
        try:
            found.add(source.info(int(i)).value_range)
        except (BrokenImageError, OSError):
            continue
        if len(found) > 1:
            return None
    return found.pop() if found else None


def declared_range(source: Source) -> tuple[float, float] | None:
    """The value range that a source declares, if its pictures have more than 8 bits; None otherwise."""
    try:
        return source.value_range if source.value_range and source.info(0).depth != "8" else None
    except BrokenImageError:
        return source.value_range


def declared_for(largest: float) -> int:
    """The white of a scanner whose largest value is seen: 4095 for 12 bits, 1023 for 10, ..."""
    return int((1 << max(1, math.ceil(math.log2(max(largest, 1) + 1)))) - 1)
