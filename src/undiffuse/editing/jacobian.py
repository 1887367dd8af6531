"""The denoised image together with its derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.guidance.prediction_batch import without_graph
from undiffuse.noise_levels import Level
from undiffuse.prediction import Prediction

Pull = Callable[[Tensor], Tensor]
NOISIEST = 100.0
"""Above this sigma / alpha an observation does not guide. There x0 = (x - sigma eps) / alpha turns the network's small
errors into large ones, in the derivative more than in the value, which is clipped: at the last level of a cosine chain
20,000 times as large, which throws x away for good. Little is lost: of a direction in which the data's variance is C
such a level knows the part alpha^2 C / (alpha^2 C + sigma^2)."""


def informative(level: Level) -> Tensor:
    """Whether an observation may guide at a level, bool [1] or [B]: see `NOISIEST`."""
    return level.sigma <= NOISIEST * level.alpha


def with_pull(
    denoise: Callable[[Tensor, Level], Prediction], x: Tensor, level: Level, keep: bool
) -> tuple[Prediction, Pull]:
    """The prediction at x [B, C, H, W], without a graph, and v -> (d x0 / d x)^T v [B, C, H, W].

    The derivative is that of x0 before clipping. That of the clipped image is zero wherever a pixel has reached black
    or white, and such a pixel could not be pulled back by anything observed. `keep` allows more than one call of the
    second result; each is a backward pass through the network.
    """
    with torch.inference_mode(False), torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        prediction = denoise(at, level)
        free = (prediction.raw or prediction).x0
    if not free.requires_grad:
        raise ValueError(
            "the denoised image does not depend on x in a way torch can differentiate; make the network ready with "
            "gradient=True, and put guidance by an observation outside any other guidance"
        )

    def pull(v: Tensor) -> Tensor:
        with torch.inference_mode(False):
            (found,) = torch.autograd.grad(free, at, v.to(free.dtype), retain_graph=keep)
        return found.detach()

    return without_graph(prediction), pull
