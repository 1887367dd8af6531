"""Editing by projection: every denoised image is moved to the nearest one that agrees with what was observed."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.editing.observation import residual_of
from undiffuse.editing.operators import Operator
from undiffuse.noise_levels import Level
from undiffuse.prediction import Prediction

__all__ = ["ProjectedDenoiser"]


class ProjectedDenoiser:
    """A denoiser whose images agree with an observation y = A x.

        x0 <- x0 + A^+ (y - A x0),    A^+ = A^T (A A^T)^+ the pseudo-inverse

    With the solver "consistency" and a consistency model this is zero-shot editing by iterated projection (Song et al.
    2023, algorithm 4): what A determines is replaced in every image, the rest is the model's. With other solvers and
    models it is DDNM (Wang et al. 2023). No gradient is taken, so a step costs one network call.

    Guides act before the projection.

    Args:
        denoiser: The denoiser, guided or not.
        operator: A.
        observed: y, [B, C, h, w].
    """

    def __init__(self, denoiser: Denoiser, operator: Operator, observed: Tensor) -> None:
        self.denoiser, self.operator, self.observed = denoiser, operator, observed
        self.chain = denoiser.chain

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions of the denoiser."""
        return self.denoiser.conditions

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        """Returns the prediction whose denoised image is projected."""
        prediction = self.denoiser(x, level, cond).guided_score(clip_after_guidance=True)
        residual = residual_of(self.operator, self.observed, prediction.x0)
        exact = self.operator.solve(residual, torch.ones(1, dtype=torch.float64), 0.0)
        return prediction.with_x0(prediction.x0 + self.operator.adjoint(exact))
