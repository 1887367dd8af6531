"""Preconditionings of diffusion processes: the noise levels that a network is trained at, and its input at each.

    chain   T discrete levels; the network receives x at alpha^2 + sigma^2 = 1 and the step number
    edm     sigma / alpha = s anywhere between two ends (Karras et al. 2022); the network receives
            x / (alpha sqrt(s^2 + d^2)) with d = sigma_data, which has unit variance, and ln(s) / 4, or ln(s) times
            another `time_factor` (250 in OpenAI's consistency models)
    flow    alpha = 1 - t, sigma = t for t in (0, 1] (Lipman et al. 2023; Liu et al. 2023); the network receives this x
            and 1000 t
    ve      the variance-exploding SDE of Song et al. 2021: s anywhere between two ends, even in ln(s); the network
            receives x / alpha and s / 2, the noise's deviation on images in [0, 1]
    vp      their variance-preserving SDE, log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2 for t in (0, 1];
            the network receives x and 999 t
    subvp   their sub-VP SDE, with the same alpha and sigma = 1 - alpha^2; the network receives this x and 999 t

Levels are given as variance-preserving ones, and the preconditioning scales x for its network; only the log-SNR
matters. A **position** numbers the levels of a preconditioning. Integer positions form its discrete view, the chain:
position k is step k of the chain, and -1 is the clean end. Ancestral sampling, the variational bound and strides use
this view; training and the other solvers may use any position between.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from undiffuse.noise_levels import DiscreteSchedule, Level

PRECONDITIONINGS = ("chain", "edm", "flow", "ve", "vp", "subvp")
RHO = 7.0  # exponent of the grid of Karras et al. (2022), which defines the positions of "edm"
TOLD = 1000.0  # time input of a flow's network at t = 1, the range that time embeddings are made for


class TimeAdapter:
    """Computes a network's time input: the step number of a level in its chain, interpolated in log-SNR between steps.

    Args:
        chain: The trained chain.
        rescale: Whether the network receives k * 1000 / steps instead of k.
    """

    def __init__(self, chain: DiscreteSchedule, rescale: bool) -> None:
        self.chain = chain
        self.scale = 1000.0 / chain.steps if rescale else 1.0

    def __call__(self, level: Level, like: Tensor) -> Tensor:
        """Returns times [B] in float32 on the device of `like` [B, ...]."""
        return _told(self.chain.index_of(level) * self.scale, like)


class Preconditioning(Protocol):
    """Describes the levels of a process. Levels passed to its methods are variance preserving, in float64 on the CPU.

    Attributes:
        continuous: Whether there are levels between those of the chain.
    """

    continuous: bool

    @property
    def chain(self) -> DiscreteSchedule:
        """Returns the discrete view."""

    def level(self, position: Tensor) -> Level:
        """Maps positions [B] to levels; positions of a preconditioning that is not continuous are integers."""

    def position(self, level: Level) -> Tensor:
        """Maps levels to positions [B], the inverse of `level`."""

    def scale(self, level: Level) -> Tensor | None:
        """Returns the factor [B] or [1] that turns x of a level into the network's input; None for no scaling."""

    def time(self, level: Level, like: Tensor) -> Tensor:
        """Returns the network's time input at a level, float32 [B] on the device of `like` [B, ...]."""


class ChainPreconditioning:
    """Describes the steps of a chain.

    Args:
        chain: The chain.
        rescale: Whether the network receives k * 1000 / steps instead of k.
    """

    continuous = False

    def __init__(self, chain: DiscreteSchedule, rescale: bool = False) -> None:
        self.chain = chain
        self.time = TimeAdapter(chain, rescale)

    def level(self, position: Tensor) -> Level:
        """Returns the levels of steps [B]."""
        return self.chain.level(position)

    def position(self, level: Level) -> Tensor:
        """Returns the step numbers [B], interpolated in log-SNR."""
        return self.chain.index_of(level)

    def scale(self, level: Level) -> None:
        """Returns None: x is not scaled."""
        return None


class EDMPreconditioning:
    """Describes levels with sigma / alpha = s from `low` to `high`.

    Positions are even in s^(1/7), as on Karras et al.'s grid. Beyond `high`, and beyond a tenth of `low`, the network
    receives the time of these bounds. Training occasionally draws such levels. Midpoint solvers evaluate at an eighth
    of `low`, as in the original code.

    Args:
        steps: Number of integer positions.
        low: Smallest s.
        high: Largest s.
        sigma_data: Standard deviation of the data.
        time_factor: Factor of ln(s) in the network's time input.
    """

    continuous = True

    def __init__(self, steps: int, low: float, high: float, sigma_data: float, time_factor: float = 0.25) -> None:
        self.time_factor = time_factor
        self.steps, self.low, self.high, self.sigma_data = steps, low, high, sigma_data
        self._from, to = low ** (1 / RHO), high ** (1 / RHO)
        self._each = (to - self._from) / max(steps - 1, 1)

    @cached_property
    def chain(self) -> DiscreteSchedule:
        """Returns the levels of the integer positions."""
        return _chain(self, self.steps)

    def level(self, position: Tensor) -> Level:
        """Returns the levels of positions [B]."""
        root = (self._from + position.double() * self._each).clamp(min=self._from * 1e-3)
        return Level.from_ratio(root**RHO)

    def position(self, level: Level) -> Tensor:
        """Returns the positions [B] of levels."""
        return ((level.sigma / level.alpha) ** (1 / RHO) - self._from) / self._each

    def scale(self, level: Level) -> Tensor:
        """Returns 1 / sqrt(sigma^2 + sigma_data^2 alpha^2) [B]."""
        return (level.sigma**2 + self.sigma_data**2 * level.alpha**2).rsqrt()

    def time(self, level: Level, like: Tensor) -> Tensor:
        """Returns ln(s) times `time_factor` [B], with s clamped to [low / 10, high]."""
        return _told((level.sigma / level.alpha).clamp(self.low / 10, self.high).log() * self.time_factor, like)


