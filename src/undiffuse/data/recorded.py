"""The value range that pictures written by undiffuse name in their records, and their numbers in its units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from undiffuse.pictures.png import RECORD_KEY
from undiffuse.util.records import parse_json

if TYPE_CHECKING:
    from PIL import Image

    from undiffuse.data.tiff import TiffPage

__all__ = ["RecordedRange", "of_png", "of_tiff"]


@dataclass(frozen=True)
class RecordedRange:
    """The range of a picture's values.

    Attributes:
        low: the value of black, in the units of the data.
        high: the value of white.
        scaled: whether the stored numbers are levels (0 is `low`, the largest number is `high`), not the units.
    """

    low: float
    high: float
    scaled: bool

    def in_units(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Converts stored numbers, uint8 or uint16 of any shape, to the units."""
        if not self.scaled:
            return values.astype(np.float32)
        most = float(np.iinfo(values.dtype).max)  # type: ignore[type-var]
        return (self.low + values.astype(np.float64) * ((self.high - self.low) / most)).astype(np.float32)


def of_png(image: Image.Image) -> RecordedRange | None:
    """The range of an opened PNG; None if its record names none."""
    text = image.info.get(RECORD_KEY)
    if not isinstance(text, str):
        return None
    deep = image.mode.startswith("I;16") or _sixteen(image)
    found = _parsed(text.encode("latin-1", "replace"))
    return None if found is None else RecordedRange(found[0], found[1], found[2] or not deep)


def of_tiff(page: TiffPage) -> RecordedRange | None:
    """The range of a page of floats; None if its description is not a record of ours with a range."""
    text = page.tags.get(270)
    if text is None or page.kind != "f":
        return None
    found = _parsed(text.tobytes().rstrip(b"\0"))
    return None if found is None else RecordedRange(found[0], found[1], False)


def _sixteen(image: Image.Image) -> bool:
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return "16" in str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _parsed(text: bytes) -> tuple[float, float, bool] | None:
    """(low, high, whether numbers were scaled) of a record; None if it has no range."""
    if b'"value_range"' not in text:
        return None
    try:
        record = parse_json(text, "a record")
        low, high = (float(value) for value in record["value_range"])
    except (ValueError, KeyError, TypeError):
        return None
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return None
    return low, high, "scaled_to" in record
