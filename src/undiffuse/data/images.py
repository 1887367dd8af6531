"""Preparing pictures: any stored picture -> uint8 [H, W, C] of one size, ready for a batch.

Colour comes first, geometry second: palettes, alpha, CMYK and 16-bit greys are converted before anything is resized,
because averaging palette indices or unpremultiplied colours gives wrong pixels. The geometry is ADM's (Dhariwal &
Nichol, 2021): halve with a box filter while that leaves at least the target, resize bicubically to cover the target,
crop.
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["Picture", "prepare", "size_pair", "to_mode"]

Picture = Image.Image | NDArray[np.uint8]
"""A picture as a source stores it: a PIL image, or a uint8 array [H, W] or [H, W, C]."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ARRAY_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_CROP_MARGIN = (5, 4)
"""The random crop resizes the short side to at most 5/4 of the target: at least 0.8 of it stays visible."""


def size_pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """(height, width) from one number (a square) or a pair.

    Raises:
        ValueError: it is neither, or a side is less than 1.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"image size {size!r}: expected one positive integer (square) or a pair (height, width)")
    return pair[0], pair[1]


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; an unreadable EXIF block means "not turned", not "broken"."""
    try:
        return ImageOps.exif_transpose(image)
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return image


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"an array image must be uint8 [H, W] or [H, W, C], got {array.dtype} {list(array.shape)}")
    if array.ndim == 2:
        return Image.fromarray(array)
    if array.shape[2] not in _ARRAY_MODES:
        raise ValueError(f"an array image must have 1, 2, 3 or 4 channels, got {array.shape[2]}")
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _grey_8_bit(image: Image.Image, stored: str | None) -> Image.Image:
    """A 16-bit grey picture scaled to 8 bits: 0..65535 -> 0..255 by x / 257, rounded (not clipped)."""
    values = np.asarray(image).astype(np.int64)
    if not image.mode.startswith("I;16") and stored != "PNG":
        raise ValueError(
            f"a {stored or 'picture'} with 32-bit integer pixels (mode I, {values.min()}..{values.max()}) has no "
            "defined white; convert it to 8 or 16 bits"
        )
    return Image.fromarray(((np.clip(values, 0, 65535) + 128) // 257).astype(np.uint8))


def to_mode(picture: Picture, channels: int, background: int | tuple[int, int, int] = 255) -> Image.Image:
    """The picture, upright, in mode "L" (channels=1), "RGB" (3) or "RGBA" (4).

    Transparency (alpha channel, transparent palette entry or colour) is kept for 4 channels and otherwise laid over
    `background` (a grey or an (R, G, B), 0..255; white unless told). 16-bit grey is divided by 257; CMYK, YCbCr, Lab
    and HSV go to RGB by Pillow's formulas (colour profiles are not applied); 1-bit becomes 0 and 255; of an animation
    the first frame is taken.

    Raises:
        ValueError: `channels` is not 1, 3 or 4, or the pixels have no defined 8-bit meaning (float or 32-bit integer).
    """
    if channels not in _MODES:
        raise ValueError(f"channels={channels}: expected 1 (grey), 3 (RGB) or 4 (RGBA)")
    image = _from_array(picture) if isinstance(picture, np.ndarray) else picture
    stored = image.format  # turning the picture forgets it
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels (mode F) have no defined white; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey_8_bit(image, stored)
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


def _halved(image: Image.Image, width: int, height: int) -> Image.Image:
    """Box-halved as long as the result still has at least the given size (an exact mean of 2x2 pixels each time)."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def _cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resized, keeping its proportions, to the smallest size that covers width x height."""
    image = _halved(image, width, height)
    scale = max(width / image.width, height / image.height)
    target = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)


def _padded(image: Image.Image, width: int, height: int, value: int) -> Image.Image:
    """In the middle of a constant border; only a picture larger than the target is resized, to just fit."""
    if image.width > width or image.height > height:
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = _halved(image, *inner).resize(inner, Image.Resampling.BICUBIC)
    if image.size == (width, height):
        return image
    bands = len(image.getbands())
    canvas = Image.new(image.mode, (width, height), value if bands == 1 else (value,) * bands)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def prepare(
    picture: Picture,
    size: int | tuple[int, int],
    channels: int = 3,
    *,
    fit: Literal["crop", "pad"] = "crop",
    flip: bool = False,
    crop: tuple[float, float, float] | None = None,
    background: int | tuple[int, int, int] = 255,
    pad_value: int = 0,
) -> NDArray[np.uint8]:
    """A stored picture -> uint8 [H, W, channels], ready for a batch.

    Args:
        picture: PIL image or uint8 array [H, W(, C)].
        size: H = W, or (H, W).
        channels: 1 grey, 3 RGB, 4 RGBA.
        fit: "crop" is ADM's: halve with a box filter while at least twice the target, bicubic until the target is just
            covered, cut out the centre. "pad" leaves the pixels alone and adds a border of `pad_value` (28 -> 32).
        flip: mirror left-right.
        crop: three uniforms in [0, 1) make it ADM's random crop: the first chooses the integer s' that the short side s
            of the target becomes, uniform on s..ceil(s / 0.8); the others choose the window. With "pad" the padded
            picture is treated so.
        background: what lies behind transparent pixels where the alpha channel is not kept.
        pad_value: the border of "pad", 0..255 in every channel.

    Raises:
        ValueError: impossible size, channels or fit, or pixels without an 8-bit meaning (see `to_mode`).
    """
    height, width = size_pair(size)
    if fit not in ("crop", "pad"):
        raise ValueError(f'fit={fit!r}: expected "crop" or "pad"')
    image = to_mode(picture, channels, background)
    if fit == "pad":
        image = _padded(image, width, height, pad_value)
    if crop is None:
        image = _cover(image, width, height)
        left, top = (image.width - width) // 2, (image.height - height) // 2
    else:
        short = min(height, width)
        most = -(-short * _CROP_MARGIN[0] // _CROP_MARGIN[1])
        drawn = short + int(crop[0] * (most - short + 1))
        image = _cover(image, -(-width * drawn // short), -(-height * drawn // short))
        left, top = int(crop[1] * (image.width - width + 1)), int(crop[2] * (image.height - height + 1))
    pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    pixels = pixels[top : top + height, left : left + width]
    return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)
