"""Base classes of all kinds of guidance: the wrapped denoiser, a scale by level, and reuse between calls."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.guidance.gradients import normalised, through_denoiser
from undiffuse.guidance.schedules import Schedule
from undiffuse.noise_levels import Level, expand
from undiffuse.prediction import Guide, Prediction


class Guided:
    """Guides another denoiser.

    Args:
        denoiser: The denoiser to guide.
        scale: Strength. Its meaning, and the `neutral` value that has no effect, depend on the kind of guidance.
        schedule: Factor of the strength at each level (see `schedules`; any function of a level); None is full strength
            everywhere.
        every: Guidance is computed at every call (1) or only at every k-th call of a trajectory. The other calls reuse
            the last shift of the predicted noise at no cost. (On Gaussian mixtures, reusing the gradient or the shift
            of x0 has a larger error.) A solver that evaluates twice per step makes two calls.

    Raises:
        ValueError: `scale` is not finite, or `every` is not a positive integer.
    """

    neutral: ClassVar[float] = 0.0

    def __init__(self, denoiser: Denoiser, scale: float, schedule: Schedule | None, every: int) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"the guidance scale must be a finite number; got {scale}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer of at least 1; got {every!r}")
        self.denoiser = denoiser
        self.chain = denoiser.chain
        self.scale = float(scale)
        self.schedule = schedule
        self.cache = GuidanceCache(every)

    @property
    def conditions(self) -> frozenset[str]:
        """Returns the names of the conditions that this denoiser accepts."""
        return self.denoiser.conditions

    def weight(self, level: Level) -> Tensor:
        """Returns the effective scale at a level: float64 on the CPU, [B], or [1] if the batch shares it."""
        if self.schedule is None:
            return torch.tensor([self.scale], dtype=torch.float64)
        factor = torch.as_tensor(self.schedule(level), dtype=torch.float64, device="cpu").reshape(-1)
        return self.neutral + (self.scale - self.neutral) * factor

    def is_noop(self, weight: Tensor) -> bool:
        """Returns whether guidance has no effect at this level; if so, the next call does not reuse earlier results."""
        nothing = bool((weight == self.neutral).all())
        if nothing:
            self.cache.forget()
        return nothing


class GradientGuidance(Guided):
    """Guides by the gradient g of a log-probability, which subclasses define: the score moves by s g.

    Args:
        denoiser: The denoiser to guide.
        scale: s.
        at: Where the gradient is taken: "x_t", "mean" or "x0".
        names: Names of the conditions that the gradient depends on.
        normalize: Whether every image's gradient is scaled to one norm, see `normalised`.
        schedule: See `Guided`.
        every: See `Guided`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        at: str,
        names: tuple[str, ...],
        normalize: bool,
        schedule: Schedule | None,
        every: int,
    ) -> None:
        super().__init__(denoiser, scale, schedule, every)
        self.at = at
        self.names = names
        self.normalize = normalize

    @property
    def conditions(self) -> frozenset[str]:
        """Returns the names of the conditions that the denoiser or the gradient accepts."""
        return self.denoiser.conditions | set(self.names)

    def gradient(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        """Returns the gradient [B, C, H, W] with respect to x, images of noise level `level`."""
        raise NotImplementedError

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        """Predicts at x [B, C, H, W] and adds a guide; raises ValueError if a condition of the gradient is missing."""
        weight = self.weight(level)
        if self.is_noop(weight):
            return self.denoiser(x, level, cond)
        known_conditions = cond or {}
        missing = [name for name in self.names if name not in known_conditions]
        if missing:
            raise ValueError(f"guidance requires the condition {missing[0]!r}: pass cond={{{missing[0]!r}: ...}}")
        due = self.cache.should_compute(x, level, cond)
        kept = None if due else self.cache.kept
        known = None if kept is None else expand(1 / level.sigma, x) * kept
        if self.at == "x0" and known is None:
            clean = Level.clean()
            prediction, pulled = through_denoiser(
                self.denoiser, x, level, cond, lambda x0: self.gradient(x0, clean, known_conditions)
            )
            known = self._finish(pulled, level)
        else:
            prediction = self.denoiser(x, level, cond)

        def guide(point: Tensor, at_level: Level) -> Tensor:
            found = self._finish(self.gradient(point, at_level, known_conditions), level) if known is None else known
            return expand(weight, point) * found

        return replace(prediction, guides=(*prediction.guides, Guide(guide, at="mean" if self.at == "mean" else "x_t")))

    def _finish(self, gradient: Tensor, level: Level) -> Tensor:
        """Returns the gradient to apply, and stores its shift of the noise for later calls."""
        if self.normalize:
            gradient = normalised(gradient, level)
        if self.cache.every > 1:
            self.cache.kept = (expand(level.sigma, gradient) * gradient).detach()
        return gradient


class GuidanceCache:
    """Caches the last guidance update within one trajectory.

    A trajectory is a series of calls for a batch of one shape under one condition object, each call cleaner than the
    one before. Any other call starts a new trajectory, so samples do not depend on earlier ones.

    Args:
        every: Number of calls per computation.

    Attributes:
        kept: The last shift of the predicted noise [B, C, H, W]; None if there is none.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.forget()

    def forget(self) -> None:
        """Clears the cache, so that the next call computes guidance."""
        self.kept: Tensor | None = None
        self._calls = 0
        self._last: Any = None

    def should_compute(self, x: Tensor, level: Level, cond: Condition | None) -> bool:
        """Counts this call and returns whether it must compute guidance."""
        if self.every == 1:
            return True
        if not self._onward(x, level, cond):
            self.forget()
        self._last = (x.shape, level.logsnr, cond)
        self._calls += 1
        return self.kept is None or (self._calls - 1) % self.every == 0

    def _onward(self, x: Tensor, level: Level, cond: Condition | None) -> bool:
        if self._last is None:
            return False
        shape, logsnr, before = self._last
        comparable = shape == x.shape and before is cond and logsnr.shape == level.logsnr.shape
        return comparable and bool((level.logsnr > logsnr).all())