class FlowPreconditioning:
    """Describes levels with sigma / (alpha + sigma) = t; position k is t = (k + 1) / steps, the last one pure noise.

    Args:
        steps: Number of integer positions.
    """

    continuous = True

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @cached_property
    def chain(self) -> DiscreteSchedule:
        """Returns the levels of the integer positions."""
        return _chain(self, self.steps)

    def level(self, position: Tensor) -> Level:
        """Returns the levels of positions [B]."""
        t = ((position.double() + 1) / self.steps).clamp(0, 1)
        norm = ((1 - t) ** 2 + t**2).sqrt()
        return Level((1 - t) / norm, t / norm)

    def position(self, level: Level) -> Tensor:
        """Returns the positions [B] of levels."""
        return self._t(level) * self.steps - 1

    def scale(self, level: Level) -> Tensor:
        """Returns 1 / (alpha + sigma) [B]."""
        return 1 / (level.alpha + level.sigma)

    def time(self, level: Level, like: Tensor) -> Tensor:
        """Returns 1000 t [B]."""
        return _told(TOLD * self._t(level), like)

    @staticmethod
    def _t(level: Level) -> Tensor:
        return level.sigma / (level.alpha + level.sigma)


class VEPreconditioning:
    """Describes levels with sigma / alpha = s from `low` to `high`; positions are even in ln(s).

    Args:
        steps: Number of integer positions.
        low: Smallest s.
        high: Largest s.
    """

    continuous = True

    def __init__(self, steps: int, low: float, high: float) -> None:
        self.steps, self.low = steps, low
        self._each = math.log(high / low) / max(steps - 1, 1)

    @cached_property
    def chain(self) -> DiscreteSchedule:
        """Returns the levels of the integer positions."""
        return _chain(self, self.steps)

    def level(self, position: Tensor) -> Level:
        """Returns the levels of positions [B]."""
        return Level.from_ratio(self.low * (position.double() * self._each).exp())

    def position(self, level: Level) -> Tensor:
        """Returns the positions [B] of levels."""
        return (level.sigma / level.alpha / self.low).log() / self._each

    def scale(self, level: Level) -> Tensor:
        """Returns 1 / alpha [B]."""
        return 1 / level.alpha

    def time(self, level: Level, like: Tensor) -> Tensor:
        """Returns s / 2 [B]."""
        return _told(level.sigma / level.alpha / 2, like)


class VPPreconditioning:
    """Describes levels of the VP or sub-VP SDE at t in (0, 1]; position k is t = (k + 1) / steps.

    Args:
        steps: Number of integer positions.
        low: beta_min, the rate of noise at t = 0.
        high: beta_max, the rate of noise at t = 1.
        sub: Whether sigma is 1 - alpha^2 (sub-VP) instead of its root (VP).
    """

    continuous = True

    def __init__(self, steps: int, low: float, high: float, sub: bool = False) -> None:
        self.steps, self.low, self.rise, self.sub = steps, low, high - low, sub

    @cached_property
    def chain(self) -> DiscreteSchedule:
        """Returns the levels of the integer positions."""
        return _chain(self, self.steps)

    def level(self, position: Tensor) -> Level:
        """Returns the levels of positions [B]."""
        t = ((position.double() + 1) / self.steps).clamp(min=1e-9)
        squared = -t * (self.rise * t / 2 + self.low)  # ln alpha^2
        ratio = -torch.expm1(squared) * (-squared / 2).exp() if self.sub else torch.expm1(-squared).sqrt()
        return Level.from_ratio(ratio)

    def position(self, level: Level) -> Tensor:
        """Returns the positions [B] of levels."""
        return self._t(level) * self.steps - 1

    def scale(self, level: Level) -> Tensor:
        """Returns the SDE's alpha over that of the level [B]; 1 for VP."""
        return (self._minus_log(level) * -0.5).exp() / level.alpha

    def time(self, level: Level, like: Tensor) -> Tensor:
        """Returns 999 t [B]."""
        return _told(999 * self._t(level), like)

    def _minus_log(self, level: Level) -> Tensor:
        """Returns -ln of the SDE's alpha^2 at a log-SNR."""
        s = level.sigma / level.alpha
        return 2 * torch.asinh(s / 2) if self.sub else torch.log1p(s**2)  # sub-VP: s = 1 / a - a = 2 sinh(-ln a)

    def _t(self, level: Level) -> Tensor:
        wanted = self._minus_log(level)  # rise t^2 / 2 + low t
        return 2 * wanted / (self.low + (self.low**2 + 2 * self.rise * wanted).sqrt())


def _chain(preconditioning: Preconditioning, steps: int) -> DiscreteSchedule:
    """Builds the chain of a continuous preconditioning's integer positions."""
    level = preconditioning.level(torch.arange(steps, dtype=torch.float64))
    alpha2, sigma2 = (level.alpha**2).numpy(), (level.sigma**2).numpy()
    # beta = 1 - (alpha_t / alpha_s)^2 = (sigma_t^2 - sigma_s^2) / alpha_s^2: no cancellation near the clean image
    betas = (sigma2 - np.append(0.0, sigma2[:-1])) / np.append(1.0, alpha2[:-1])
    betas[alpha2 == 0] = 1.0
    return DiscreteSchedule(betas, alphas_cumprod=alpha2)


def _told(time: Tensor, like: Tensor) -> Tensor:
    return time.to(torch.float32).expand(like.shape[0]).to(like.device)
