"""Ancestral sampling: draws from the learned reverse step (DDPM, Algorithm 2; ADM, Algorithm 1 when guided)."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw


class DDPM:
    """Samples x_s = mean + Sigma g + Sigma^(1/2) z, z ~ N(0, I), without noise in the last step.

    The prediction gives mean and Sigma. g is the sum of its guides' gradients, taken at x_t or at the mean, as each
    guide specifies.
    """

    name = "ddpm"

    def init(self, x: Tensor, path: NoisePath) -> None:
        """Returns no state."""
        return None

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: None, draw: Draw
    ) -> tuple[Tensor, None, Prediction]:
        """See `Solver.step`."""
        prediction = denoise(x, transition.source)
        mean = prediction.mean(transition)
        unguided = mean
        for guide in prediction.guides:
            # The paper's derivation expands log p(y | x) around the mean, at the target level.
            at = (x, transition.source) if guide.at == "x_t" else (unguided, transition.target)
            mean = mean + prediction.step_variance(transition) * guide.gradient(*at)
        noisy = expand((~transition.last).to(torch.float64), x)
        std = (0.5 * prediction.log_variance(transition)).exp()
        return mean + noisy * std * draw(), None, prediction
