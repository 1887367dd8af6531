"""A blurred image: deblurring."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undiffuse.editing.operators import divided


class Blur:
    """A x: convolution with a Gaussian of standard deviation `std` pixels, the image continued by mirroring at its
    edges (the edge pixel twice).

    The kernel is cut at 4 standard deviations and sums to 1. With this edge A is symmetric and diagonal in the cosine
    transform (DCT-II), with the gains g_j = sum_k kernel_k cos(pi j k / n) along an axis of n pixels.
    """

    def __init__(self, std: float) -> None:
        if not 0 < std < math.inf:
            raise ValueError(f"the standard deviation of a blur is a number of pixels above 0; got {std}")
        self.std = float(std)
        self.norm = 1.0  # of what is the same everywhere
        self._axes: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        down, across, gain = self._parts(x)
        return down.T @ (gain * (down @ x @ across.T)) @ across

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, y: Tensor, spread: Tensor, noise: float) -> Tensor:
        down, across, gain = self._parts(y)
        return down.T @ divided(down @ y @ across.T, gain, spread, noise) @ across

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The transforms [H, H] and [W, W], and the gains [H, W], like x."""
        (down, rows), (across, columns) = (self._axis(n) for n in x.shape[-2:])
        parts = (down, across, torch.outer(rows, columns))
        a, b, c = (part.to(x.dtype).to(x.device) for part in parts)
        return a, b, c

    def _axis(self, n: int) -> tuple[Tensor, Tensor]:
        """The orthonormal cosine transform [n, n] and the gains [n] of an axis, float64."""
        if n not in self._axes:
            j, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
            transform = torch.cos(math.pi * j * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
            transform[0] /= math.sqrt(2)
            radius = math.ceil(4 * self.std)
            k = torch.arange(-radius, radius + 1, dtype=torch.float64)
            kernel = torch.exp(-0.5 * (k / self.std) ** 2)
            gains = torch.cos(math.pi * j * k / n) @ (kernel / kernel.sum())
            self._axes[n] = (transform, gains)
        return self._axes[n]
