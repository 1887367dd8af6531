"""Resizes images to the size of an extractor. Every rule here is part of a published metric.

All functions take float images [B, C, H, W] in 0..255 and return float images [B, C, size, size] in 0..255.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = [
    "antialiased_bicubic",
    "antialiased_bilinear",
    "crop_pillow_bicubic",
    "half_pixel_bilinear",
    "pillow_bicubic",
    "pillow_bicubic_crop",
    "tf1_bilinear",
]

PILLOW_BITS = 22  # of the fraction of Pillow's weights


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Resizes by the legacy bilinear rule of TensorFlow 1: output pixel j reads j * in / out, without half pixels.

    There is no antialiasing. Beyond the last row or column its value continues. It is the identity where H = W = size.
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
    """Resizes bilinearly with half-pixel centres and without antialiasing, PyTorch's default."""
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def antialiased_bilinear(images: Tensor, size: int) -> Tensor:
    """Resizes bilinearly with half-pixel centres; the filter is widened when shrinking."""
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def antialiased_bicubic(images: Tensor, size: int) -> Tensor:
    """Resizes by Pillow's bicubic filter (a = -1/2, widened when shrinking) on unrounded numbers, clipped to 0..255."""
    # With weights in float32 it would be off by up to 0.004 grey levels.
    out = interpolate(_double(images), size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    return out.clamp(0, 255).to(images)


def pillow_bicubic(images: Tensor, size: int) -> Tensor:
    """Resizes uint8 images as Pillow's bicubic filter does, bit for bit; `images` must be whole numbers 0..255.

    Weights are whole numbers of 2^-22; the width comes before the height, and both results are rounded and clipped.
    That is Pillow up to version 12. From 13 on it takes the height first where that shrinks more (never from square to
    square), which moves some pixels of such images by a grey level or two.
    """
    return _pillow(images, (size, size))


def crop_pillow_bicubic(images: Tensor, size: int) -> Tensor:
    """Cuts the largest middle square (the odd pixel more at the right or bottom), then calls `pillow_bicubic`."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pillow_bicubic(images[:, :, top : top + side, left : left + side], size)


def pillow_bicubic_crop(images: Tensor, size: int) -> Tensor:
    """Resizes the shorter side to `size` by `pillow_bicubic`, the longer in proportion, then cuts the middle square.

    Of a middle between two pixels the even one is the first, as Python's round() has it.
    """
    height, width = images.shape[2:]
    short = min(height, width)
    resized = _pillow(images, (size * height // short, size * width // short))
    top, left = (round((length - size) / 2) for length in resized.shape[2:])
    return resized[:, :, top : top + size, left : left + size]


def _double(images: Tensor) -> Tensor:
    """Converts to float64, on the CPU if the device has none."""
    return (images.cpu() if images.device.type == "mps" else images).double()


def _pillow(images: Tensor, shape: tuple[int, int]) -> Tensor:
    # Sums of products of whole numbers below 2^53 are exact in float64, in whatever order they are taken.
    half, one = 2.0 ** (PILLOW_BITS - 1), 2.0**PILLOW_BITS
    out = _double(images)
    for axis, size in ((3, shape[1]), (2, shape[0])):
        if out.shape[axis] != size:
            weights = _pillow_weights(out.shape[axis], size).to(out.device)
            sums = out @ weights.T if axis == 3 else weights @ out
            out = ((sums + half) / one).floor().clamp(0, 255)
    return out.to(images)


def _pillow_weights(length: int, size: int) -> Tensor:
    """Returns weights [size, length] in units of 2^-22: Keys' cubic (1981) with a = -1/2, widened when shrinking."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale
    x = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights = weights / weights.sum(axis=1, keepdims=True) * 2.0**PILLOW_BITS
    return torch.from_numpy(np.trunc(weights + np.copysign(0.5, weights)))
