"""Pixel values that are not 8-bit: which of them are black and white, and how they become 0..255."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.sources import Source

__all__ = ["Values", "declare", "eight_bit", "guess_range", "measured_range", "to_bytes"]

_LOOKED_AT = 256 << 20
"""Bytes of pixels that are looked at, evenly spaced over the images, to find their smallest and largest value."""


def to_bytes(picture: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Map values linearly to 0..255, rounded to the nearest; values outside `value_range` saturate.

    Args:
        picture: numbers [H, W] or [H, W, C].
        value_range: the values that become 0 and 255. A first value above the second makes a negative.

    Raises:
        ValueError: a value is not a number (NaN), or the two ends of the range are equal.
    """
    low, high = value_range
    if low == high or not np.isfinite([low, high]).all():
        raise ValueError(f"value_range={value_range}: expected two different finite numbers (black, white)")
    values = (picture.astype(np.float64) - low) * (255.0 / (high - low))
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum()):,} of {values.size:,} pixel values are not a number (NaN)")
    return np.floor(np.clip(values, 0.0, 255.0) + 0.5).astype(np.uint8)


def eight_bit(picture: Any, value_range: tuple[float, float] | None) -> Any:
    """A stored picture with 8-bit values: arrays of other numbers are mapped by `value_range`, others stay.

    Raises:
        ValueError: an array that is not uint8, and no range.
    """
    if not isinstance(picture, np.ndarray) or (picture.dtype == np.uint8 and value_range in (None, (0.0, 255.0))):
        return picture
    if value_range is None:
        raise ValueError(f"pixels of {picture.dtype} have no defined black and white: declare value_range=(black, white)")
    return to_bytes(picture, value_range)


def measured_range(images: Any) -> tuple[float, float, bool]:
    """(smallest, largest, whether all are whole numbers) of images [N, ...], or of evenly spaced ones of very many."""
    count = len(images)
    each = max(1, int(np.prod(images.shape[1:])) * np.dtype(images.dtype).itemsize)
    step = max(1, -(-count * each // _LOOKED_AT))
    low, high, whole = np.inf, -np.inf, True
    block = max(1, (1 << 24) // each) * step
    for start in range(0, count, block):
        part = np.asarray(images[start : start + block : step])
        with np.errstate(all="ignore"):
            low, high = min(low, float(np.nanmin(part))), max(high, float(np.nanmax(part)))
            whole = whole and (part.dtype.kind in "uib" or bool((part == np.floor(part)).all()))
    return low, high, whole


@dataclass(frozen=True)
class Values:
    """What is known of pixel values: black and white (None if not known), what was found, and a sentence."""

    value_range: tuple[float, float] | None
    found: tuple[float, float] | None
    note: str


def guess_range(images: Any) -> Values:
    """The values of black and white in images that do not say so.

    Only ranges that people agree on are taken: 0..1 for truth values, 0..255 for whole numbers in it, 0..1 and -1..1
    for real numbers in it, and the whole range of a 16-bit unsigned integer. Anything else has to be declared: None.
    """
    dtype = np.dtype(images.dtype)
    if dtype == np.uint8:
        return Values(None, None, "")
    if dtype.kind == "b":
        return Values((0.0, 1.0), (0.0, 1.0), "truth values: false is black, true is white")
    low, high, whole = measured_range(images)
    seen = (low, high)
    found = f"{dtype.name} values {low:g}..{high:g}"
    if dtype.kind == "u" and dtype.itemsize == 2:
        return Values((0.0, 65535.0), seen, f"{found}: 65535 is white, so the brightest becomes {high / 257:.0f} of 255")
    if whole and low >= 0 and 1 < high <= 255:
        return Values((0.0, 255.0), seen, f"{found}: 0 is black, 255 is white")
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return Values((0.0, 1.0), seen, f"{found}: 0 is black, 1 is white")
    if dtype.kind == "f" and low >= -1 and high <= 1:
        return Values((-1.0, 1.0), seen, f"{found}: -1 is black, 1 is white")
    return Values(None, seen, found)


def declare(source: Source, values: Values) -> None:
    """Note on a source what is known of its pixel values."""
    source.value_range, source.found_range = values.value_range, values.found
    source.undeclared = values.note if values.value_range is None else ""
    source.notes += [values.note] if values.note else []
