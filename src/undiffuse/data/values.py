"""Which values are black and white in arrays of pictures that do not say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from undiffuse.data.ranges import declared_for
from undiffuse.data.sources import Source

__all__ = ["Values", "DARK", "declare", "guess_range", "measured_range", "of_16_bits"]

DARK = 16384
"""Numbers of 16 bits whose largest is below this become a quarter as bright as white, or less."""
_LOOKED_AT = 256 << 20
"""Bytes of pixels that are looked at, evenly spaced over the images, to find their smallest and largest value."""


def measured_range(images: Any) -> tuple[float, float, bool]:
    """(smallest, largest, whether all are whole numbers) of images [N, ...], or of evenly spaced ones of very many."""
    count = int(images.shape[0])
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


def of_16_bits(high: float) -> str:
    """What happens to 16-bit numbers up to `high`, and a better range if they are dark."""
    text = f"65535 is white, so the brightest becomes {high / 257:.0f} of 255"
    if high >= DARK:
        return text
    return f"{text}; use value_range=(0, {declared_for(high)}) to train on the full range of values"


def guess_range(images: Any) -> Values:
    """The values of black and white in images that do not say so.

    Only ranges that people agree on are taken: 0..1 for truth values, 0..255 for whole numbers in it, 0..1 and -1..1
    for real numbers in it, and the whole range of a 16-bit unsigned integer. Anything else has to be declared: None.
    """
    dtype = np.dtype(images.dtype)
    if dtype == np.uint8:
        return Values(None, None, "")
    if dtype.kind == "b":
        return Values(None, None, "truth values: false is black, true is white")
    low, high, whole = measured_range(images)
    seen = (low, high)
    found = f"{dtype.name} values {low:g}..{high:g}"
    if dtype.kind == "u" and dtype.itemsize == 2:
        return Values((0.0, 65535.0), seen, f"{found}: {of_16_bits(high)}")
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
    source.undeclared = values.note if values.value_range is None and values.found is not None else ""
    source.notes += [values.note] if values.note else []
