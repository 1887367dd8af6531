"""Histories and polynomial integrals for linear multistep methods."""

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
    """Holds earlier levels and the predictions there, newest first.

    Attributes:
        where: A coordinate of each level, for example log(alpha / sigma).
        values: Predictions [B, C, H, W].
    """

    where: tuple[float, ...] = ()
    values: tuple[Tensor, ...] = ()

    def append(self, where: float, value: Tensor, keep: int) -> Past:
        """Appends an entry and keeps the last `keep`.

        Args:
            where: Coordinate of the level. Pure noise, at infinity, is not stored and clears the history.
            value: Prediction [B, C, H, W] there.
            keep: Number of entries to keep.

        Returns:
            The new history.
        """
        if math.isinf(where):
            return Past()
        return Past((where, *self.where)[:keep], (value, *self.values)[:keep])


@cache
def _gauss() -> tuple[Array, Array]:
    """Returns 48 Gauss-Legendre nodes in [-1, 1] and their weights; NumPy's polynomials are imported only here."""
    return np.polynomial.legendre.leggauss(48)


def lagrange_integrals(
    points: Sequence[float], start: float, end: float, density: Callable[[Array], Array]
) -> list[float]:
    """Integrates the Lagrange basis polynomials of `points` times a density from `start` to `end`.

    Gauss-Legendre quadrature with 48 nodes is exact to rounding for a constant density, and for exponentials over any
    step.

    Args:
        points: Interpolation points [K].
        start: Lower limit.
        end: Upper limit.
        density: Vectorised weight function.

    Returns:
        One integral per point.
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
    """Returns sum_k w_k (value_k - newest value): what older points add to the first-order step."""
    newest, *older = past.values
    return sum((w * (value - newest) for w, value in zip(weights[1:], older, strict=True)), start=0 * newest)


def midpoint_step(
    denoise: Denoise, first: Prediction, source: Level, target: Level, clip_after_guidance: bool
) -> tuple[Tensor, Prediction]:
    """Makes a step of DPM-Solver++(2S).

        D2 = x0 at lambda + h / 2,   x' / alpha' = e^-h x / alpha + (1 - e^-h) D2,   h = lambda' - lambda

    It is second order with two calls (Lu et al. 2022, algorithm 1 with r = 1/2).

    Args:
        denoise: The denoiser.
        first: The prediction at `source`.
        source: Level at the start.
        target: Level at the end.
        clip_after_guidance: Clip the denoised image again after guidance.

    Returns:
        x at `target`, and the prediction halfway in log-SNR.
    """
    a, b = half_logsnr(source), half_logsnr(target)
    middle = Level.from_logsnr(a + b)  # log-SNR is 2 lambda, here at the mean of a and b
    second = denoise(ddim_move(first, middle), middle).guided_score(clip_after_guidance)
    return shift(ddim_move(first, target), target, -math.expm1(a - b), second.x0 - first.x0), second


def is_finite_step(source: Level, target: Level) -> bool:
    """Returns whether both ends are finite in log-SNR; otherwise a step can only be of first order."""
    return math.isfinite(half_logsnr(source)) and math.isfinite(half_logsnr(target))
