"""Autoguidance: guides a model with a weaker version of itself (Karras et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.guidance.base import Guided
from undiffuse.guidance.combine import extrapolate, noise_shift, shifted_back
from undiffuse.guidance.schedules import Schedule
from undiffuse.noise_levels import Level
from undiffuse.prediction import Prediction


class Autoguidance(Guided):
    """Extrapolates from a weaker model: D = D_ref + S (D - D_ref) points away from where the weaker model errs more.

    A call costs one call of each network, except that the reference is not called where the scale is 1. The learned
    variance is the main model's.

    Args:
        denoiser: The main model.
        reference: A smaller or less trained model of the same task, which gets the same conditions. It may have been
            trained on another chain, because it is called at noise levels. With an unconditional reference of a
            conditional model, this is classifier-free guidance with two networks.
        scale: S: 1 is no guidance, 0 the reference alone.
        rescale: phi from 0 to 1, see `combine.extrapolate`.
        schedule: See `Guided`.
        every: See `Guided`.
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
        """Returns the names of the conditions that either model accepts."""
        return self.denoiser.conditions | self.reference.conditions

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        """Predicts at x [B, C, H, W]; see `Denoiser`."""
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
    """Returns `rescale`; raises ValueError unless it is from 0 to 1."""
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must be from 0 (off) to 1 (full); got {rescale}")
    return float(rescale)
