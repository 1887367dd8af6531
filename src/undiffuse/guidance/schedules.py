"""Guidance schedules: functions of a noise level that give a factor of the guidance scale.

A factor of 0 is no guidance, 1 is full guidance. The effective scale at a level is

    neutral + (scale - neutral) * factor        (neutral: the scale without effect, 0 for gradients, 1 for contrasts)

Where the factor is 0, guidance is not computed, so an interval also saves its cost. Schedules depend on the level only,
not on the step, so they mean the same on every grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.noise_levels import Level

Schedule = Callable[[Level], Tensor]


def angle(level: Level) -> Tensor:
    """Returns u = (2 / pi) arctan(sigma / alpha) [B], from 0 (clean) to 1 (pure noise).

    It depends on the SNR alone and advances at constant speed on the cosine schedule.
    """
    return torch.atan2(level.sigma, level.alpha) * (2 / math.pi)


def constant(level: Level) -> Tensor:
    """Returns 1 at every level."""
    return torch.ones_like(level.alpha)


def linear(level: Level) -> Tensor:
    """Returns 2 (1 - u): 0 at pure noise, 2 at the clean end, mean 1 over u (Wang et al. 2024)."""
    return 2 * (1 - angle(level))


def cosine(level: Level) -> Tensor:
    """Returns 1 + cos(pi u): like `linear`, but flat at both ends; mean 1 over u (Wang et al. 2024)."""
    return 1 + torch.cos(math.pi * angle(level))


GUIDANCE_SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine}


@dataclass(frozen=True)
class Interval:
    """Is 1 where low <= log-SNR <= high, else 0 (Kynkaanniemi et al. 2024, who use sigma / alpha from s_lo to s_hi).

    log-SNR = log(alpha^2 / sigma^2) is negative where there is more noise than image. An infinite bound has no effect.

    Attributes:
        low: Lower bound of log-SNR.
        high: Upper bound of log-SNR.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"the interval of log-SNR must have low <= high; got low={self.low:g}, high={self.high:g}")

    @classmethod
    def of_sigma(cls, low: float, high: float) -> Interval:
        """Creates the interval from a range of sigma / alpha (EDM's noise level): log-SNR = -2 log(sigma / alpha).

        Raises:
            ValueError: The range is not 0 <= low <= high.
        """
        if not 0 <= low <= high:
            raise ValueError(f"the range of sigma / alpha must have 0 <= low <= high; got low={low:g}, high={high:g}")
        return cls(*(-2 * math.log(s) if s > 0 else math.inf for s in (high, low)))

    @classmethod
    def of_steps(cls, levels: Sequence[Level], low: float, high: float) -> Interval:
        """Creates the interval that contains a range of the steps of a path.

        Step i of n is inside where low <= i / n < high; the bounds lie halfway to the neighbouring steps outside.

        Args:
            levels: Levels of the path, noisiest first.
            low: Fraction of the steps where the interval starts, in [0, 1].
            high: Fraction where it ends.

        Raises:
            ValueError: The fractions are invalid or contain no step.
        """
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"the fractions of the steps must have 0 <= low <= high <= 1; got low={low:g}, high={high:g}"
            )
        inside = [i for i in range(len(levels)) if low <= i / len(levels) < high]
        if not inside:
            raise ValueError(f"none of the {len(levels)} steps is between the fractions {low:g} and {high:g}")
        logsnr = [float(level.logsnr) for level in levels]
        first, last = inside[0], inside[-1]
        begin = (logsnr[first - 1] + logsnr[first]) / 2 if first else -math.inf
        end = (logsnr[last] + logsnr[last + 1]) / 2 if last + 1 < len(levels) else math.inf
        return cls(begin, end)

    def __call__(self, level: Level) -> Tensor:
        """Returns the factor [B]."""
        logsnr = level.logsnr
        return ((logsnr >= self.low) & (logsnr <= self.high)).to(torch.float64)


def product(*schedules: Schedule) -> Schedule:
    """Returns the product of schedules, for example a cosine within an interval."""

    def factor(level: Level) -> Tensor:
        result = constant(level)
        for schedule in schedules:
            result = result * schedule(level)
        return result

    return factor
