"""Random changes of training images that are made on whole batches; flips and crops are made by `undiffuse.data`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation", "erased", "shifted"]

AREAS, SHAPES = (0.02, 0.25), (0.4, 2.5)
"""Smallest and largest share of an image that is erased, and ratio of height to width of what is erased."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a classifier's training images.

    Args:
        shift: Largest shift along each axis in pixels.
        erase: Probability, 0 to 1, of erasing a random rectangle.

    Raises:
        ValueError: A setting is out of its range.
    """

    shift: int = 0
    erase: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift must be 0 or more pixels, got {self.shift}")
        if not 0.0 <= self.erase <= 1.0:
            raise ValueError(f"erase must be a probability from 0 to 1, got {self.erase}")

    def __call__(self, x: Tensor, uniform: Callable[[str], Tensor]) -> Tensor:
        """Returns changed images.

        Args:
            x: Images [B, C, H, W] in [-1, 1].
            uniform: Gives numbers in [0, 1) [B] for a purpose, the same ones whenever it is asked.
        """
        if self.shift:
            x = shifted(x, uniform("down"), uniform("right"), self.shift)
        if self.erase:
            numbers = [uniform(f"erased {name}") for name in ("area", "shape", "top", "left", "value")]
            chosen = (uniform("erased") < self.erase).to(x.device)[:, None, None, None]
            x = torch.where(chosen, erased(x, torch.stack(numbers)), x)
        return x


def shifted(x: Tensor, down: Tensor, right: Tensor, most: int) -> Tensor:
    """Shifts images by whole pixels; the border is repeated into what becomes free.

    Args:
        x: Images [B, C, H, W].
        down: Numbers in [0, 1) [B] that choose the vertical shifts, from -`most` to `most` pixels evenly.
        right: The same for horizontal shifts.
        most: Largest shift in pixels, 0 or more.
    """
    wide = F.pad(x, (most, most, most, most), mode="replicate")
    first = [(2 * most - ((2 * most + 1) * u).long()).to(x.device) for u in (down, right)]
    rows, columns = (
        n[:, None] + torch.arange(side, device=x.device) for n, side in zip(first, x.shape[2:], strict=True)
    )
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return wide.movedim(1, 3)[image, rows[:, :, None], columns[:, None]].movedim(3, 1)


def erased(x: Tensor, numbers: Tensor) -> Tensor:
    """Replaces a rectangle of each image by one value (Zhong et al. 2017, random erasing).

    Args:
        x: Images [B, C, H, W] in [-1, 1].
        numbers: Numbers in [0, 1) [5, B] that choose area, shape, top, left and value of the rectangles.
    """
    area, shape, top, left, value = numbers.to(x.device)
    height, width = x.shape[2:]
    area = AREAS[0] + (AREAS[1] - AREAS[0]) * area
    ratio = SHAPES[0] * (SHAPES[1] / SHAPES[0]) ** shape
    inside = []
    for side, share, at in ((height, (area * ratio).sqrt(), top), (width, (area / ratio).sqrt(), left)):
        length = (side * share).round().clamp(1, side)
        first = (at * (side - length + 1)).floor()
        place = torch.arange(side, device=x.device)
        inside.append((place >= first[:, None]) & (place < (first + length)[:, None]))
    where = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(where, (2 * value - 1).to(x.dtype)[:, None, None, None], x)
