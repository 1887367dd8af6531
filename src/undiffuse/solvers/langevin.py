"""Predictor and corrector: DDIM down a level, Langevin steps at it (Song et al. 2021, section 4.2)."""

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
    """DDIM to the next level, then `correctors` Langevin steps there, each a call; none on the clean image.

        x <- alpha x0 + sigma (c eps + sqrt(1 - c^2) z),   c = exp(-rate h / correctors),   h = lambda' - lambda

    This is Langevin dynamics of the level's own distribution with step size (1 - c) sigma^2, exact where x0 is known.
    The time spent is proportional to the step in lambda = log(alpha / sigma), so that the method converges: with the
    fixed signal-to-noise ratio that is usual, the bias of the Langevin steps stays however many levels there are. Nor
    does it depend on the norm of the image's noise and score, as there, but on what that norm is on average.
    """

    correctors: int = 1
    rate: float = 0.5
    clip_after_guidance: bool = False
    name = "langevin-pc"

    def __post_init__(self) -> None:
        if self.correctors < 1 or not self.rate >= 0:
            raise ValueError(f"at least 1 corrector, a rate of 0 or more; got {self.correctors}, {self.rate}")

    def init(self, x: Tensor, path: NoisePath) -> None:
        return None

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: None, draw: Draw
    ) -> tuple[Tensor, None, Prediction]:
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
