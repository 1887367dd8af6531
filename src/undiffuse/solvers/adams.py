"""Adams-Bashforth methods for the noise: DEIS in sigma / alpha, and the same in log-SNR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Transition
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, half_logsnr, ratio, shift
from undiffuse.solvers.multistep import Past, combined, is_finite_step, lagrange_integrals, midpoint_step

VARIABLES = ("ratio", "logsnr")


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth:
    """Integrates a polynomial through the noises of the last `order` levels.

        x' / alpha' = x / alpha + integral from s to s' of the polynomial,  s = sigma / alpha

    Integrals are exact on uneven grids. With order 3, the first step makes a second call (`multistep.midpoint_step`).
    The step onto the clean image is of first order.

    Args:
        order: Number of points of the polynomial: 1, 2 or 3.
        variable: Variable of the polynomial: "ratio" is s (DEIS in the form rho-AB, Zhang & Chen 2023, elsewhere called
            linear multistep), "logsnr" is log(alpha / sigma).
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    order: int = 3
    variable: str = "ratio"
    clip_after_guidance: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3) or self.variable not in VARIABLES:
            raise ValueError(
                f"order must be 1, 2 or 3 and variable one of {', '.join(VARIABLES)}; got order={self.order}, "
                f"variable={self.variable!r}"
            )

    @property
    def name(self) -> str:
        """Returns the name in the registry."""
        return "deis" if self.variable == "ratio" else "ab3"

    def init(self, x: Tensor, path: NoisePath) -> Past:
        """Returns an empty history."""
        return Past()

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Past, draw: Draw
    ) -> tuple[Tensor, Past, Prediction]:
        """See `Solver.step`; the state is the history of noises."""
        source, target = transition.source, transition.target
        prediction = denoise(x, source).guided_score(self.clip_after_guidance)
        where = ratio if self.variable == "ratio" else half_logsnr
        past = state.append(where(source), prediction.eps, keep=self.order)
        if not is_finite_step(source, target):
            return ddim_move(prediction, target), past, prediction
        if self.order == 3 and len(past.where) == 1:
            return midpoint_step(denoise, prediction, source, target, self.clip_after_guidance)[0], past, prediction
        # ds is -e^-lambda d lambda
        density = np.ones_like if self.variable == "ratio" else lambda at: -np.exp(-at)
        weights = lagrange_integrals(past.where, where(source), where(target), density)
        return shift(ddim_move(prediction, target), target, 1.0, combined(past, weights)), past, prediction
