"""What linear multistep methods share: what they remember, and exact integrals of the polynomials through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from torch import Tensor

from undiffuse.noise_levels import Array, Level
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, ddim_move, half_logsnr, shift


@dataclass(frozen=True)
class Past:
    """Earlier levels (some coordinate of them) and what was predicted there, newest first."""

    where: tuple[float, ...] = ()
    values: tuple[Tensor, ...] = ()

    def append(self, where: float, value: Tensor, keep: int) -> Past:
        """With a newer entry, of which `keep` are remembered. Pure noise, infinitely far, is not."""
        if math.isinf(where):
            return Past()
        return Past((where, *self.where)[:keep], (value, *self.values)[:keep])


@cache
def _gauss() -> tuple[Array, Array]:
    """Nodes in [-1, 1] and weights of 48 points; NumPy's polynomials are imported for nobody else."""
    return np.polynomial.legendre.leggauss(48)


def lagrange_integrals(
    points: Sequence[float], start: float, end: float, density: Callable[[Array], Array]
) -> list[float]:
    """Integrals from `start` to `end` of the Lagrange basis polynomials of `points` times a density.

    Gauss-Legendre with 48 nodes: exact to rounding for a constant density, and for exponentials over any step.
    """
    nodes, weights = _gauss()
    half = (end - start) / 2
    at = start + half * (1 + nodes)
    measure = half * weights * density(at)
    return [
        float(
            measure
            @ np.prod([(at - b) / (a - b) for j, b in enumerate(points) if j != k] or [np.ones_like(at)], axis=0)
        )
        for k, a in enumerate(points)
    ]


def combined(past: Past, weights: Sequence[float]) -> Tensor:
    """sum_k w_k (value_k - newest value): what an older point adds to the first-order step."""
    newest, *older = past.values
    return sum((w * (value - newest) for w, value in zip(weights[1:], older, strict=True)), start=0 * newest)


def midpoint_step(
    denoise: Denoise, first: Prediction, source: Level, target: Level, clip_after_guidance: bool
) -> tuple[Tensor, Prediction]:
    """DPM-Solver++(2S) from `first`, the prediction at `source`: (x at `target`, the prediction half way in log-SNR).

        D2 = x0 at lambda + h / 2,   x' / alpha' = e^-h x / alpha + (1 - e^-h) D2,   h = lambda' - lambda

    Second order with two calls (Lu et al. 2022, algorithm 1 with r = 1/2).
    """
    a, b = half_logsnr(source), half_logsnr(target)
    middle = Level.from_logsnr(a + b)  # twice the half of each, halved
    second = denoise(ddim_move(first, middle), middle).guided_score(clip_after_guidance)
    return shift(ddim_move(first, target), target, -math.expm1(a - b), second.x0 - first.x0), second


def is_finite_step(source: Level, target: Level) -> bool:
    """Whether neither end is infinitely far in log-SNR: else a step can be of first order only."""
    return math.isfinite(half_logsnr(source)) and math.isfinite(half_logsnr(target))
