"""A smaller image whose pixels are means of squares of pixels: super-resolution."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d

from undiffuse.editing.operators import divided


class Downsampling:
    """A x: the mean of every square of `factor` x `factor` pixels [B, C, H / factor, W / factor] (area sampling).

    The adjoint spreads a pixel over its square, divided by factor^2, so that A A^T = 1 / factor^2.
    """

    def __init__(self, factor: int) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
            raise ValueError(f"an image is made smaller by a whole factor of 2 or more; got {factor!r}")
        self.factor = factor
        self.norm = 1 / factor

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height}x{width} (height x width) cannot be divided by {self.factor}")
        return avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        spread = y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return spread / self.factor**2

    def solve(self, y: Tensor, spread: Tensor, noise: float) -> Tensor:
        return divided(y, y.new_full((1, 1, 1, 1), 1 / self.factor), spread, noise)
