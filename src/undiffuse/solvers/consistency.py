"""Multistep sampling of consistency models: denoises, adds noise, denoises again (Song et al. 2023, algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ratio


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Jumps to the clean image at every level, then adds noise up to the next level.

        x0 = f(x, s),    x' / alpha' = x0 + sqrt(s'^2 - s_min^2) z

    One step is one network call. For a model that was not trained for consistency, x0 is the mean of all images that x
    may have come from, so the samples are blurred.

    Args:
        s_min: sigma / alpha at which the model returns its input (Song et al. 2023: 0.002).
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    s_min: float = 0.002
    clip_after_guidance: bool = False

    @property
    def name(self) -> str:
        """Returns the name in the registry."""
        return "consistency"

    def init(self, x: Tensor, path: NoisePath) -> None:
        """Returns no state."""

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: None, draw: Draw
    ) -> tuple[Tensor, None, Prediction]:
        """See `Solver.step`."""
        prediction = denoise(x, transition.source).guided_score(self.clip_after_guidance)
        s = ratio(transition.target)
        if s == 0:
            return prediction.x0, None, prediction
        std = math.sqrt(max(s**2 - self.s_min**2, 0.0))
        return expand(transition.target.alpha, x) * (prediction.x0 + std * draw()), None, prediction
