"""How much of a guidance acts at each noise level: schedules, functions of a level.

A schedule gives a factor, 0 for no guidance and 1 for all of it, and the scale in force at a level is

    neutral + (scale - neutral) * factor        (neutral: the scale that does nothing, 0 for gradients, 1 for contrasts)

Where the factor is 0 guidance is not computed at all, so an interval also saves its cost. Schedules see the level only,
not the step, so they mean the same on every grid.
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
    """How noisy a level is, in [0, 1]: u = (2 / pi) arctan(sigma / alpha) [B]; 0 clean, 1 pure noise.

    It depends on the SNR alone, and runs at constant speed on the cosine schedule.
    """
    return torch.atan2(level.sigma, level.alpha) * (2 / math.pi)


def constant(level: Level) -> Tensor:
    """1 at every level."""
    return torch.ones_like(level.alpha)


def linear(level: Level) -> Tensor:
    """2 (1 - u): nothing at pure noise, twice the scale at the clean end, mean 1 over u (Wang et al. 2024)."""
    return 2 * (1 - angle(level))


def cosine(level: Level) -> Tensor:
    """1 + cos(pi u): as `linear`, but flat at both ends; mean 1 over u (Wang et al. 2024)."""
    return 1 + torch.cos(math.pi * angle(level))


GUIDANCE_SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine}


@dataclass(frozen=True)
class Interval:
    """1 where low <= log-SNR <= high, else 0 (Kynkaanniemi et al. 2024, there sigma / alpha from s_lo to s_hi).

    log-SNR = log(alpha^2 / sigma^2): negative where there is more noise than image. `math.inf` is no bound.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval goes from a low to a high log-SNR; got {self.low:g} to {self.high:g}")

    @classmethod
    def of_sigma(cls, low: float, high: float) -> Interval:
        """From a range of sigma / alpha (the noise of EDM's images): log-SNR = -2 log(sigma / alpha)."""
        if not 0 <= low <= high:
            raise ValueError(f"a range of noise goes from low to high, both at least 0; got {low:g} to {high:g}")
        return cls(*(-2 * math.log(s) if s > 0 else math.inf for s in (high, low)))

    @classmethod
    def of_steps(cls, levels: Sequence[Level], low: float, high: float) -> Interval:
        """The steps from the fraction `low` to the fraction `high` of a path, whose `levels` come noisiest first.

        Step i of n is inside where low <= i / n < high; the bounds lie halfway to the steps outside.
        """
        if not 0 <= low <= high <= 1:
            raise ValueError(f"fractions of the steps go from low to high, within 0 and 1; got {low:g} to {high:g}")
        inside = [i for i in range(len(levels)) if low <= i / len(levels) < high]
        if not inside:
            raise ValueError(f"none of the {len(levels)} steps lies between the fractions {low:g} and {high:g}")
        logsnr = [float(level.logsnr) for level in levels]
        first, last = inside[0], inside[-1]
        begin = (logsnr[first - 1] + logsnr[first]) / 2 if first else -math.inf
        end = (logsnr[last] + logsnr[last + 1]) / 2 if last + 1 < len(levels) else math.inf
        return cls(begin, end)

    def __call__(self, level: Level) -> Tensor:
        logsnr = level.logsnr
        return ((logsnr >= self.low) & (logsnr <= self.high)).to(torch.float64)


def product(*schedules: Schedule) -> Schedule:
    """The product of schedules, such as a cosine within an interval."""

    def factor(level: Level) -> Tensor:
        result = constant(level)
        for schedule in schedules:
            result = result * schedule(level)
        return result

    return factor
