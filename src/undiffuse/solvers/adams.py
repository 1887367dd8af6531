"""Adams-Bashforth methods of the noise: DEIS in sigma / alpha, and the same in log-SNR."""

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
    """x' / alpha' = x / alpha + integral from s to s' of a polynomial, s = sigma / alpha.

    It is the polynomial through the noises of the last `order` levels.

    `variable`  what it is a polynomial of: "ratio", s itself (DEIS in the form rho-AB, Zhang & Chen 2023; "linear
                multistep" elsewhere), or "logsnr", log(alpha / sigma). Integrals are exact on uneven grids.

    For third order the first step has a second call (`multistep.midpoint_step`). The step onto the clean image is of
    first order.
    """

    order: int = 3
    variable: str = "ratio"
    clip_after_guidance: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3) or self.variable not in VARIABLES:
            raise ValueError(
                f"the order is 1, 2 or 3, of {' or '.join(VARIABLES)}; got {self.order}, {self.variable!r}"
            )

    @property
    def name(self) -> str:
        return "deis" if self.variable == "ratio" else "ab3"

    def init(self, x: Tensor, path: NoisePath) -> Past:
        return Past()

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Past, draw: Draw
    ) -> tuple[Tensor, Past, Prediction]:
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
