"""Restart sampling: down the flow, then a stretch of it again and again with new noise (Xu et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ratio
from undiffuse.solvers.edm import flow_step, noised

_RHO = 7.0  # of the stretch's own grid, Karras et al.'s


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Heun's method; when sigma / alpha first is at most `s_min`, noise takes the image up to `s_max` and `inner` steps
    of Heun down again, `restarts` times.

    New noise forgets the errors made above `s_max`; the short stretch makes few of its own. One interval, by default
    the paper's for CIFAR-10 with fewer repetitions. A path without a level that low restarts from its cleanest one
    before the image, unless that is above `s_max`.
    """

    restarts: int = 2
    inner: int = 4
    s_min: float = 0.06
    s_max: float = 0.3
    clip_after_guidance: bool = False
    name = "restart"

    def __post_init__(self) -> None:
        if self.restarts < 0 or self.inner < 1 or not 0 < self.s_min < self.s_max < math.inf:
            raise ValueError(
                "restarting takes 0 or more restarts of 1 or more steps, and s_min below s_max; got "
                f"{self.restarts} restarts of {self.inner}, {self.s_min:g} to {self.s_max:g}"
            )

    def init(self, x: Tensor, path: NoisePath) -> bool:
        return False

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: bool, draw: Draw
    ) -> tuple[Tensor, bool, Prediction]:
        source, target = transition.source, transition.target
        due = ratio(source) <= self.s_min or ratio(target) == 0
        if due and not state:
            state = True
            if ratio(source) < self.s_max:
                for number in range(self.restarts):
                    x = self._again(denoise, x, source, draw(number))
        x, prediction = flow_step(denoise, x, source, target, 2, self.clip_after_guidance)
        return x, state, prediction

    def _again(self, denoise: Denoise, x: Tensor, low: Level, noise: Tensor) -> Tensor:
        roots = np.linspace(self.s_max ** (1 / _RHO), ratio(low) ** (1 / _RHO), self.inner + 1)
        levels = [Level.from_logsnr(-2 * _RHO * math.log(root)) for root in roots[:-1]] + [low]
        x = noised(x, low, levels[0], noise)
        for high, next_one in zip(levels, levels[1:], strict=False):
            x, _ = flow_step(denoise, x, high, next_one, 2, self.clip_after_guidance)
        return x
