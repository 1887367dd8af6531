"""Autoguidance: a model guided by a bad version of itself (Karras et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.guidance.base import Guided
from undiffuse.guidance.combine import extrapolate, noise_shift, shifted_back
from undiffuse.guidance.schedules import Schedule
from undiffuse.noise_levels import Level
from undiffuse.prediction import Prediction


class Autoguidance(Guided):
    """D = D_ref + S (D - D_ref): away from where a weaker model, asked the same, errs more.

    `reference`  a smaller or less trained model of the same task; it gets the same conditions. It may have been trained
                 on another chain, for it is asked at noise levels. An unconditional model as reference of a conditional
                 one makes this classifier-free guidance with two networks
    `scale`      S: 1 is no guidance, 0 the reference alone
    `rescale`    phi from 0 to 1, see `combine.extrapolate`

    A call costs one of each network; where the scale is 1 the reference is not asked. `schedule` and `every` as in
    `Guided`; the learned variance is the main model's.
    """

    neutral = 1.0

    def __init__(
        self,
        denoiser: Denoiser,
        reference: Denoiser,
        scale: float = 2.0,
        *,
        rescale: float = 0.0,
        schedule: Schedule | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(denoiser, scale, schedule, every)
        self.reference = reference
        self.rescale = checked_rescale(rescale)

    @property
    def conditions(self) -> frozenset[str]:
        return self.denoiser.conditions | self.reference.conditions

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        weight = self.weight(level)
        main = self.denoiser(x, level, cond)
        if self.is_noop(weight):
            return main
        if self.cache.should_compute(x, level, cond) or self.cache.kept is None:
            reference = self.reference(x, level, cond)
            self.cache.kept = noise_shift(main, reference) if self.cache.every > 1 else None
        else:
            reference = shifted_back(main, self.cache.kept)
        return extrapolate(main, reference, weight, self.rescale)


def checked_rescale(rescale: float) -> float:
    """`rescale` if it is from 0 to 1, else ValueError."""
    if not 0 <= rescale <= 1:
        raise ValueError(f"the rescaling of guidance is from 0 (none) to 1; got {rescale}")
    return float(rescale)
