"""The axes of arrays of pictures: which one is the channels'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.base import Layout

__all__ = ["arrange", "axes_of", "flat_shape", "picture_shape"]

_CHANNELS = (1, 2, 3, 4)


def axes_of(shape: Sequence[int], where: str, layout: Layout = "auto") -> tuple[tuple[int, ...], str]:
    """(order of the axes of one picture that makes it [H, W] or [H, W, C], a sentence if it was a choice).

    Args:
        shape: of one picture as stored: (H, W), (H, W, C), (C, H, W), or (D,) for flattened ones.
        where: what this is, for messages.
        layout: "HWC" or "CHW" where the user knows.

    Raises:
        ValueError: the shape fits both orders, or none.
    """
    if layout not in ("auto", "HWC", "CHW"):
        raise ValueError(f'layout={layout!r}: expected "auto", "HWC" or "CHW"')
    if len(shape) == 2:
        if shape[1] <= 4 and shape[0] > 8 and layout == "auto":
            height, channels = shape
            raise ValueError(
                f"{where}: an array [N, {height}, {channels}] looks like one image of {channels} channels, not like "
                f"grey images of {height}x{channels}. A set of images is [N, H, W, C]: save array[None], or say "
                'layout="HWC" if they are narrow grey images'
            )
        return (0, 1), ""
    if len(shape) != 3:
        raise ValueError(f"{where}: a picture of shape {list(shape)} has neither two nor three axes")
    last, first = (0, 1, 2), (1, 2, 0)
    if layout != "auto":
        return (last if layout == "HWC" else first), ""
    is_last, is_first = shape[2] in _CHANNELS, shape[0] in _CHANNELS
    if is_last != is_first:
        return (last if is_last else first), "" if is_last else "axes [channels, height, width]"
    square_last, square_first = shape[0] == shape[1], shape[1] == shape[2]
    if square_last != square_first:
        order = "[height, width, channels]" if square_last else "[channels, height, width]"
        return (last if square_last else first), f"axes {order}, by the square of the other two"
    raise ValueError(
        f'{where}: pictures of shape {list(shape)} may be [H, W, C] or [C, H, W]: say which by layout="HWC" or "CHW"'
    )


def picture_shape(width: int, where: str) -> tuple[tuple[int, ...], str]:
    """The shape of a flattened picture of `width` values: three planes of a square, or a grey square.

    Raises:
        ValueError: it is neither.
    """
    side = math.isqrt(width // 3)
    if 3 * side * side == width:
        return (3, side, side), f"flattened pictures: three planes of {side}x{side}"
    side = math.isqrt(width)
    if side * side == width and side > 1:
        return (side, side), f"flattened grey pictures of {side}x{side}"
    raise ValueError(f"{where}: {width} values a picture are neither three square planes nor a grey square")


def flat_shape(rows: Any, where: str, layout: Layout) -> tuple[tuple[int, ...], str, Layout]:
    """(shape of one flattened picture, a sentence about it, its layout) of an array [N, D]."""
    shape, note = picture_shape(rows.shape[1], where)
    if len(shape) < 3:
        return shape, note, "auto"
    side = shape[1]
    if layout == "HWC" or (layout == "auto" and interleaved(rows, side)):
        return (side, side, 3), f"flattened pictures of {side}x{side}: three values for each pixel", "HWC"
    return shape, note, "CHW"


def interleaved(rows: NDArray[Any], side: int) -> bool:
    """Whether flattened squares in colour are [height, width, 3] and not three planes: where neighbours differ less.

    Pictures change little from a pixel to the next one; read in the wrong order they do not. Where the difference is
    small (noise), they are taken for planes, as CIFAR and downsampled ImageNet have them.
    """
    some = np.asarray(rows[:: max(1, len(rows) // 64)][:64], dtype=np.float64)
    planes = some.reshape(-1, 3, side, side)
    pixels = some.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)

    def change(pictures: NDArray[np.float64]) -> float:
        return float(np.abs(np.diff(pictures, axis=2)).mean() + np.abs(np.diff(pictures, axis=3)).mean())

    return side > 1 and change(pixels) < 0.8 * change(planes)


def arrange(images: NDArray[Any], where: str, layout: Layout = "auto") -> tuple[NDArray[Any], list[str]]:
    """A view [N, H, W] or [N, H, W, C] of an array of pictures, and sentences about what was decided.

    Raises:
        ValueError: The axes are ambiguous.
    """
    notes = []
    if images.ndim == 2:
        shape, note, layout = flat_shape(images, where, layout)
        images, notes = images.reshape(len(images), *shape), [note]
    if 0 in images.shape[1:]:
        raise ValueError(f"{where}: the images have no pixels, they are {images.dtype} {list(images.shape)}")
    axes, note = axes_of(images.shape[1:], where, layout)
    notes += [note] if note else []
    view = np.asanyarray(images).transpose(0, *(axis + 1 for axis in axes))
    return view, notes
