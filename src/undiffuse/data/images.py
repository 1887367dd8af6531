"""Preparing pictures: any stored picture -> [H, W, C] of one size, ready for a batch.

The geometry is ADM's (Dhariwal & Nichol, 2021): halve with a box filter while that leaves at least the target, resize
bicubically to cover the target, crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from undiffuse.data.channels import (
    Background,
    ValueRange,
    divided,
    objection,
    picture_rows,
    to_levels,
    to_mode,
    upright,
    values_of,
)
from undiffuse.data.decoding import Picture, PictureInfo, bands, describe

__all__ = ["Picture", "kept_by_crop", "prepare", "size_pair", "to_mode"]

_MODES = (1, 3, 4)
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


def _halved(image: Image.Image, width: int, height: int) -> Image.Image:
    """Box-halved as long as the result still has at least the given size (an exact mean of 2x2 pixels each time)."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def _cover(image: Image.Image, width: int, height: int, nearest: bool = False) -> Image.Image:
    """Resized, keeping its proportions, to the smallest size that covers width x height."""
    image = image if nearest else _halved(image, width, height)
    scale = max(width / image.width, height / image.height)
    target = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    return image if target == image.size else image.resize(target, _filter(nearest))


def _filter(nearest: bool) -> Image.Resampling:
    return Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC


def _padded(image: Image.Image, width: int, height: int, value: int, nearest: bool = False) -> Image.Image:
    """In the middle of a constant border; only a picture larger than the target is resized, to just fit."""
    if image.width > width or image.height > height:
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = (image if nearest else _halved(image, *inner)).resize(inner, _filter(nearest))
    if image.size == (width, height):
        return image
    bands = len(image.getbands())
    canvas = Image.new(image.mode, (width, height), value if bands == 1 else (value,) * bands)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def kept_by_crop(stored: tuple[int, int], size: int | tuple[int, int]) -> float:
    """The share of a picture of (width, height) pixels that stays when its centre is cut out to the shape of `size`."""
    height, width = size_pair(size)
    across, down = stored[0] / width, stored[1] / height
    return min(across, down) / max(across, down)


def prepare(
    picture: Picture,
    size: int | tuple[int, int],
    channels: int = 3,
    *,
    fit: Literal["crop", "pad"] = "crop",
    flip: bool = False,
    crop: tuple[float, float, float] | None = None,
    background: Background = 255,
    pad_value: int = 0,
    value_range: ValueRange | None = None,
    patch: tuple[float, float] | None = None,
    like: tuple[int, int] | None = None,
    nearest: bool = False,
) -> NDArray[Any]:
    """Prepares a stored picture for a batch.

    Args:
        picture: PIL image or array [H, W(, C)].
        size: H = W, or (H, W).
        channels: 1 grey, 3 RGB, 4 RGBA; any other number takes pictures of that many channels as they are.
        fit: "crop" is ADM's: halve with a box filter while at least twice the target, bicubic until the target is just
            covered, cut out the centre. "pad" leaves the pixels alone and adds a border of `pad_value` (28 -> 32).
        flip: mirror left-right.
        crop: three uniforms in [0, 1) make it ADM's random crop: the first chooses the integer s' that the short side s
            of the target becomes, uniform on s..ceil(s / 0.8); the others choose the window. With "pad" the padded
            picture is treated so.
        background: what lies behind transparent pixels where the alpha channel is not kept, 0..255.
        pad_value: the border of "pad", 0..255 in every channel.
        value_range: (low, high) of the stored values that become -1 and 1.
        patch: two uniforms in [0, 1) that choose a window of `size` pixels, which is cut out before anything else
            (from a picture that is smaller, as much as there is).
        like: (width, height) to which the picture is brought first, of the picture that it belongs to.
        nearest: resize by nearest neighbour, for maps of classes.

    Returns:
        uint8 [H, W, channels], or with a `value_range` float32 [H, W, channels] in [-1, 1].

    Raises:
        ValueError: impossible size, channels or fit, or pixels without an 8-bit meaning (see `to_mode`).
    """
    height, width = size_pair(size)
    if fit not in ("crop", "pad"):
        raise ValueError(f'fit={fit!r}: expected "crop" or "pad"')
    if patch is not None:
        picture = cut(picture, window(describe(picture), (height, width), patch))
    layers = _layers(picture, channels, background, value_range)
    if like is not None and patch is None:
        layers = (layer if layer.size == like else layer.resize(like, _filter(nearest)) for layer in layers)
    done = [_placed(layer, height, width, fit, crop, pad_value, nearest) for layer in layers]
    pixels = done[0] if len(done) == 1 else np.concatenate(done, axis=-1)
    pixels = np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)
    if value_range is None:
        return pixels
    return (np.clip(pixels, 0, 255) / np.float32(127.5) - np.float32(1)).astype(np.float32)


