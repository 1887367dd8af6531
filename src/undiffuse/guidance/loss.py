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
    """Steer a denoiser towards images of small loss: the score moves by -s grad loss(x0(x_t)).

    `loss`        a function (x0 [B, C, H, W]) -> loss of each image [B], or their sum, of images in [-1, 1]; with
                  `conditions` they follow as keywords. No image's loss may depend on other images of the batch
    `conditions`  names of those conditions that the loss takes, such as a target; the network need not know them
    `scale`       s: 0 is no guidance; 1 guides to p(x) exp(-loss), as far as the denoised image stands for all clean
                  images that x_t may come from (exact for a linear loss of Gaussian data)
    `normalize`   every image's gradient is brought to the size that moves the predicted noise by s (root mean square)

    The gradient goes through the denoiser: a forward and a backward pass of the network at each call, in several times
    the memory. Weights that need no gradient should be frozen. `schedule`, `every` as in `Guided`.
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
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            value = self.loss(at, **{name: cond[name].clone() for name in self.names})
            if not isinstance(value, Tensor) or value.shape not in ((), (len(x),)) or not value.requires_grad:
                found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"a loss must give a number that depends on the image for each of the {len(x)} images, or their "
                    f"sum; got {found}"
                )
            return -torch.autograd.grad(value.sum(), at)[0]
