"""UniPC: a predictor and a corrector in the manner of DPM-Solver++ that share their calls (Zhao et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Array, Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, half_logsnr, shift
from undiffuse.solvers.multistep import Past, is_finite_step

VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True)
class Pending:
    """Holds a correction that is added when the next prediction is known: weight (x0_new - x0_old) + rest.

    Attributes:
        weight: Weight of the new point.
        rest: Change [B, C, H, W] of the other terms.
        old: The previous denoised image [B, C, H, W].
    """

    weight: float
    rest: Tensor | float
    old: Tensor


@dataclass(frozen=True)
class State:
    """Holds the history, the pending correction and the number of steps left.

    Attributes:
        past: Past denoised images.
        pending: The pending correction; None if there is none.
        left: Number of steps left, which limits the order.
    """

    past: Past
    pending: Pending | None
    left: int


@dataclass(frozen=True, kw_only=True)
class UniPC:
    """Applies UniPC of order p to the denoised image, with one call per step.

    With h the step in log(alpha / sigma), r_k = (lambda_{i-k} - lambda_i) / h, d_k = (D_{i-k} - D_i) / r_k, E = e^-h -
    1 and B = -h ("bh1") or E ("bh2"),

        predictor  x' / alpha' = e^-h x / alpha - E D_i - B sum_{k < p} rho_k d_k
        corrector  the same with one more term, k = p: r_p = 1, d_p = D(x') - D_i

    rho solves sum_k rho_k r_k^{n-1} = n! phi_{n+1} / B, phi_1 = E, phi_{n+1} = -phi_n / h - 1 / n!. The call at the
    predicted image corrects it and also serves the next step. The order grows from 1 at the start, and decreases
    towards the end of runs of fewer than 10 steps. For p = 2 the order of convergence is 3. For p = 3 it is 3 as well,
    because the first steps have fewer points, but the error is smaller.

    Args:
        order: p, 1 to 3.
        variant: B: "bh1" or "bh2".
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    order: int = 3
    variant: str = "bh2"
    clip_after_guidance: bool = False
    name = "unipc"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3) or self.variant not in VARIANTS:
            raise ValueError(
                f"order must be 1, 2 or 3 and variant bh1 or bh2; got order={self.order}, variant={self.variant!r}"
            )

    def init(self, x: Tensor, path: NoisePath) -> State:
        """Returns the initial state."""
        return State(Past(), None, path.steps if path.steps < 10 else path.steps + self.order)

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: State, draw: Draw
    ) -> tuple[Tensor, State, Prediction]:
        """See `Solver.step`."""
        source, target = transition.source, transition.target
        prediction = denoise(x, source).guided_score(self.clip_after_guidance)
        past = state.past.append(half_logsnr(source), prediction.x0, keep=self.order)
        end = ddim_move(prediction, target)
        if state.pending is not None:  # the prediction is at the predicted image; continue from the corrected one
            pending = state.pending
            correction = pending.weight * (prediction.x0 - pending.old) + pending.rest
            end = end + expand(target.sigma / source.sigma * source.alpha, x) * correction
        if not is_finite_step(source, target):
            return end, State(past, None, state.left - 1), prediction
        used = min(len(past.where), state.left)
        h = half_logsnr(target) - half_logsnr(source)
        ratios = [(where - past.where[0]) / h for where in past.where[1:used]]
        slopes = [(value - past.values[0]) / r for value, r in zip(past.values[1:used], ratios, strict=True)]
        B = -h if self.variant == "bh1" else math.expm1(-h)
        before, after = _weights(ratios, h, B), _weights([*ratios, 1.0], h, B)
        # In units of x / alpha, until the correction is applied.
        end = shift(end, target, -B, sum((w * d for w, d in zip(before, slopes, strict=True)), start=0 * x))
        rest = sum((-B * (b - a) * d for a, b, d in zip(before, after, slopes, strict=False)), start=0 * x)
        pending = Pending(-B * float(after[-1]), rest, prediction.x0)
        return end, State(past, pending, state.left - 1), prediction


def _weights(ratios: list[float], h: float, B: float) -> Array:
    """Returns rho for the points at `ratios`; for a single point, the limit of small steps, 1/2, as published."""
    if len(ratios) <= 1:
        return np.full(len(ratios), 0.5)
    phi, right, count = math.expm1(-h), [], len(ratios)
    for n in range(1, count + 1):
        phi = -phi / h - 1 / math.factorial(n)
        right.append(math.factorial(n) * phi / B)
    return np.linalg.solve(np.vander(ratios, count, increasing=True).T, np.array(right))
