"""DPM-Solver++: exponential integrators of the denoised image in log-SNR (Lu et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, half_logsnr, shift
from undiffuse.solvers.multistep import Past, is_finite_step, midpoint_step


@dataclass(frozen=True, kw_only=True)
class DPMpp2S:
    """Applies DPM-Solver++(2S): the step of `multistep.midpoint_step` with two calls, and DDIM onto the clean image.

    Args:
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    clip_after_guidance: bool = False
    name = "dpmpp-2s"

    def init(self, x: Tensor, path: NoisePath) -> None:
        """Returns no state."""
        return None

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: None, draw: Draw
    ) -> tuple[Tensor, None, Prediction]:
        """See `Solver.step`."""
        source, target = transition.source, transition.target
        first = denoise(x, source).guided_score(self.clip_after_guidance)
        if not is_finite_step(source, target):
            return ddim_move(first, target), None, first
        return midpoint_step(denoise, first, source, target, self.clip_after_guidance)[0], None, first


@dataclass(frozen=True, kw_only=True)
class DPMpp:
    """Applies multistep DPM-Solver++ to the probability flow or to the reverse diffusion.

    With lambda = log(alpha / sigma), h = lambda' - lambda, H = (1 + eta) h and D = x0 at the start of the step,

        x' / alpha' = e^-H x / alpha + (1 - e^-H) D + corrections + s' sqrt(1 - e^(-2 eta h)) z
        2M:  (1 - e^-H) / 2 * D1,   D1 = (D - D_-1) h / h_-1
        3M:  phi D1 + (1 - 2 phi / H) D2,   phi = 1 - (1 - e^-H) / H,   D + D1 u + D2 u^2 through the last three D

    3M integrates its parabola exactly. Published implementations weight D2 by 1/2 - phi / H, half of this, which makes
    the method second order. This one is third order, for which its first step makes a second call (2S). With noise,
    both are of order 2 and there is no such call. The step onto the clean image is of first order: the denoised image.

    Args:
        order: 2 (2M) or 3 (3M).
        eta: Noise, at least 0: 0 is the probability flow, 1 the reverse diffusion.
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    order: int = 2
    eta: float = 0.0
    clip_after_guidance: bool = False

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order must be 2 or 3; got {self.order}")
        if not self.eta >= 0:
            raise ValueError(f"eta must be at least 0 (0: probability flow, 1: reverse diffusion); got {self.eta}")

    @property
    def name(self) -> str:
        """Returns the name in the registry."""
        return f"dpmpp-{self.order}m" + ("-sde" if self.eta else "")

    def init(self, x: Tensor, path: NoisePath) -> Past:
        """Returns an empty history."""
        return Past()

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Past, draw: Draw
    ) -> tuple[Tensor, Past, Prediction]:
        """See `Solver.step`; the state is the history of denoised images."""
        source, target = transition.source, transition.target
        prediction = denoise(x, source).guided_score(self.clip_after_guidance)
        past = state.append(half_logsnr(source), prediction.x0, keep=self.order)
        if not is_finite_step(source, target):
            return self._first_order(prediction, source, target, draw), past, prediction
        if self.order == 3 and self.eta == 0 and len(past.where) == 1:
            return midpoint_step(denoise, prediction, source, target, self.clip_after_guidance)[0], past, prediction
        x = self._first_order(prediction, source, target, draw)
        h = half_logsnr(target) - half_logsnr(source)
        if len(past.where) > 1:
            x = shift(x, target, 1.0, self._correction(past, h))
        return x, past, prediction

    def _first_order(self, prediction: Prediction, source: Level, target: Level, draw: Draw) -> Tensor:
        if self.eta == 0:
            return ddim_move(prediction, target)
        decay = math.exp(-self.eta * (half_logsnr(target) - half_logsnr(source)))
        x = prediction.x
        mean = expand(target.alpha, x) * prediction.x0 + expand(decay * target.sigma, x) * prediction.eps
        if not bool((target.sigma > 0).all()):
            return mean
        return mean + expand(target.sigma * math.sqrt(1 - decay**2), x) * draw()

    def _correction(self, past: Past, h: float) -> Tensor:
        H = (1 + self.eta) * h
        r0 = (past.where[0] - past.where[1]) / h
        slope = (past.values[0] - past.values[1]) / r0
        if len(past.where) == 2:
            return -0.5 * math.expm1(-H) * slope
        r1 = (past.where[1] - past.where[2]) / h
        bend = (slope - (past.values[1] - past.values[2]) / r1) / (r0 + r1)
        phi = 1 + math.expm1(-H) / H
        return phi * (slope + r0 * bend) + (1 - 2 * phi / H) * bend
