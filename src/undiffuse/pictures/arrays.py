"""Conversion of image batches: uint8 [N, H, W, C] from NumPy or torch, with 1, 3 or 4 channels."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ["Images", "as_images", "as_picture", "from_picture", "spaced"]

Images = np.ndarray | Tensor
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def as_images(images: Images, any_channels: bool = False) -> np.ndarray:
    """Converts a NumPy array or a tensor on any device to a uint8 array [N, H, W, C].

    Args:
        images: uint8 images [N, H, W, C]: C is 1 (grey), 3 (RGB) or 4 (RGBA).
        any_channels: Allow any number of channels.

    Raises:
        ValueError: The type, the number of axes or the number of channels is wrong, or the batch is empty.
    """
    if isinstance(images, Tensor):
        images = images.detach().cpu().numpy()
    if not isinstance(images, np.ndarray):
        raise ValueError(f"expected uint8 images [N, H, W, C] as a numpy array or tensor, got {type(images).__name__}.")
    given = f"{images.dtype} of shape {list(images.shape)}"
    if images.dtype != np.uint8:
        raise ValueError(
            f"expected uint8 images [N, H, W, C], got {given}: convert with undiffuse.pixels.to_uint8 first."
        )
    if images.ndim != 4 or (images.shape[-1] not in MODES and not any_channels) or 0 in images.shape:
        raise ValueError(f"expected uint8 images [N, H, W, C] with C = 1 (grey), 3 (RGB) or 4 (RGBA), got {given}.")
    return images


def as_picture(image: Image.Image | Images) -> Image.Image:
    """Converts one uint8 image [H, W, C] to a PIL image; returns a PIL image unchanged."""
    if isinstance(image, Image.Image):
        return image
    array = as_images(image[None])[0]
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))


def from_picture(picture: Image.Image) -> np.ndarray:
    """Returns the pixels of a grey, RGB or RGBA picture as uint8 [H, W, C]; other modes are converted to RGB."""
    if picture.mode not in MODES.values():
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def spaced(total: int, count: int) -> list[int]:
    """Returns at most `count` evenly spaced indices of 0..total-1, including the first and the last.

    Args:
        total: Number of steps.
        count: Number of steps to show; for 1 it is the last one.

    Raises:
        ValueError: `total` or `count` is below 1.
    """
    if total < 1 or count < 1:
        raise ValueError(f"total and count must be at least 1, got total={total}, count={count}.")
    if count == 1:
        return [total - 1]
    return [round(k) for k in np.linspace(0, total - 1, min(total, count))]
