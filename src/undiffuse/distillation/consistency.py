"""Consistency distillation and training: neighbouring noise levels of one trajectory must give the same image.

A student f is compared at x_t with a target network at x_s, where s is the next cleaner level of a grid and x_s lies on
the same trajectory of the probability flow (Song et al. 2023):

    L = weight(t) d(f(x_t, t), f_target(x_s, s))

Distillation (eq. 7) takes x_s from one step of a teacher, training (eq. 10) from the straight line to the clean image.
Levels here have alpha = 1, as in the papers: x_t = x0 + sigma z.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.noise_levels import Level, expand

__all__ = ["DISTANCES", "consistency_loss", "heun_teacher", "karras_level", "pseudo_huber", "straight_teacher"]

Teacher = Callable[[Tensor, Level, Level], Tensor]
"""(x at the source [B, C, H, W], source, target) -> x at the target on the same trajectory."""


def karras_level(index: Tensor, scales: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Level:
    """Returns levels of the grid of Karras et al. (2022, eq. 5).

    Args:
        index: Numbers on the grid [B], 0 for the noisiest level, `scales` - 1 for the cleanest.
        scales: Length of the grid, at least 2.
        low, high: sigma at its ends.
        rho: Its exponent.
    """
    ends = high ** (1 / rho), low ** (1 / rho)
    sigma = (ends[0] + index.double() / (scales - 1) * (ends[1] - ends[0])) ** rho
    return Level(torch.ones_like(sigma), sigma)


def heun_teacher(teacher: Denoiser, cond: Condition | None = None) -> Teacher:
    """Returns one step of Heun's method by a trained denoiser, without gradients (Song et al. 2023, eq. 6)."""

    def move(x: Tensor, source: Level, target: Level) -> Tensor:
        with torch.no_grad():
            step = expand(target.sigma - source.sigma, x)
            slope = teacher(x, source, cond).eps
            end = x + step * slope
            return x + step * (slope + teacher(end, target, cond).eps) / 2

    return move


def straight_teacher(x0: Tensor) -> Teacher:
    """Returns a step towards given clean images [B, C, H, W]: an unbiased stand-in for a teacher (Song et al. 2023)."""

    def move(x: Tensor, source: Level, target: Level) -> Tensor:
        return x + expand((target.sigma - source.sigma) / source.sigma, x) * (x - x0)

    return move


def pseudo_huber(difference: Tensor, scale: float = 0.00054) -> Tensor:
    """Returns sqrt(|d|^2 + c^2) - c for each image [B], c = `scale` sqrt(dimensions) (Song & Dhariwal 2024, eq. 8)."""
    flat = difference.flatten(1)
    c = scale * math.sqrt(flat.shape[1])
    return (flat.square().sum(1) + c**2).sqrt() - c


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda difference: difference.abs().flatten(1).mean(1),
    "l2": lambda difference: difference.square().flatten(1).mean(1),
    "pseudo-huber": pseudo_huber,
}
"""Distances of two images from their difference [B, C, H, W], one for each image [B]."""


def consistency_loss(
    student: Denoiser,
    target: Denoiser,
    teacher: Teacher,
    x0: Tensor,
    noise: Tensor,
    source: Level,
    next_level: Level,
    *,
    cond: Condition | None = None,
    distance: str = "l2",
    weight: Tensor | None = None,
) -> Tensor:
    """Returns the consistency loss of each image.

    Args:
        student: The denoiser that is trained.
        target: The denoiser it is compared with, of which no gradient is taken; often an average of the student.
        teacher: Moves x along its trajectory, see `heun_teacher` and `straight_teacher`.
        x0: Clean images [B, C, H, W] in [-1, 1].
        noise: Standard normal noise of the same shape.
        source: Noise levels [B] with alpha = 1.
        next_level: The neighbouring cleaner levels [B].
        cond: Conditions of the denoisers.
        distance: "l1", "l2" (means over the image) or "pseudo-huber".
        weight: Weights [B] of the levels; None for 1.

    Raises:
        ValueError: If the distance is unknown.
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; choose one of {', '.join(DISTANCES)}")
    x_t = x0 + expand(source.sigma, x0) * noise
    x_s = teacher(x_t, source, next_level)
    with torch.no_grad():
        aim = target(x_s, next_level, cond).x0
    loss = DISTANCES[distance](student(x_t, source, cond).x0 - aim)
    return loss if weight is None else weight.to(loss) * loss
