"""Stored pixels -> the channels of a model: 8-bit levels, or levels of a declared value range.

Colour comes before geometry: palettes, alpha, CMYK and 16-bit values are converted before anything is resized, because
averaging palette indices or unpremultiplied colours gives wrong pixels.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from undiffuse.data.decoding import BAND, Picture, PictureInfo, Planes, bands, describe

__all__ = [
    "Background", "ValueRange", "check_value_range", "divided", "objection", "picture_rows", "to_levels", "to_mode",
    "upright", "values_of",
]  # fmt: skip

Background = int | tuple[int, int, int]
ValueRange = tuple[float, float]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in a grey value (ITU-R BT.601), those of Pillow's conversion."""


def check_value_range(value_range: Any) -> ValueRange | None:
    """(low, high) as floats, or None.

    Raises:
        ValueError: it is not a pair of different finite numbers.
    """
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        raise ValueError(f"value_range={value_range!r}: expected a pair (low, high), as (0, 4095)") from None
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise ValueError(f"value_range={value_range!r}: expected two different finite numbers (black, white)")
    return low, high


def objection(info: PictureInfo, channels: int, value_range: ValueRange | None = None) -> str | None:
    """Why a picture cannot be prepared for a model of `channels` channels; None if it can.

    Args:
        info: what the picture is, from `read_header` or `describe`.
        channels: channels wanted; 0 takes any number.
        value_range: the declared (low, high) of stored values, if any.
    """
    if value_range is None and info.depth in ("int", "float"):
        what = "floating-point" if info.depth == "float" else "32-bit integer" if info.mode == "I" else "integer"
        mode = f"mode {info.mode}" if info.mode in ("F", "I") else info.mode
        return f"{what} pixels ({mode}) have no defined white; declare their range with value_range=(low, high)"
    if channels in (0, info.channels) or (not info.planes and channels in _MODES):
        return None
    return f"it has {info.channels} channels, which do not become {channels}: set channels={info.channels}"


def to_mode(picture: Picture, channels: int, background: Background = 255) -> Image.Image:
    """The picture, upright, in mode "L" (channels=1), "RGB" (3) or "RGBA" (4).

    Transparency (alpha channel, transparent palette entry or colour) is kept for 4 channels and otherwise laid over
    `background` (a grey or an (R, G, B), 0..255). 16-bit values are divided by 257; CMYK, YCbCr, Lab and HSV go to RGB
    by Pillow's formulas (colour profiles are not applied); 1-bit becomes 0 and 255; of an animation the first frame is
    taken.

    Raises:
        ValueError: `channels` is not 1, 3 or 4, or the pixels have no defined 8-bit meaning (float or 32-bit integer).
    """
    if channels not in _MODES:
        raise ValueError(f"channels={channels}: expected 1 (grey), 3 (RGB) or 4 (RGBA)")
    against = objection(describe(picture), channels)
    if against is not None:
        raise ValueError(against)
    if isinstance(picture, np.ndarray):
        height, width = picture.shape[:2]
        if height * width <= BAND:
            return _to_mode(_from_array(picture), channels, background)
        parts = ((rows.start, _from_array(picture[rows])) for rows in bands(width, height))
    else:
        image = upright(picture)
        width, height = image.size
        if height * width <= BAND or (image.mode == _MODES[channels] and "transparency" not in image.info):
            return _to_mode(image, channels, background)
        parts = ((rows.start, picture_rows(image, rows)) for rows in bands(width, height))
    out = Image.new(_MODES[channels], (width, height))  # each pixel separately, so that pieces make the same picture
    for top, part in parts:
        out.paste(_to_mode(part, channels, background), (0, top))
    return out


def picture_rows(image: Image.Image, rows: slice) -> Image.Image:
    """Some rows of an upright picture."""
    part = image.crop((0, rows.start, image.width, rows.stop))
    part.format = image.format  # which says what 32-bit integers mean
    return part


