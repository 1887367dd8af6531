"""What a solver is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from undiffuse.levels import Chain, Level, Transition
from undiffuse.prediction import Prediction

Denoise = Callable[[Tensor, Level], Prediction]
Draw = Callable[[], Tensor]


class Solver(Protocol):
    """One method of going down a chain of noise levels.

    `init(x, chain)` returns the state carried from step to step (None for one-step methods). `step` takes the image
    x [B, C, H, W] at `transition.source`, a denoiser bound to its conditions, the state, and `draw`, which returns
    fresh standard normal noise of x's shape; it returns the image at `transition.target`, the new state, and the
    prediction it used.
    """

    name: str

    def init(self, x: Tensor, chain: Chain) -> Any: ...

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Any, draw: Draw
    ) -> tuple[Tensor, Any, Prediction]: ...
