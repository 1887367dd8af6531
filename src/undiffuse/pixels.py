"""Converts between float images in [-1, 1] and stored pixels: the only place where that is done.

Inside the library an image is a float tensor [N, C, H, W] in [-1, 1]; outside (files, pictures, metrics) it is [N, H,
W, C], uint8 or in the units of a declared value range. The map of 8-bit levels is x = u / 127.5 - 1, as in Ho et al.
2020 (section 3.3); that of a range (low, high) is x = 2 (v - low) / (high - low) - 1. Any number of channels will do.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rounding", "from_pixels", "from_uint8", "to_uint8", "to_units"]

Rounding = Literal["nearest", "truncate"]


def to_uint8(x: Tensor, rounding: Rounding = "nearest") -> Tensor:
    """Float images [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C], contiguous, on the same device.

    u = round(127.5 (x + 1)) with ``"nearest"``, floor(127.5 (x + 1)) with ``"truncate"``; values outside [-1, 1]
    saturate. ``"truncate"`` is the cast of the original releases: it is needed to repeat their files exactly, but it
    darkens by half a grey level on average and changes 63 of the 256 levels when an 8-bit image goes in and out again.
    ``"nearest"`` changes none.

    Raises ValueError for anything but a floating [N, C, H, W] tensor, for NaN, and for an unknown rounding.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4:
        raise ValueError(f"to_uint8 needs a floating-point tensor [N, C, H, W] in [-1, 1], not {_describe(x)}.")
    if rounding not in ("nearest", "truncate"):
        raise ValueError(
            f"rounding={rounding!r} is unknown: use 'nearest', or 'truncate' for the cast of the original releases."
        )
    # Half precision has no room for 256 levels near 1 (bfloat16 keeps 8 bits): the arithmetic is float32 or better.
    levels = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) + 1) * 127.5
    broken = int(torch.isnan(levels).sum())
    if broken:
        raise ValueError(
            f"{broken} of {x.numel()} values are NaN, which no pixel can show. The network or the sampler diverged: "
            "check the weights, or sample in float32 if you used half precision."
        )
    if rounding == "nearest":
        levels = levels.round()
    return levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(images: Tensor | np.ndarray, device: torch.device | str | None = None) -> Tensor:
    """uint8 images [N, H, W, C] (tensor or array) -> float32 [N, C, H, W] in [-1, 1], contiguous: x = u / 127.5 - 1.

    Moves the pixels to ``device`` while they are still bytes, a quarter of the traffic.
    Raises ValueError for anything but uint8 [N, H, W, C].
    """
    if not isinstance(images, (Tensor, np.ndarray)) or images.ndim != 4 or images.dtype not in (torch.uint8, np.uint8):
        raise ValueError(f"from_uint8 needs uint8 images [N, H, W, C] in 0..255, not {_describe(images)}.")
    if isinstance(images, np.ndarray):
        # A copy where the array is read-only or strided backwards: torch can neither protect nor express those.
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    pixels = images.to(device) if device is not None else images
    return (pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1).contiguous()


def from_pixels(images: Tensor | np.ndarray, device: torch.device | str | None = None) -> Tensor:
    """Prepared images [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1], contiguous.

    Args:
        images: uint8, or floats that are in [-1, 1] already (data prepared with a value range).
        device: where the result is.

    Raises:
        ValueError: another type or shape.
    """
    floating = (torch.float32, np.float32, torch.float64, np.float64)
    if not isinstance(images, (Tensor, np.ndarray)) or images.ndim != 4 or images.dtype not in floating:
        return from_uint8(images, device)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    pixels = images.to(device) if device is not None else images
    return pixels.permute(0, 3, 1, 2).to(torch.float32).contiguous()


def to_units(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Float images [N, C, H, W] in [-1, 1] -> float32 [N, H, W, C] on the CPU, in the units of the training data.

    Args:
        x: images on any device; values outside [-1, 1] saturate.
        value_range: (low, high) of the data, as in `undiffuse.data.DataConfig`; None means 8-bit levels, (0, 255).

    Raises:
        ValueError: anything but a floating [N, C, H, W] tensor, or NaN.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4:
        raise ValueError(f"to_units needs a floating-point tensor [N, C, H, W] in [-1, 1], not {_describe(x)}.")
    low, high = (0.0, 255.0) if value_range is None else (float(value_range[0]), float(value_range[1]))
    levels = x.detach().to("cpu", torch.float64)
    if bool(torch.isnan(levels).any()):
        raise ValueError("some values are NaN. The network or the sampler diverged: check the weights.")
    units = low + (levels.clamp(-1, 1) + 1) * ((high - low) / 2)
    return units.to(torch.float32).permute(0, 2, 3, 1).contiguous()


def _describe(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{value.dtype} of shape {list(value.shape)}"
    return type(value).__name__
