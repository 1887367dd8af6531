"""PNDM: pseudo numerical methods, the fixed Adams-Bashforth weights in DDIM's step (Liu et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, ratio, shift
from undiffuse.solvers.multistep import Past, combined, is_finite_step

WARMUPS = ("rk", "plms")
# Weights of noises at equal steps of t, newest first; each row sums to 1.
_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class State:
    """Holds the history of noises, and whether the run is long enough for Runge-Kutta steps.

    Attributes:
        past: Past noises.
        warm: Whether to start with Runge-Kutta steps.
    """

    past: Past
    warm: bool


@dataclass(frozen=True, kw_only=True)
class PNDM:
    """Applies the four-point Adams-Bashforth weights in sigma / alpha.

        x' / alpha' = x / alpha + (s' - s) (55 e_n - 59 e_{n-1} + 37 e_{n-2} - 9 e_{n-3}) / 24,  s = sigma / alpha

    The weights assume steps that are equal in t, or in any other smooth measure of the path. On uneven grids (sections,
    explicit steps) the method drops to first order, unlike `AdamsBashforth`. Otherwise it is of second order and no
    higher, because the step is linear in s and not in t.

    Args:
        warmup: Method of the first three steps. "rk" is the classical Runge-Kutta method with four calls each (F-PNDM;
            on runs of more than four steps). Its midpoint is taken in s, in which the step is linear. "plms" uses the
            formulas for as many points as there are (one call per step).
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    warmup: str = "rk"
    clip_after_guidance: bool = False
    name = "pndm"

    def __post_init__(self) -> None:
        if self.warmup not in WARMUPS:
            raise ValueError(f"warmup must be {' or '.join(WARMUPS)}; got {self.warmup!r}")

    def init(self, x: Tensor, path: NoisePath) -> State:
        """Returns an empty history."""
        return State(Past(), self.warmup == "rk" and path.steps > 4)

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: State, draw: Draw
    ) -> tuple[Tensor, State, Prediction]:
        """See `Solver.step`."""
        source, target = transition.source, transition.target
        prediction = denoise(x, source).guided_score(self.clip_after_guidance)
        past = state.past.append(ratio(source), prediction.eps, keep=4)
        state = State(past, state.warm)
        if not is_finite_step(source, target):
            return ddim_move(prediction, target), state, prediction
        if state.warm and len(past.where) < 4:
            return self._runge_kutta(denoise, prediction, source, target), state, prediction
        step = ratio(target) - ratio(source)
        weights = _BASHFORTH[len(past.where) - 1]
        return shift(ddim_move(prediction, target), target, step, combined(past, weights)), state, prediction

    def _runge_kutta(self, denoise: Denoise, first: Prediction, source: Level, target: Level) -> Tensor:
        s, end = ratio(source), ratio(target)
        middle = Level.from_logsnr(-2 * math.log((s + end) / 2))

        def along(e: Tensor, level: Level) -> Tensor:
            return shift(ddim_move(first, level), level, ratio(level) - s, e - first.eps)

        def noise(x: Tensor, level: Level) -> Tensor:
            return denoise(x, level).guided_score(self.clip_after_guidance).eps

        second = noise(along(first.eps, middle), middle)
        third = noise(along(second, middle), middle)
        fourth = noise(along(third, target), target)
        return along((first.eps + 2 * second + 2 * third + fourth) / 6, target)
