"""Gradients with respect to the noisy image: through the network, and made of one size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.guidance.prediction_batch import without_graph
from undiffuse.noise_levels import Level, expand
from undiffuse.prediction import Prediction


def through_denoiser(
    denoiser: Denoiser, x: Tensor, level: Level, cond: Condition | None, gradient: Callable[[Tensor], Tensor]
) -> tuple[Prediction, Tensor]:
    """The prediction at x, and (d x0 / d x)^T `gradient(x0)` [B, C, H, W]: a gradient at the denoised image brought
    back to the noisy one, by one backward pass through the network.

    Where the denoiser clips x0, a clipped pixel has no gradient. The prediction carries no graph, unless the caller
    differentiates with respect to x himself (as does another guidance around this one).
    """
    inner = x.requires_grad and torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        at = x if inner else x.detach().clone().requires_grad_()  # clones: inference tensors cannot be used here
        told = {name: value if inner else value.clone() for name, value in cond.items()} if cond else cond
        prediction = denoiser(at, level, told)
        x0 = prediction.x0
        outward = gradient(x0.detach())
        if not x0.requires_grad:
            raise ValueError("the denoised image does not depend on x in a way torch can differentiate")
        (pulled,) = torch.autograd.grad(x0, at, outward.to(x0.dtype), retain_graph=inner)
    return (prediction, pulled) if inner else (without_graph(prediction), pulled.detach())


def normalised(gradient: Tensor, level: Level) -> Tensor:
    """The gradient in a size that moves the predicted noise by root mean square 1, image by image: |sigma g|_rms = 1.

    A zero gradient stays zero.
    """
    rms = gradient.flatten(1).square().mean(dim=1).sqrt().reshape(-1, *[1] * (gradient.ndim - 1))
    unit = gradient / torch.where(rms > 0, rms, 1.0)
    return expand(1 / level.sigma, gradient) * unit
