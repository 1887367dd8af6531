"""Adaptive step sizes for the probability flow, from an error tolerance per image (Bogacki & Shampine 1989)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move, ratio
from undiffuse.solvers.multistep import is_finite_step

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_LEAST = 1e-3  # times sigma / alpha: shorter steps are always accepted, so that a rough network cannot stall


@dataclass(frozen=True, kw_only=True)
class Bosh3:
    """Applies Bogacki and Shampine's pair of orders 3 and 2 to d(x / alpha) = eps ds, s = sigma / alpha.

    A step is accepted if the difference of the pair, at the level where the step ends, is at most tol (1 + |x|) in root
    mean square over the pixels of the image. The next step size follows from this error. Every image has its own steps,
    independent of the rest of its batch. The network is called until the slowest image of the batch is done
    (`sampling.Step.nfe` counts): three calls per trial, and one at the start of each transition of the path, where all
    images meet.

    Args:
        tol: Error tolerance per step, absolute and relative, for pixels in [-1, 1]; above 0.
        clip_after_guidance: Clip the denoised image again after guidance.
    """

    tol: float = 0.02
    clip_after_guidance: bool = False
    name = "bosh3"

    def __post_init__(self) -> None:
        if not self.tol > 0:
            raise ValueError(f"tol must be above 0; got {self.tol}")

    def init(self, x: Tensor, path: NoisePath) -> None:
        """Returns no state."""
        return None

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: Tensor | None, draw: Draw
    ) -> tuple[Tensor, Tensor | None, Prediction]:
        """See `Solver.step`; the state is the next step size [B] of each image."""
        source, target = transition.source, transition.target
        prediction = denoise(x, source).guided_score(self.clip_after_guidance)
        if not is_finite_step(source, target):
            return ddim_move(prediction, target), state, prediction
        s = torch.full((len(x),), ratio(source), dtype=torch.float64)
        end = ratio(target)
        length = 0.5 * s if state is None else state
        x, slope = x / expand(source.alpha, x), prediction.eps
        while bool((s > end).any()):
            step = length.minimum(s - end)
            new, new_slope, error = self._trial(denoise, x, slope, s, step)
            moving = s > end
            accepted = moving & ((error <= 1) | (step <= _LEAST * s))
            wide = accepted.reshape(-1, *[1] * (x.ndim - 1)).to(x.device)
            x, slope = torch.where(wide, new, x), torch.where(wide, new_slope, slope)
            proposed = step * (_SAFETY * error.clamp(min=1e-12) ** (-1 / 3)).clamp(_SHRINK, _GROW)
            # A step truncated at the end gives no reason to shorten the next one.
            cut = accepted & (step < length)
            proposed = torch.where(cut, proposed.maximum(length), proposed).maximum(_LEAST * s)
            length = torch.where(moving, proposed, length)
            arrived = torch.where(step >= s - end, end, s - step)
            s = torch.where(accepted, arrived, s)
        return x * expand(target.alpha, x), length, prediction

    def _trial(
        self, denoise: Denoise, x: Tensor, first: Tensor, s: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x / alpha at s - step, the slope there, and the error [B] in units of the tolerance."""

        def slope(at: Tensor, s: Tensor) -> Tensor:
            level = Level.from_logsnr(-2 * s.log())
            return denoise(at * expand(level.alpha, at), level).guided_score(self.clip_after_guidance).eps

        h = expand(step, x)
        second = slope(x - h * (1 / 2) * first, s - step / 2)
        third = slope(x - h * (3 / 4) * second, s - 3 / 4 * step)
        new = x - h * (2 / 9 * first + 1 / 3 * second + 4 / 9 * third)
        fourth = slope(new, s - step)
        wrong = h * (-5 / 72 * first + 1 / 12 * second + 1 / 9 * third - 1 / 8 * fourth)
        alpha = expand(Level.from_logsnr(-2 * (s - step).log()).alpha, x)
        scaled = alpha * wrong / (self.tol * (1 + (alpha * x).abs().maximum((alpha * new).abs())))
        return new, fourth, scaled.double().flatten(1).square().mean(1).sqrt().cpu()