def window(info: PictureInfo, size: tuple[int, int], at: tuple[float, float]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a patch of `size` (height, width); `at` are uniforms in [0, 1)."""
    height, width = min(size[0], info.height), min(size[1], info.width)
    top, left = int(at[0] * (info.height - height + 1)), int(at[1] * (info.width - width + 1))
    return left, top, left + width, top + height


def cut(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    """The window (left, top, right, bottom) of a picture, counted in upright pixels."""
    left, top, right, bottom = box
    if isinstance(picture, np.ndarray):
        return picture[top:bottom, left:right]
    image = upright(picture)
    part = image.crop(box)
    part.format = picture.format  # which says what 32-bit integers mean
    return part


def _layers(
    picture: Picture, channels: int, background: Background, value_range: ValueRange | None
) -> Iterable[Image.Image]:
    """The picture as PIL images to be resized: one in colour, or one for each channel."""
    if value_range is not None:
        return _level_layers(picture, channels, background, value_range)
    if channels in _MODES and not describe(picture).planes:
        return [to_mode(picture, channels, background)]
    against = objection(describe(picture), channels)
    if against is not None:
        raise ValueError(against)
    values = values_of(picture)
    values = divided(values) if values.dtype == np.uint16 else values
    return [Image.fromarray(np.ascontiguousarray(values[..., k])) for k in range(values.shape[2])]


def _level_layers(
    picture: Picture, channels: int, background: Background, value_range: ValueRange
) -> Iterator[Image.Image]:
    """One layer after the other, each made of pieces: all levels at once would take many times the picture's memory."""
    whole = picture if isinstance(picture, np.ndarray) else upright(picture)
    height, width = whole.shape[:2] if isinstance(whole, np.ndarray) else whole.size[::-1]
    pieces = list(bands(width, height))

    def levels(rows: slice) -> NDArray[np.float32]:
        part = whole[rows] if isinstance(whole, np.ndarray) else picture_rows(whole, rows)
        return to_levels(part, channels, value_range, background)

    first = levels(pieces[0])
    for k in range(first.shape[2]):
        layer = Image.new("F", (width, height))
        for rows in pieces:
            found = first if rows.start == 0 else levels(rows)
            layer.paste(Image.fromarray(np.ascontiguousarray(found[..., k])), (0, rows.start))
        yield layer


def _placed(
    image: Image.Image, height: int, width: int, fit: str, crop: tuple[float, float, float] | None, pad_value: int,
    nearest: bool,
) -> NDArray[Any]:  # fmt: skip
    """[height, width, C] of one PIL image."""
    if fit == "pad":
        image = _padded(image, width, height, pad_value, nearest)
    if crop is None:
        image = _cover(image, width, height, nearest)
        left, top = (image.width - width) // 2, (image.height - height) // 2
    else:
        short = min(height, width)
        most = -(-short * _CROP_MARGIN[0] // _CROP_MARGIN[1])
        drawn = short + int(crop[0] * (most - short + 1))
        image = _cover(image, -(-width * drawn // short), -(-height * drawn // short), nearest)
        left, top = int(crop[1] * (image.width - width + 1)), int(crop[2] * (image.height - height + 1))
    pixels = np.asarray(image).reshape(image.height, image.width, len(image.getbands()))
    return pixels[top : top + height, left : left + width]
