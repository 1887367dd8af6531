"""Classifier-free guidance: contrasts a model with and without its condition (Ho & Salimans 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.guidance.autoguidance import checked_rescale
from undiffuse.guidance.base import Guided
from undiffuse.guidance.combine import extrapolate, noise_shift, shifted_back
from undiffuse.guidance.prediction_batch import doubled, halves
from undiffuse.guidance.schedules import Schedule
from undiffuse.noise_levels import Level
from undiffuse.prediction import Prediction


class ClassifierFree(Guided):
    """Extrapolates from the unconditional prediction: eps = eps_u + S (eps_c - eps_u).

    A call costs two calls of the network; one where the effective scale is 1 or 0, or where the last shift is reused
    (`every`). The learned variance is that of the conditional pass; with S = 0 the whole prediction is unconditional.
    To add a classifier, which does not know the null class, nest it outside: ClassifierGuidance(ClassifierFree(...)).

    Args:
        denoiser: The conditional model.
        scale: S: 1 is no guidance, 0 the unconditional model; w = S - 1 in the paper's convention.
        null: Values for "no condition", by name of the condition: the index of the null class ({"y": 10}), NaN for
            conditions of which that means "not given" (these may be missing), or a tensor that broadcasts to the
            condition.
        rescale: phi from 0 to 1, see `combine.extrapolate`.
        together: Compute both passes in one batch of twice the size; False computes them one after the other, in half
            the memory.
        schedule: See `Guided`.
        every: See `Guided`.

    Raises:
        ValueError: `null` is empty or names conditions that the model does not accept.
    """

    neutral = 1.0

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        null: Mapping[str, int | float | Tensor],
        *,
        rescale: float = 0.0,
        together: bool = True,
        schedule: Schedule | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(denoiser, scale, schedule, every)
        unknown = sorted(set(null) - denoiser.conditions)
        if unknown or not null:
            known = ", ".join(sorted(denoiser.conditions)) or "no conditions"
            raise ValueError(
                f"null must name conditions that the model accepts ({known}); got {', '.join(unknown) or 'none'}"
            )
        self.null = dict(null)
        self.rescale = checked_rescale(rescale)
        self.together = together

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        """Predicts at x [B, C, H, W]; raises ValueError if a condition is missing."""
        given = dict(cond or {})
        missing = sorted(name for name in set(self.null) - set(given) if not _is_nan(self.null[name]))
        if missing:
            raise ValueError(
                f"classifier-free guidance requires the condition {missing[0]!r}: pass cond={{{missing[0]!r}: ...}}"
            )
        weight = self.weight(level)
        if self.is_noop(weight):
            return self.denoiser(x, level, cond)
        without = {**given, **{name: _filled(given[name], v) for name, v in self.null.items() if name in given}}
        if bool((weight == 0).all()):
            return self.denoiser(x, level, without)
        if not self.cache.should_compute(x, level, cond) and self.cache.kept is not None:
            main = self.denoiser(x, level, cond)
            return extrapolate(main, shifted_back(main, self.cache.kept), weight, self.rescale)
        if self.together:
            main, reference = jointly(self.denoiser, x, level, given, without)
        else:
            main, reference = self.denoiser(x, level, given), self.denoiser(x, level, without)
        self.cache.kept = noise_shift(main, reference) if self.cache.every > 1 else None
        return extrapolate(main, reference, weight, self.rescale)


def jointly(
    denoiser: Denoiser, x: Tensor, level: Level, first: Condition, second: Condition
) -> tuple[Prediction, Prediction]:
    """Returns the predictions at x [B, C, H, W] under two conditions, from one call with a batch of 2 B."""
    cond = {name: torch.cat([first[name], second[name]]) for name in first}
    return halves(denoiser(torch.cat([x, x]), doubled(level), cond))


def _is_nan(value: int | float | Tensor) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _filled(given: Tensor, null: int | float | Tensor) -> Tensor:
    return torch.as_tensor(null).to(given).expand_as(given)
