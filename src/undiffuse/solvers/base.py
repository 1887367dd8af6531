"""What a solver is, and the few numbers of a level that they all compute with."""

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
    """Fresh standard normal noise of an image's shape [B, C, H, W]; within a step one independent draw a number."""

    def __call__(self, number: int = 0) -> Tensor: ...


class Solver(Protocol):
    """One method of going down a path of noise levels.

    `init(x, path)` returns the state carried from step to step (None for one-step methods). `step` takes the image
    x [B, C, H, W] at `transition.source`, a denoiser bound to its conditions, the state, and `draw`; it returns the
    image at `transition.target`, the new state, and the prediction it used.

    All ask for `denoise(...).guided_score(clip_after_guidance)`, so that every guide works with every method; the
    ancestral step alone, which has a mean and a variance, moves the mean. In the step onto the clean image all return
    the denoised image of their last call.
    """

    name: str

    def init(self, x: Tensor, path: NoisePath) -> Any: ...

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Any, draw: Draw
    ) -> tuple[Tensor, Any, Prediction]: ...


def ratio(level: Level) -> float:
    """sigma / alpha, EDM's noise level, of a level that the batch shares; infinite for pure noise.

    In it the probability flow is d(x / alpha) = eps d(sigma / alpha).
    """
    alpha, sigma = _shared(level)
    return sigma / alpha if alpha > 0 else math.inf


def half_logsnr(level: Level) -> float:
    """log(alpha / sigma) of a level that the batch shares; infinite for pure noise and the clean image.

    DPM-Solver's lambda. In it the flow is d(x / alpha) = (x0 - x / alpha) d lambda.
    """
    return -math.log(s) if (s := ratio(level)) > 0 else math.inf


def shift(x: Tensor, target: Level, weight: float, direction: Tensor) -> Tensor:
    """x [B, C, H, W] at `target` plus `weight` of a direction measured in x / alpha."""
    return x + float(weight * _shared(target)[0]) * direction


def ddim_move(prediction: Prediction, target: Level) -> Tensor:
    """Carry a prediction to another level, cleaner or noisier: alpha' x0 + sigma' eps [B, C, H, W].

    The first-order step of the flow, whatever it is written in; methods of higher order add to it.
    """
    x = prediction.x
    return expand(target.alpha, x) * prediction.x0 + expand(target.sigma, x) * prediction.eps


def _shared(level: Level) -> tuple[float, float]:
    if level.alpha.numel() != 1:
        raise ValueError(
            f"this solver takes a level that the whole batch shares, not one for each of {len(level.alpha)}"
        )
    return float(level.alpha), float(level.sigma)