def _to_mode(image: Image.Image, channels: int, background: Background) -> Image.Image:
    """`to_mode` of an upright picture."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey_8_bit(image)
    premultiplied = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
    if image.mode in premultiplied:
        image = image.convert(premultiplied[image.mode])
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    if channels == 4:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        colour = (background,) * 3 if isinstance(background, int) else tuple(background)
        paper = Image.new("RGBA", image.size, (*colour, 255))
        image = Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def values_of(picture: Picture) -> NDArray[Any]:
    """The stored values [H, W, C], upright: 0..255 for what has 8 bits or fewer, else the numbers in the file."""
    if isinstance(picture, np.ndarray):
        array = picture[..., None] if picture.ndim == 2 else picture
        return array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array
    if describe(picture).depth != "8":
        return _from_ppm(picture, np.asarray(upright(picture)))[..., None]
    info = describe(picture)
    channels = {1: 1, 2: 4, 3: 3, 4: 4}[info.channels]
    return np.asarray(to_mode(picture, channels)).reshape(*upright(picture).size[::-1], channels)


def to_levels(
    picture: Picture, channels: int, value_range: ValueRange, background: Background = 255
) -> NDArray[np.float32]:
    """The picture as levels float32 [H, W, channels]: the low end of `value_range` becomes 0 and the high end 255.

    Values beyond the range are clipped. Transparency is treated as in `to_mode`.

    Raises:
        ValueError: the channels do not fit, or values are NaN or infinite.
    """
    against = objection(describe(picture), channels, value_range)
    if against is not None:
        raise ValueError(against)
    low, high = value_range
    values = values_of(picture)
    if values.dtype.kind == "f":
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            raise ValueError(f"{bad:,} of {values.size:,} values are NaN or infinite")
    if high == low:
        raise ValueError(f"a value range needs a white that differs from its black, got ({low:g}, {high:g})")
    levels = np.clip((values.astype(np.float64) - low) * (255.0 / (high - low)), 0, 255)
    if values.shape[2] == channels or isinstance(picture, Planes):
        return levels.astype(np.float32)
    if values.shape[2] in (2, 4):
        most = 255 if values.dtype == np.uint8 else np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
        alpha = np.clip(values[..., -1:].astype(np.float64) / most, 0, 1)
        levels = levels[..., :-1]
        if channels < 4:
            levels = levels * alpha + (1 - alpha) * np.array(background, dtype=np.float64)
    else:
        alpha = _opacity(picture, values)
        if channels < 4:
            levels = levels * alpha + (1 - alpha) * np.array(background, dtype=np.float64)
    if channels == 1:
        levels = levels if levels.shape[2] == 1 else (levels * _LUMA).sum(-1, keepdims=True)
        return levels.astype(np.float32)
    colours = np.broadcast_to(levels, (*levels.shape[:2], 3)) if levels.shape[2] == 1 else levels
    return (np.concatenate([colours, 255 * alpha], -1) if channels == 4 else colours).astype(np.float32)


def _opacity(picture: Picture, values: NDArray[Any]) -> NDArray[np.float64]:
    """[H, W, 1]: 0 where a 16-bit grey picture has its transparent value, else 1."""
    value = None if isinstance(picture, np.ndarray) else picture.info.get("transparency")
    if not isinstance(value, int):
        return np.ones((*values.shape[:2], 1))
    return (values[..., :1] != value).astype(np.float64)


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; an unreadable EXIF block means "not turned", not "broken"."""
    image.load()  # a PNG keeps its EXIF block behind the pixels
    try:
        if image.getexif().get(0x0112, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return image


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3):
        raise ValueError(f"an array image must be [H, W] or [H, W, C], got {array.dtype} {list(array.shape)}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        array = divided(array)
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def divided(values: NDArray[Any]) -> NDArray[np.uint8]:
    """0..65535 -> 0..255 by x / 257, rounded."""
    out = np.empty(values.shape, np.uint8)
    for rows in bands(math.prod(values.shape[1:]), values.shape[0]) if values.size else ():
        out[rows] = (np.clip(values[rows].astype(np.int64), 0, 65535) + 128) // 257
    return out


def _grey_8_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture scaled to 8 bits; a transparent value becomes an alpha channel."""
    values = np.asarray(image)
    grey = Image.fromarray(divided(values))
    value = image.info.get("transparency")
    if not isinstance(value, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == value, 0, 255).astype(np.uint8))))


def _from_ppm(image: Image.Image, values: NDArray[Any]) -> NDArray[Any]:
    """The numbers in a 16-bit PGM file, which Pillow has multiplied by 65535 / maximum."""
    most = image.info.get("maxval")
    return values if not most or most == 65535 else np.round(values * (most / 65535)).astype(np.int64)
