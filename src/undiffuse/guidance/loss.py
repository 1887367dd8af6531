"""Guidance by any differentiable loss of the denoised image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.guidance.base import GradientGuidance
from undiffuse.guidance.schedules import Schedule
from undiffuse.noise_levels import Level


class LossGuidance(GradientGuidance):
    """Steers a denoiser towards images of small loss: the score moves by -s grad loss(x0(x_t)).

    The gradient passes through the denoiser: each call costs a forward and a backward pass of the network, and several
    times the memory. Freeze weights that need no gradient.

    Args:
        denoiser: The denoiser to guide.
        loss: Function (x0 [B, C, H, W] in [-1, 1]) -> loss of each image [B], or their sum. Conditions follow as
            keywords. The loss of an image must not depend on other images of the batch.
        scale: s: 0 is no guidance; 1 guides to p(x) exp(-loss), to the extent that the denoised image represents all
            clean images that x_t may come from (exact for a linear loss of Gaussian data).
        conditions: Names of the conditions that the loss takes, for example a target; the network need not accept them.
        normalize: Whether every image's gradient is scaled so that it moves the predicted noise by s (root mean
            square).
        schedule: See `Guided`.
        every: See `Guided`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Callable[..., Tensor],
        scale: float = 1.0,
        *,
        conditions: Sequence[str] = (),
        normalize: bool = False,
        schedule: Schedule | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(denoiser, scale, "x0", tuple(conditions), normalize, schedule, every)
        self.loss = loss

    def gradient(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        """Returns -grad loss(x) [B, C, H, W]; raises ValueError if the loss has the wrong shape or no gradient."""
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            value = self.loss(at, **{name: cond[name].clone() for name in self.names})
            if not isinstance(value, Tensor) or value.shape not in ((), (len(x),)) or not value.requires_grad:
                found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"loss must return one differentiable number per image, shape [{len(x)}], or their sum; got {found}"
                )
            return -torch.autograd.grad(value.sum(), at)[0]
