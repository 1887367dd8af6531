"""DPM-Solver-2 in sigma, as in k-diffusion and OpenAI's consistency models (Lu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, ratio, shift


@dataclass(frozen=True, kw_only=True)
class DPM2:
    """Applies the midpoint method to the probability flow in s = sigma / alpha, with two calls per step.

        m = ((s^(1/3) + s'^(1/3)) / 2)^3,    x'/alpha' = x / alpha + (s' - s) eps(x_m, m),

    with x_m from an Euler step to m.

    Args:
        last: Step onto the clean image: "euler" returns the denoised image, "midpoint" calls the network again at s /
            8, as the original does.
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    last: str = "euler"
    clip_after_guidance: bool = False

    @property
    def name(self) -> str:
        """Returns the name in the registry."""
        return "dpm-2"

    def init(self, x: Tensor, path: NoisePath) -> None:
        """Returns no state."""

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: None, draw: Draw
    ) -> tuple[Tensor, None, Prediction]:
        """See `Solver.step`."""
        first = denoise(x, transition.source).guided_score(self.clip_after_guidance)
        s, end = ratio(transition.source), ratio(transition.target)
        if s == float("inf") or (end == 0 and self.last == "euler"):
            return ddim_move(first, transition.target), None, first
        middle = ((s ** (1 / 3) + end ** (1 / 3)) / 2) ** 3
        norm = (1 + middle**2) ** 0.5
        alpha = transition.source.alpha
        level = Level(alpha.new_full((1,), 1 / norm), alpha.new_full((1,), middle / norm))
        second = denoise(ddim_move(first, level), level).guided_score(self.clip_after_guidance)
        euler = ddim_move(first, transition.target)
        return shift(euler, transition.target, end - s, second.eps - first.eps), None, first
