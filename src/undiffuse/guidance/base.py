"""What all kinds of guidance share: the denoiser they wrap, a scale by level, and evaluating only now and then."""

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
    """A denoiser that guides another one.

    `scale`     strength; what it means and which value is `neutral` (does nothing) is up to the kind of guidance
    `schedule`  how much of it acts at a level (see `schedules`; any function of a level), None: all of it everywhere
    `every`     1: computed at every call. k: at every k-th call of a trajectory; at the others the last shift of the
                predicted noise is used again, at no cost. (On Gaussian mixtures that errs less than using the gradient
                or the shift of x0 again.) A solver that asks twice a step makes two calls
    """

    neutral: ClassVar[float] = 0.0

    def __init__(self, denoiser: Denoiser, scale: float, schedule: Schedule | None, every: int) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"the scale of guidance must be a finite number; got {scale}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"guidance is computed every 1st, 2nd, ... call: every must be at least 1; got {every!r}")
        self.denoiser = denoiser
        self.chain = denoiser.chain
        self.scale = float(scale)
        self.schedule = schedule
        self.cache = GuidanceCache(every)

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions it can use."""
        return self.denoiser.conditions

    def weight(self, level: Level) -> Tensor:
        """The scale in force at a level: float64 on the CPU, [B], or [1] where the batch shares it."""
        if self.schedule is None:
            return torch.tensor([self.scale], dtype=torch.float64)
        factor = torch.as_tensor(self.schedule(level), dtype=torch.float64, device="cpu").reshape(-1)
        return self.neutral + (self.scale - self.neutral) * factor

    def is_noop(self, weight: Tensor) -> bool:
        """Whether nothing is to be done at this level; a later call then computes anew."""
        nothing = bool((weight == self.neutral).all())
        if nothing:
            self.cache.forget()
        return nothing


class GradientGuidance(Guided):
    """Guidance by a gradient g of some log-probability, of a kind that subclasses give: the score moves by s g.

    `at`         "x_t", "mean", or "x0", where the gradient is taken
    `normalize`  brings every image's gradient to one size, see `normalised`
    `names`      of the conditions that the gradient depends on
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
        return self.denoiser.conditions | set(self.names)

    def gradient(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        """The gradient [B, C, H, W] with respect to x, an image of noise level `level`."""
        raise NotImplementedError

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        weight = self.weight(level)
        if self.is_noop(weight):
            return self.denoiser(x, level, cond)
        told = cond or {}
        missing = [name for name in self.names if name not in told]
        if missing:
            raise ValueError(f"guidance needs to know where to: give cond={{{missing[0]!r}: ...}}")
        due = self.cache.should_compute(x, level, cond)
        kept = None if due else self.cache.kept
        known = None if kept is None else expand(1 / level.sigma, x) * kept
        if self.at == "x0" and known is None:
            clean = Level.clean()
            prediction, pulled = through_denoiser(
                self.denoiser, x, level, cond, lambda x0: self.gradient(x0, clean, told)
            )
            known = self._finish(pulled, level)
        else:
            prediction = self.denoiser(x, level, cond)

        def guide(point: Tensor, at_level: Level) -> Tensor:
            found = self._finish(self.gradient(point, at_level, told), level) if known is None else known
            return expand(weight, point) * found

        return replace(prediction, guides=(*prediction.guides, Guide(guide, at="mean" if self.at == "mean" else "x_t")))

    def _finish(self, gradient: Tensor, level: Level) -> Tensor:
        """The gradient as it is used; its shift of the noise is kept for the calls that follow."""
        if self.normalize:
            gradient = normalised(gradient, level)
        if self.cache.every > 1:
            self.cache.kept = (expand(level.sigma, gradient) * gradient).detach()
        return gradient


class GuidanceCache:
    """When to compute anew, and what was computed last, of one trajectory at a time.

    `kept` is that, [B, C, H, W] in terms of the noise; None if there is nothing yet. A trajectory is a run of calls for
    a batch of one shape and under one condition object, each cleaner than the one before; anything else begins a new
    one, which computes anew. So samples do not depend on what was sampled before.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.forget()

    def forget(self) -> None:
        """Compute anew at the next call."""
        self.kept: Tensor | None = None
        self._calls = 0
        self._last: Any = None

    def should_compute(self, x: Tensor, level: Level, cond: Condition | None) -> bool:
        """Whether to compute anew at this call, which is counted."""
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
