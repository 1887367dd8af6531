"""Which noise levels a network is trained at, and how it is shown one: the preconditionings of diffusion processes.

    chain   T discrete levels; the network sees x at alpha^2 + sigma^2 = 1 and is told the step number
    edm     sigma / alpha = s anywhere between two ends (Karras et al. 2022); the network sees
            x / (alpha sqrt(s^2 + d^2)) with d = sigma_data, of unit variance, and is told ln(s) / 4, or ln(s) times
            another `time_factor` (250 in OpenAI's consistency models)
    flow    alpha = 1 - t, sigma = t for t in (0, 1] (Lipman et al. 2023; Liu et al. 2023); the network sees x there and
            is told 1000 t

Levels come in as variance preserving ones, which a preconditioning scales to what its network is used to; log-SNR is
all that matters. A **position** is a number on the line of a preconditioning's levels, whole at those of its discrete
view, the chain: position k is the chain's step k, -1 the clean end. Ancestral sampling, the bound and strides go by
that view; training and solvers may stand anywhere between.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from undiffuse.noise_levels import DiscreteSchedule, Level

PRECONDITIONINGS = ("chain", "edm", "flow")
RHO = 7.0  # of the grid of Karras et al. (2022), on which positions of "edm" lie
TOLD = 1000.0  # what a flow's network is told at t = 1, the range that time embeddings are made for


class TimeAdapter:
    """Tells a network the time of a level: the step number in its chain, interpolated in log-SNR between steps."""

    def __init__(self, chain: DiscreteSchedule, rescale: bool) -> None:
        self.chain = chain
        self.scale = 1000.0 / chain.steps if rescale else 1.0

    def __call__(self, level: Level, like: Tensor) -> Tensor:
        """Times [B] in float32 on the device of `like` [B, ...]."""
        return _told(self.chain.index_of(level) * self.scale, like)


class Preconditioning(Protocol):
    """The levels of a process. Levels given to the methods are variance preserving, tensors float64 on the CPU.

    `chain`       the discrete view; `continuous` whether there are levels between its own
    `level`       positions [B] -> level (whole ones of a preconditioning that is not continuous)
    `position`    level -> positions [B], the inverse
    `scale`       what x of a level is multiplied with to be the network's input [B] or [1]; None: nothing
    `time`        what the network is told of a level, float32 [B] on the device of `like` [B, ...]
    """

    continuous: bool

    @property
    def chain(self) -> DiscreteSchedule: ...
    def level(self, position: Tensor) -> Level: ...
    def position(self, level: Level) -> Tensor: ...
    def scale(self, level: Level) -> Tensor | None: ...
    def time(self, level: Level, like: Tensor) -> Tensor: ...


class ChainPreconditioning:
    """The steps of a chain. `rescale`: the network is told k * 1000 / steps instead of k."""

    continuous = False

    def __init__(self, chain: DiscreteSchedule, rescale: bool = False) -> None:
        self.chain = chain
        self.time = TimeAdapter(chain, rescale)

    def level(self, position: Tensor) -> Level:
        return self.chain.level(position)

    def position(self, level: Level) -> Tensor:
        return self.chain.index_of(level)

    def scale(self, level: Level) -> None:
        return None


class EDMPreconditioning:
    """Levels with sigma / alpha = s from `low` to `high`; positions are even in s^(1/7), as on Karras et al.'s grid.

    Far beyond the ends (training draws such levels now and then) the network sees the time of a tenth of `low`, or of
    `high`. Midpoint solvers ask at an eighth of `low`, as the original code lets them.
    """

    continuous = True

    def __init__(self, steps: int, low: float, high: float, sigma_data: float, time_factor: float = 0.25) -> None:
        self.time_factor = time_factor
        self.steps, self.low, self.high, self.sigma_data = steps, low, high, sigma_data
        self._from, to = low ** (1 / RHO), high ** (1 / RHO)
        self._each = (to - self._from) / max(steps - 1, 1)

    @cached_property
    def chain(self) -> DiscreteSchedule:
        return _chain(self, self.steps)

    def level(self, position: Tensor) -> Level:
        root = (self._from + position.double() * self._each).clamp(min=self._from * 1e-3)
        return _of_ratio(root**RHO)

    def position(self, level: Level) -> Tensor:
        return ((level.sigma / level.alpha) ** (1 / RHO) - self._from) / self._each

    def scale(self, level: Level) -> Tensor:
        return (level.sigma**2 + self.sigma_data**2 * level.alpha**2).rsqrt()

    def time(self, level: Level, like: Tensor) -> Tensor:
        return _told((level.sigma / level.alpha).clamp(self.low / 10, self.high).log() * self.time_factor, like)


class FlowPreconditioning:
    """Levels with sigma / (alpha + sigma) = t; position k is t = (k + 1) / steps, the last one pure noise."""

    continuous = True

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @cached_property
    def chain(self) -> DiscreteSchedule:
        return _chain(self, self.steps)

    def level(self, position: Tensor) -> Level:
        t = ((position.double() + 1) / self.steps).clamp(0, 1)
        norm = ((1 - t) ** 2 + t**2).sqrt()
        return Level((1 - t) / norm, t / norm)

    def position(self, level: Level) -> Tensor:
        return self._t(level) * self.steps - 1

    def scale(self, level: Level) -> Tensor:
        return 1 / (level.alpha + level.sigma)

    def time(self, level: Level, like: Tensor) -> Tensor:
        return _told(TOLD * self._t(level), like)

    @staticmethod
    def _t(level: Level) -> Tensor:
        return level.sigma / (level.alpha + level.sigma)


def _of_ratio(s: Tensor) -> Level:
    """The variance-preserving level with sigma / alpha = s."""
    norm = (1 + s**2).sqrt()
    return Level(1 / norm, s / norm)


def _chain(preconditioning: Preconditioning, steps: int) -> DiscreteSchedule:
    """The whole positions of a continuous preconditioning as a chain."""
    level = preconditioning.level(torch.arange(steps, dtype=torch.float64))
    alpha2, sigma2 = (level.alpha**2).numpy(), (level.sigma**2).numpy()
    # beta = 1 - (alpha_t / alpha_s)^2 = (sigma_t^2 - sigma_s^2) / alpha_s^2, which loses no digits near the clean image
    betas = (sigma2 - np.append(0.0, sigma2[:-1])) / np.append(1.0, alpha2[:-1])
    betas[alpha2 == 0] = 1.0
    return DiscreteSchedule(betas, alphas_cumprod=alpha2)


def _told(time: Tensor, like: Tensor) -> Tensor:
    return time.to(torch.float32).expand(like.shape[0]).to(like.device)
