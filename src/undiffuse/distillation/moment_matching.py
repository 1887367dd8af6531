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

Samplers clip denoised images to [-1, 1], so images here are clipped too: the student's, the teacher's and, where it is
compared with the teacher, the auxiliary's. Otherwise a pixel that is always black would be compared with a mean that
clipping has raised, and would settle above black. The gradient of a clipped pixel acts only where it leads back into
the range.

Two parts of Yin et al. (2024b, "Improved Distribution Matching Distillation for Fast Image Synthesis") can be added.
The inputs of the student may be what its own earlier calls made instead of noisy data, which needs no data; and a
discriminator of noisy images may tell the z_s of the student from those of the data, see `adversarial_loss`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from undiffuse.distillation.base import (
    AUXILIARY,
    DISCRIMINATOR,
    TEACHER,
    Batch,
    Critic,
    Networks,
    Segments,
    mean_flat,
    replaced,
)
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
        clip: "static" clips denoised images as samplers do, "none" does not.
        inputs: What the student is called on: "data" for noisy images of the data, "own" for what its own earlier calls
            make of noise, as in sampling.
        every: The student is trained at every such update, the other networks at all (Yin et al. 2024b, "two
            time-scale update rule").
        wait: Updates at the beginning in which only the other networks are trained.
        adversarial: Weight of the adversarial loss, 0 for none.
        top: The noisiest levels at which moments are compared, as a share of the chain (Yin et al. 2024 have 0.98). A
            teacher that predicts noise errs at the noisiest levels.
    """

    preconditioning: Preconditioning
    calls: int
    anchor: float = 0.0
    clip: str = "static"
    inputs: str = "data"
    every: int = 1
    wait: int = 0
    adversarial: float = 0.0
    top: float = 1.0

    name: ClassVar[str] = "moment-matching"
    solver: ClassVar[str] = "ddpm"
    target_decay: ClassVar[float] = 0.0
    anywhere: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.calls <= self.preconditioning.chain.steps:
            raise ValueError(f"calls must be from 1 to {self.preconditioning.chain.steps}, got {self.calls}")
        if self.every < 1:
            raise ValueError(f"every must be 1 or more, got {self.every}")
        if not 0 < self.top <= 1:
            raise ValueError(f"top must be above 0 and at most 1, got {self.top}")
        segments = Segments(self.preconditioning, grid(self.preconditioning.chain, self.calls, "trailing"))
        object.__setattr__(self, "_segments", segments)

    @classmethod
    def of(cls, preconditioning: Preconditioning, calls: int, settings: Mapping[str, Any]) -> MomentMatching:
        """See `Method.of`."""
        names = ("anchor", "clip", "inputs", "every", "wait", "adversarial", "top")
        return cls(preconditioning, calls, **{name: settings[name] for name in names})

    @property
    def needs(self) -> frozenset[str]:
        """See `Method.needs`."""
        return frozenset({TEACHER, AUXILIARY, *([DISCRIMINATOR] if self.adversarial else [])})

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
        if self.inputs == "own":
            x = self._made_inputs(networks, batch, segments, n)
        else:
            x = diffuse(batch.x0, source, batch.draw("train"))
        trains = batch.update >= self.wait and batch.update % self.every == 0
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            raw = networks.student(x, source, batch.cond).x0
        made = self._clipped(raw.detach())
        z = posterior_sample(x, made, source, target, batch.draw("step"))
        found = networks.auxiliary(z, target, batch.cond).x0
        weight = expand((target.alpha / target.sigma).square().clamp(1.0, 100.0), found[:, 0, 0, 0])
        auxiliary = weight * mean_flat((found - made).square())
        wanted = None
        if trains or self.anchor:
            with torch.no_grad():
                wanted = networks.teacher(z, target, batch.cond).guided_score(clip_after_guidance=True).x0
        if self.anchor and wanted is not None:
            auxiliary = auxiliary + self.anchor * weight * mean_flat((found - wanted).square())
        none = torch.zeros_like(auxiliary)
        loss, terms = auxiliary, {"auxiliary": auxiliary.detach(), "gap": none}
        direction = none
        if trains:
            assert wanted is not None
            with torch.no_grad():
                gap = self._clipped(found) - wanted
                scale = mean_flat((made - wanted).abs()).clamp(min=_LEAST)
                direction = gap / expand(scale.double().cpu(), gap)
            # Of all updates, so that the mean over a record is that of the updates that train the student.
            terms["gap"] = self.every * mean_flat(gap.square())
        if self.adversarial:
            assert networks.discriminator is not None
            critic, towards = adversarial_loss(networks.discriminator, z, target, batch, slope=trains)
            loss = loss + critic
            terms["discriminator"], terms["pull"] = critic.detach(), none
            if trains:
                kept = (source.alpha * target.sigma / (target.alpha * source.sigma)).square()
                pull = expand(self.adversarial * made[0].numel() * target.alpha * (1 - kept), made) * towards
                terms["pull"] = self.every * mean_flat(pull.abs()) / mean_flat(direction.abs()).clamp(min=1e-6)
                direction = direction + pull
        if trains:
            # A step against the gradient must not lead further out of the range, where it changes nothing.
            away = (raw < made) & (direction > 0) | (raw > made) & (direction < 0)
            loss = loss + mean_flat(raw * direction.masked_fill(away, 0))
        return {"loss": loss, **terms}

    def _clipped(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1) if self.clip == "static" else x0

    def _target(self, segments: Segments, n: Tensor, share: Tensor) -> Level:
        """Levels s inside the segments, never the clean image itself, whose denoiser is the identity."""
        start, end = segments.positions[n], segments.positions[n + 1]
        most = (self.top * (segments.preconditioning.chain.steps - 1) - end) / (start - end)
        inside = segments.inside(n, share * most.clamp(0, 1))
        least = segments.preconditioning.level(torch.zeros(1, dtype=torch.int64))
        return replaced(inside, inside.sigma < least.sigma, least)

    @torch.no_grad()
    def _made_inputs(self, networks: Networks, batch: Batch, segments: Segments, n: Tensor) -> Tensor:
        """What the student's own calls make of noise, down to the starts of segments n."""
        x = expand(segments.start(torch.zeros_like(n)).sigma, batch.x0) * batch.draw("train")
        for call in range(int(n.max())):
            rows = torch.nonzero(n > call)[:, 0]
            here = torch.full_like(rows, call)
            source, target = segments.start(here), segments.end(here)
            z, _, cond = batch.rows(x, rows, source)
            made = self._clipped(networks.student(z, source, cond).x0)
            rows = rows.to(x.device)
            x[rows] = posterior_sample(z, made, source, target, batch.draw(f"call {call}")[rows])
        return x


def adversarial_loss(
    critic: Critic, made: Tensor, level: Level, batch: Batch, slope: bool = True
) -> tuple[Tensor, Tensor]:
    """Compares made with real images at the same noise levels (Xiao et al. 2022; Yin et al. 2024b, section 4.3).

        L_discriminator = softplus(D(z~)) + softplus(-D(z)),    L_student = softplus(-D(z~))

    Args:
        critic: The discriminator D.
        made: Noisy made images z~ [B, C, H, W].
        level: Their levels [B].
        batch: Has the real images, to which noise is added here.
        slope: Whether the student's gradient is needed.

    Returns:
        The discriminator's loss [B], and the gradient of the student's by `made` (zeros unless `slope`).
    """
    z = made.detach().requires_grad_(slope)
    score = critic(z, level, batch.cond)
    towards = torch.zeros_like(made)
    if slope:
        (towards,) = torch.autograd.grad(softplus(-score).sum(), z, retain_graph=True)
    real = diffuse(batch.x0, level, batch.draw("real"))
    return softplus(score) + softplus(-critic(real, level, batch.cond)), towards.detach()


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
