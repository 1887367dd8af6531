"""Diffusion posterior sampling (Chung et al. 2023): after every step, one down the distance to what was observed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from undiffuse.editing.jacobian import informative, with_pull
from undiffuse.editing.observation import residual_of
from undiffuse.editing.operators import Operator
from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition
from undiffuse.prediction import Prediction
from undiffuse.solvers import Denoise, Draw, Solver


class DPS:
    """Around another solver, made for one batch: x_s = step(x_t) - z grad_{x_t} || y - A x0(x_t) ||_2 / |A|.

    `observed`  y [B, C, h, w], `operator` A
    `zeta`      z, the length of a step (of the distance's gradient, so that it does not grow with the distance). With
                |A|, the largest singular value, it means the same for any operator: the published distance is without

    Where the distance is below z, the step is shortened in proportion, so that it does not jump from one side to the
    other at the end, as the published one does; that shows on small images only. It is a way to make the observation
    probable, not to sample the posterior: how far it goes depends on z times the number of steps, and the spread of the
    results is too small. A step costs one backward pass. Solvers that remember earlier predictions do not see the
    shift, so use ancestral or DDIM sampling.
    """

    def __init__(self, solver: Solver, operator: Operator, observed: Tensor, zeta: float = 1.0) -> None:
        if not 0 < zeta < math.inf:
            raise ValueError(f"the step of DPS is a number above 0; got {zeta}")
        self.solver, self.operator, self.observed, self.zeta = solver, operator, observed, float(zeta)
        self.name = f"dps-{solver.name}"

    def init(self, x: Tensor, path: NoisePath) -> Any:
        return self.solver.init(x, path)

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Any, draw: Draw
    ) -> tuple[Tensor, Any, Prediction]:
        source = transition.source
        if not bool(informative(source).all()):
            return self.solver.step(denoise, x, transition, state, draw)
        first, pull = with_pull(denoise, x, source, keep=False)

        def answered(at: Tensor, level: Level) -> Prediction:
            return first if at is x and level is source else denoise(at, level)

        after, state, prediction = self.solver.step(answered, x, transition, state, draw)
        norm = self.operator.norm
        residual = residual_of(self.operator, self.observed, first.x0) / norm
        distance = torch.linalg.vector_norm(residual.flatten(1), dim=1).reshape(-1, *[1] * (x.ndim - 1))
        shift = pull(self.operator.adjoint(residual / distance.clamp(min=self.zeta)) / norm)
        return after + self.zeta * shift, state, prediction
