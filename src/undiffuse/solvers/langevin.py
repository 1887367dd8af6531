"""Predictor-corrector sampling: DDIM to the next level, Langevin steps there (Song et al. 2021, section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, half_logsnr


@dataclass(frozen=True, kw_only=True)
class LangevinPC:
    """Takes a DDIM step to the next level, then Langevin steps there, one call each; none on the clean image.

        x <- alpha x0 + sigma (c eps + sqrt(1 - c^2) z),   c = exp(-rate h / correctors),   h = lambda' - lambda

    This is Langevin dynamics of the level's own distribution with step size (1 - c) sigma^2, exact where x0 is known.
    The Langevin time is proportional to the step in lambda = log(alpha / sigma), so the method converges. With the
    usual fixed signal-to-noise ratio, the bias of the Langevin steps remains for any number of levels, and the step
    size depends on the norms of each image's noise and score; here it depends on their average only.

    Args:
        correctors: Number of Langevin steps per level, at least 1.
        rate: Langevin time per unit of lambda, in units of sigma^2; at least 0.
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    correctors: int = 1
    rate: float = 0.5
    clip_after_guidance: bool = False
    name = "langevin-pc"

    def __post_init__(self) -> None:
        if self.correctors < 1 or not self.rate >= 0:
            raise ValueError(
                f"correctors must be at least 1 and rate at least 0; got correctors={self.correctors}, rate={self.rate}"
            )

    def init(self, x: Tensor, path: NoisePath) -> None:
        """Returns no state."""
        return None

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: None, draw: Draw
    ) -> tuple[Tensor, None, Prediction]:
        """See `Solver.step`."""
        source, target = transition.source, transition.target
        prediction = denoise(x, source).guided_score(self.clip_after_guidance)
        x = ddim_move(prediction, target)
        h = half_logsnr(target) - half_logsnr(source)
        if math.isinf(half_logsnr(target)):
            return x, None, prediction
        kept = math.exp(-self.rate * h / self.correctors) if self.rate else 1.0
        for number in range(self.correctors):
            here = denoise(x, target).guided_score(self.clip_after_guidance)
            x = expand(target.alpha, x) * here.x0 + expand(kept * target.sigma, x) * here.eps
            x = x + expand(math.sqrt(1 - kept**2) * target.sigma, x) * draw(number)
        return x, None, prediction
