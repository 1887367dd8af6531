"""The door between float images and 8-bit pixels: the one place where the two are converted.

Inside the library an image is a float tensor [N, C, H, W] in [-1, 1]; outside (files, pictures, metrics) it is uint8
[N, H, W, C]. The map is x = u / 127.5 - 1, as in Ho et al. 2020 (section 3.3), for any number of channels (1 grey, 3
RGB, 4 RGBA).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rounding", "from_uint8", "to_uint8"]

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


def _describe(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{value.dtype} of shape {list(value.shape)}"
    return type(value).__name__
