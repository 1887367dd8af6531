"""Some pixels are seen, others are not: inpainting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undiffuse.editing.operators import divided


class Mask:
    """A x = x where it is seen, 0 elsewhere. A is its own adjoint, and A A = A.

    `seen`  [1 or B, 1 or C, H, W], bool: True where the image is known, False where it is to be filled. ValueError if
            all of it is known, or nothing in some image.
    """

    def __init__(self, seen: Tensor) -> None:
        if seen.dtype != torch.bool or seen.ndim != 4:
            raise ValueError(
                f"a mask is a bool tensor [1 or B, 1 or C, H, W], True where seen; got {seen.dtype} {list(seen.shape)}"
            )
        if bool(seen.all()):
            raise ValueError("the mask is empty: every pixel is known, and there is nothing to fill")
        if not bool(seen.flatten(1).any(1).all()):
            raise ValueError("the mask covers a whole image: nothing of it is known; sample images instead")
        self.seen = seen
        self.norm = 1.0

    def _of(self, x: Tensor) -> Tensor:
        ours, theirs = self.seen.shape, x.shape
        if ours[-2:] != theirs[-2:] or ours[0] not in (1, theirs[0]) or ours[1] not in (1, theirs[1]):
            raise ValueError(f"a mask of {list(ours)} does not fit images of {list(theirs)}: it must have their size")
        return self.seen.to(x.device)

    def select(self, indices: Sequence[int] | slice) -> Mask:
        """The mask of some of the images: of one mask for all of them the same, else those of the given numbers."""
        if len(self.seen) == 1:
            return self
        part = object.__new__(Mask)  # nothing to fill in some of them is no mistake
        part.seen = self.seen[indices] if isinstance(indices, slice) else self.seen[list(indices)]
        part.norm = self.norm
        return part

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self._of(x), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, y: Tensor, spread: Tensor, noise: float) -> Tensor:
        return divided(y, self._of(y).to(y.dtype), spread, noise)

    def merged(self, known: Tensor, x: Tensor) -> Tensor:
        """`known` where it is seen, x elsewhere, [B, C, H, W]."""
        return torch.where(self._of(x), known, x)
