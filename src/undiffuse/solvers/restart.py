"""Restart sampling: follows the probability flow and repeats an interval with new noise (Xu et al. 2023)."""

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

_RHO = 7.0  # exponent of the interval's grid (Karras et al. 2022)


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Applies Heun's method and repeats the interval from `s_max` down to `s_min`.

    When sigma / alpha is first at most `s_min`, noise takes the image up to `s_max`, and `inner` steps of Heun bring it
    down again; this happens `restarts` times. New noise removes errors made above `s_max`, and the short interval adds
    few. There is one interval, by default the paper's for CIFAR-10 with fewer repetitions. A path without a level that
    low restarts from its cleanest level before the image, unless that is above `s_max`.

    Args:
        restarts: Number of restarts, at least 0.
        inner: Steps per restart, at least 1.
        s_min: Lower end of the interval in sigma / alpha.
        s_max: Upper end of the interval in sigma / alpha.
        clip_after_guidance: Clip the denoised image again after guidance.
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
                "restarts must be at least 0, inner at least 1, and 0 < s_min < s_max; got "
                f"restarts={self.restarts}, inner={self.inner}, s_min={self.s_min:g}, s_max={self.s_max:g}"
            )

    def init(self, x: Tensor, path: NoisePath) -> bool:
        """Returns False: no restart has happened."""
        return False

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: bool, draw: Draw
    ) -> tuple[Tensor, bool, Prediction]:
        """See `Solver.step`; the state says whether the restarts have happened."""
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
