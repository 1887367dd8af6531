"""Gradients with respect to the noisy image: propagation through the network, and normalisation."""

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
    """Propagates a gradient at the denoised image to the noisy image, with one backward pass through the network.

    Where the denoiser clips x0, a clipped pixel has no gradient.

    Args:
        denoiser: The denoiser.
        x: Noisy images [B, C, H, W].
        level: Their noise levels.
        cond: Conditions by name.
        gradient: Function of x0 that returns a gradient [B, C, H, W].

    Returns:
        The prediction at x, and (d x0 / d x)^T `gradient(x0)` [B, C, H, W]. They carry no graph, unless the caller
        differentiates with respect to x (as does another guidance around this one).

    Raises:
        ValueError: x0 does not depend on x differentiably.
    """
    inner = x.requires_grad and torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        at = x if inner else x.detach().clone().requires_grad_()  # clones: autograd cannot use inference tensors
        cloned = {name: value if inner else value.clone() for name, value in cond.items()} if cond else cond
        prediction = denoiser(at, level, cloned)
        x0 = prediction.x0
        outward = gradient(x0.detach())
        if not x0.requires_grad:
            raise ValueError("the denoised image is not differentiable with respect to x; use at='x_t'")
        (pulled,) = torch.autograd.grad(x0, at, outward.to(x0.dtype), retain_graph=inner)
    return (prediction, pulled) if inner else (without_graph(prediction), pulled.detach())


def normalised(gradient: Tensor, level: Level) -> Tensor:
    """Scales each image's gradient so that it moves the predicted noise by root mean square 1: |sigma g|_rms = 1.

    A zero gradient stays zero.
    """
    rms = gradient.flatten(1).square().mean(dim=1).sqrt().reshape(-1, *[1] * (gradient.ndim - 1))
    unit = gradient / torch.where(rms > 0, rms, 1.0)
    return expand(1 / level.sigma, gradient) * unit
