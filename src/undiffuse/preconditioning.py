"""Preconditionings of diffusion processes: the noise levels that a network is trained at, and its input at each.

    chain   T discrete levels; the network receives x at alpha^2 + sigma^2 = 1 and the step number
    edm     sigma / alpha = s anywhere between two ends (Karras et al. 2022); the network receives
            x / (alpha sqrt(s^2 + d^2)) with d = sigma_data, which has unit variance, and ln(s) / 4, or ln(s) times
            another `time_factor` (250 in OpenAI's consistency models)
    flow    alpha = 1 - t, sigma = t for t in (0, 1] (Lipman et al. 2023; Liu et al. 2023); the network receives this x
            and 1000 t

Levels are given as variance-preserving ones, and the preconditioning scales x for its network; only the log-SNR
matters. A **position** numbers the levels of a preconditioning. Integer positions form its discrete view, the chain:
position k is step k of the chain, and -1 is the clean end. Ancestral sampling, the variational bound and strides use
this view; training and the other solvers may use any position between.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from undiffuse.noise_levels import DiscreteSchedule, Level

PRECONDITIONINGS = ("chain", "edm", "flow")
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
