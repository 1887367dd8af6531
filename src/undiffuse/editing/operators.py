"""What an observation of an image is: y = A x + n, A linear, n ~ N(0, noise^2 I)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from undiffuse.noise_levels import expand


class Operator(Protocol):
    """A linear map A of images x [B, C, H, W] to observations y [B, C, h, w], each image by itself.

    `norm` is the largest factor by which A changes a length (its largest singular value).
    """

    norm: float

    def __call__(self, x: Tensor) -> Tensor:
        """A x. ValueError for images it cannot be applied to."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y [B, C, H, W]: <A x, y> = <x, A^T y>."""
        ...

    def solve(self, y: Tensor, spread: Tensor, noise: float) -> Tensor:
        """(spread A A^T + noise^2 I)^-1 y [B, C, h, w]; `spread` float64 [1] or [B].

        The pseudo-inverse where there is no inverse: without noise, for what A loses.
        """
        ...


def divided(y: Tensor, gain: Tensor, spread: Tensor, noise: float) -> Tensor:
    """y / (spread gain^2 + noise^2), 0 where that is next to 0: `solve` in coordinates in which A is diagonal."""
    below = expand(spread, y) * gain**2 + noise**2
    usable = below > expand(1e-12 * spread, y)
    return torch.where(usable, y / torch.where(usable, below, 1.0), 0.0)
