"""Bringing images to an extractor's size. Every rule here is part of somebody's metric: none is replaceable.

All functions take float images [B, C, H, W] in 0..255 and return float images [B, C, size, size] in 0..255.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["antialiased_bicubic", "antialiased_bilinear", "half_pixel_bilinear", "tf1_bilinear"]


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """The legacy bilinear rule of TensorFlow 1: output pixel j looks at j * in / out, without half-pixel centres.

    No antialiasing; beyond the last row or column its value continues. The identity where H = W = size.
    """
    return _lerp(_lerp(images, 3, size), 2, size)


def _lerp(images: Tensor, axis: int, size: int) -> Tensor:
    length = images.shape[axis]
    if length == size:
        return images
    # Positions in float32, as the original computes them: float64 would differ in the last digits of the weights.
    source = np.arange(size, dtype=np.float32) * (np.float32(length) / np.float32(size))
    low = np.floor(source).astype(np.int64)
    weights = torch.from_numpy(source - low.astype(np.float32)).to(images)
    lower = torch.from_numpy(np.minimum(low, length - 1)).to(images.device)
    upper = torch.from_numpy(np.minimum(low + 1, length - 1)).to(images.device)
    start = images.index_select(axis, lower)
    difference = images.index_select(axis, upper) - start
    return start + difference * weights.reshape(-1, *[1] * (3 - axis))


def half_pixel_bilinear(images: Tensor, size: int) -> Tensor:
    """Bilinear with half-pixel centres and without antialiasing, PyTorch's default."""
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def antialiased_bilinear(images: Tensor, size: int) -> Tensor:
    """Bilinear with half-pixel centres, the filter widened when shrinking."""
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def antialiased_bicubic(images: Tensor, size: int) -> Tensor:
    """Pillow's bicubic filter (a = -1/2, widened when shrinking) on unrounded numbers, clipped to 0..255."""
    return interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
