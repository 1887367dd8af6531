"""Euler's and Heun's methods in EDM's form, with churn (Karras et al. 2022, algorithms 1 and 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, ratio, shift


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Applies Euler's or Heun's method to the probability flow in s = sigma / alpha.

        slope d = eps(x, s),    x' / alpha' = x / alpha + (s' - s) d,    then with d' at the end of the step
        x' / alpha' = x / alpha + (s' - s) (d + d') / 2                  (Heun; not in the step onto the clean image)

    Without churn, Euler is DDIM. With churn, noise first raises the level from s to s (1 + g), g = min(churn / steps,
    sqrt 2 - 1), while s is in [s_min, s_max]. EDM's values for ADM on ImageNet 64: churn 80, s_min 0.05, s_max 50,
    s_noise 1.003.

    Args:
        order: 1 (Euler) or 2 (Heun).
        churn: Noise that is added and removed again, over all steps (EDM's S_churn); 0 is none.
        s_min: Smallest sigma / alpha with churn.
        s_max: Largest sigma / alpha with churn.
        s_noise: Multiplier of the added noise (EDM's S_noise).
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    order: int = 2
    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    clip_after_guidance: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 (Euler) or 2 (Heun); got {self.order}")
        if not (self.churn >= 0 and self.s_noise >= 0 and 0 <= self.s_min <= self.s_max):
            raise ValueError(
                "churn, s_noise and s_min must be at least 0, and s_min at most s_max; got "
                f"churn={self.churn:g}, s_noise={self.s_noise:g}, s_min={self.s_min:g}, s_max={self.s_max:g}"
            )

    @property
    def name(self) -> str:
        """Returns the name in the registry."""
        return "euler" if self.order == 1 else "heun"

    def init(self, x: Tensor, path: NoisePath) -> int:
        """Returns the number of steps, which divides the churn."""
        return path.steps

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: int, draw: Draw
    ) -> tuple[Tensor, int, Prediction]:
        """See `Solver.step`; the state is the number of steps."""
        source, s = transition.source, ratio(transition.source)
        if self.churn > 0 and self.s_min <= s <= self.s_max and math.isfinite(s):
            higher = Level.from_logsnr(-2 * math.log(s * (1 + min(self.churn / state, math.sqrt(2) - 1))))
            x = noised(x, source, higher, draw(), self.s_noise)
            source = higher
        x, prediction = flow_step(denoise, x, source, transition.target, self.order, self.clip_after_guidance)
        return x, state, prediction


def noised(x: Tensor, source: Level, target: Level, noise: Tensor, strength: float = 1.0) -> Tensor:
    """Moves x [B, C, H, W] to a noisier level by the forward process, with noise [B, C, H, W] times `strength`."""
    ratio_of = target.alpha / source.alpha
    std = (target.sigma**2 - (ratio_of * source.sigma) ** 2).clamp(min=0).sqrt()
    return expand(ratio_of, x) * x + expand(strength * std, x) * noise


def flow_step(
    denoise: Denoise, x: Tensor, source: Level, target: Level, order: int, clip_after_guidance: bool
) -> tuple[Tensor, Prediction]:
    """Makes one step of Euler (order 1) or Heun (order 2) along the probability flow.

    Returns:
        x at `target`, and the prediction at `source`.
    """
    first = denoise(x, source).guided_score(clip_after_guidance)
    end = ddim_move(first, target)
    if order == 1 or ratio(target) == 0 or math.isinf(ratio(source)):
        return end, first
    second = denoise(end, target).guided_score(clip_after_guidance)
    return shift(end, target, (ratio(target) - ratio(source)) / 2, second.eps - first.eps), first
