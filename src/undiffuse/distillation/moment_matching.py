"""Multistep moment matching: samples of few steps that have, at every noise level, the teacher's moments (Salimans et
al. 2024).

The student makes a clean image x~ = x^(z_t) from a noisy one and is sampled by ancestral steps: z_s is drawn from
q(z_s | z_t, x~). An auxiliary denoiser g learns E[x~ | z_s] of the student's images; the student is moved until it
agrees with the teacher's E[x | z_s] (eq. 9):

    L_student = w(s) x~ . sg[g(z_s) - teacher(z_s)],    L_auxiliary = w'(s) |x~ - g(z_s)|^2

Both are computed from the same images, and both networks are updated at once, where the paper updates them in turns.
w(s) is 1 over the mean of |x~ - teacher(z_s)| of each image (Yin et al. 2024, "One-step Diffusion with Distribution
Matching Distillation", eq. 8), w'(s) is the SNR, from 1 to 100. Where the two denoisers agree at one level, the
distributions of z_s do. The student is therefore not bound to the teacher's ODE and its errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.distillation.base import AUXILIARY, TEACHER, Batch, Networks, Segments, mean_flat, replaced
from undiffuse.grids import grid
from undiffuse.noise_levels import Level, diffuse, expand
from undiffuse.preconditioning import Preconditioning

__all__ = ["MomentMatching"]

_LEAST = 1e-3  # mean difference of pixels below which the student's gradient is no longer enlarged


@dataclass(frozen=True)
class MomentMatching:
    """Trains a student of `calls` ancestral steps.

    Attributes:
        preconditioning: The levels of the student's process.
        calls: Steps of the student.
        anchor: Weight of the difference between the auxiliary's and the teacher's prediction in the auxiliary's loss,
            which keeps it near the teacher (the paper's eq. 10 has 1).
    """

    preconditioning: Preconditioning
    calls: int
    anchor: float = 0.0

    name: ClassVar[str] = "moment-matching"
    needs: ClassVar[frozenset[str]] = frozenset({TEACHER, AUXILIARY})
    solver: ClassVar[str] = "ddpm"
    target_decay: ClassVar[float] = 0.0
    anywhere: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.calls <= self.preconditioning.chain.steps:
            raise ValueError(f"calls must be from 1 to {self.preconditioning.chain.steps}, got {self.calls}")
        segments = Segments(self.preconditioning, grid(self.preconditioning.chain, self.calls, "trailing"))
        object.__setattr__(self, "_segments", segments)

    @classmethod
    def of(cls, preconditioning: Preconditioning, calls: int, settings: Mapping[str, Any]) -> MomentMatching:
        """See `Method.of`."""
        return cls(preconditioning, calls, anchor=settings["anchor"])

    def sampling_grid(self) -> str:
        """See `Method.sampling_grid`."""
        return "trailing"

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """See `Method.losses`."""
        assert networks.teacher is not None and networks.auxiliary is not None
        segments: Segments = self._segments  # type: ignore[attr-defined]
        n, share = segments.choose(batch.u)
        source = segments.start(n)
        target = self._target(segments, n, share)
        x = diffuse(batch.x0, source, batch.draw("train"))
        made = networks.student(x, source, batch.cond).x0
        with torch.no_grad():
            z = posterior_sample(x, made, source, target, batch.draw("step"))
            wanted = networks.teacher(z, target, batch.cond).guided_score(clip_after_guidance=True).x0
        found = networks.auxiliary(z, target, batch.cond).x0
        with torch.no_grad():
            gap = found - wanted
            scale = mean_flat((made - wanted).abs()).clamp(min=_LEAST)
            direction = gap / expand(scale.double().cpu(), gap)
        student = mean_flat(made * direction)
        weight = expand((target.alpha / target.sigma).square().clamp(1.0, 100.0), found[:, 0, 0, 0])
        auxiliary = weight * mean_flat((found - made.detach()).square())
        if self.anchor:
            auxiliary = auxiliary + self.anchor * weight * mean_flat((found - wanted).square())
        gap_size = mean_flat(gap.square())
        return {"loss": student + auxiliary, "auxiliary": auxiliary.detach(), "gap": gap_size}

    def _target(self, segments: Segments, n: Tensor, share: Tensor) -> Level:
        """Levels s inside the segments, never the clean image itself, whose denoiser is the identity."""
        inside = segments.inside(n, share)
        least = segments.preconditioning.level(torch.zeros(1, dtype=torch.int64))
        return replaced(inside, inside.sigma < least.sigma, least)


def posterior_sample(x: Tensor, x0: Tensor, source: Level, target: Level, noise: Tensor) -> Tensor:
    """Draws from q(z_s | z_t, x0) (DDPM eq. 6-7 for any two levels).

        z_s = (alpha_t|s sigma_s^2 / sigma_t^2) z_t + (alpha_s (1 - kept)) x0 + sigma_s sqrt(1 - kept) eps,
        kept = SNR_t / SNR_s,  alpha_t|s = alpha_t / alpha_s

    Args:
        x: Noisy images z_t [B, C, H, W].
        x0: Clean images [B, C, H, W].
        source: Levels t [B].
        target: Levels s [B], not noisier.
        noise: Standard normal noise [B, C, H, W].
    """
    kept = (source.alpha * target.sigma / (target.alpha * source.sigma)).square()
    of_x = source.alpha / target.alpha * (target.sigma / source.sigma).square()
    of_x0, of_noise = target.alpha * (1 - kept), target.sigma * (1 - kept).clamp(min=0).sqrt()
    return expand(of_x, x) * x + expand(of_x0, x) * x0 + expand(of_noise, x) * noise
