"""The solver protocol, and functions of noise levels that all solvers use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition, expand
from undiffuse.prediction import Prediction

Denoise = Callable[[Tensor, Level], Prediction]


class Draw(Protocol):
    """Draws standard normal noise with the shape of the images [B, C, H, W]."""

    def __call__(self, number: int = 0) -> Tensor:
        """Returns the noise; within a step, each `number` gives an independent draw."""


class Solver(Protocol):
    """Defines a method that follows a path of noise levels.

    All solvers use `denoise(...).guided_score(clip_after_guidance)`, so every guide works with every method. Only
    ancestral sampling, which has a mean and a variance, shifts the mean instead. In the step onto the clean image,
    every solver returns the denoised image of its last call.
    """

    name: str

    def init(self, x: Tensor, path: NoisePath) -> Any:
        """Returns the initial state, which `step` carries along; None for one-step methods."""

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Any, draw: Draw
    ) -> tuple[Tensor, Any, Prediction]:
        """Moves images along one transition.

        Args:
            denoise: Denoiser bound to its conditions.
            x: Images [B, C, H, W] at `transition.source`.
            transition: The step.
            state: State of the previous step.
            draw: Source of noise.

        Returns:
            The images at `transition.target`, the new state, and the prediction that was used.
        """


def ratio(level: Level) -> float:
    """Returns sigma / alpha, EDM's noise level, of a level that the batch shares; infinite for pure noise.

    In this variable the probability flow is d(x / alpha) = eps d(sigma / alpha).
    """
    alpha, sigma = _shared(level)
    return sigma / alpha if alpha > 0 else math.inf


def half_logsnr(level: Level) -> float:
    """Returns log(alpha / sigma), DPM-Solver's lambda, of a level that the batch shares; infinite at both ends.

    In this variable the probability flow is d(x / alpha) = (x0 - x / alpha) d lambda.
    """
    return -math.log(s) if (s := ratio(level)) > 0 else math.inf


def shift(x: Tensor, target: Level, weight: float, direction: Tensor) -> Tensor:
    """Returns x [B, C, H, W] at `target` plus `weight` times a direction in units of x / alpha."""
    return x + float(weight * _shared(target)[0]) * direction


def ddim_move(prediction: Prediction, target: Level) -> Tensor:
    """Moves a prediction to another level, cleaner or noisier: alpha' x0 + sigma' eps [B, C, H, W].

    This is the first-order step of the flow in any parameterisation; methods of higher order add corrections to it.
    """
    x = prediction.x
    return expand(target.alpha, x) * prediction.x0 + expand(target.sigma, x) * prediction.eps


def _shared(level: Level) -> tuple[float, float]:
    if level.alpha.numel() != 1:
        raise ValueError(f"this solver needs one noise level for the whole batch, got {len(level.alpha)} levels")
    return float(level.alpha), float(level.sigma)
