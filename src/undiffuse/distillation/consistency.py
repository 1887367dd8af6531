"""Consistency distillation and training: neighbouring noise levels of one trajectory must give the same image.

A student f is compared at z_t with a target network at z_s, where s is the next cleaner level of a grid and z_s lies on
the same trajectory of the probability flow (Song et al. 2023):

    L = weight(t) d(f(z_t, t), f_target(z_s, s))

Distillation (eq. 7) takes z_s from one step of a teacher, training (eq. 10) from the straight line to the clean image.

With one segment the student maps every level to the clean image and is sampled by the solver "consistency". With
several segments (multistep consistency models, Heek et al. 2024) it maps a level to the end of its segment, by a DDIM
step with the denoised image that it predicts, and is sampled by `ddim` with one call for each segment. The target's
answer is then carried to the end of the segment and expressed as a denoised image at the student's level:

    z_end = DDIM(f_target(z_s), s -> end),    aim = the x0 whose DDIM step t -> end arrives at z_end
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.distillation.base import TARGET, TEACHER, Batch, Networks, Segments, ddim_x0, moved, replaced
from undiffuse.distillation.discretisation import Discretisation
from undiffuse.grids import FARTHEST, grid
from undiffuse.noise_levels import Level, diffuse, expand
from undiffuse.preconditioning import RHO, Preconditioning

__all__ = [
    "DISTANCES", "Consistency", "ConsistencyDistillation", "ConsistencyTraining", "consistency_loss", "heun_teacher",
    "karras_level", "pseudo_huber", "straight_teacher",
]  # fmt: skip

Teacher = Callable[[Tensor, Level, Level], Tensor]
"""(x at the source [B, C, H, W], source, target) -> x at the target on the same trajectory."""


def karras_level(index: Tensor, scales: int, low: float = 0.002, high: float = 80.0, rho: float = RHO) -> Level:
    """Returns levels of the grid of Karras et al. (2022, eq. 5).

    Args:
        index: Numbers on the grid [B], 0 for the noisiest level, `scales` - 1 for the cleanest.
        scales: Length of the grid, at least 2.
        low: sigma at its clean end.
        high: sigma at its noisy end.
        rho: Its exponent.
    """
    ends = high ** (1 / rho), low ** (1 / rho)
    sigma = (ends[0] + index.double() / (scales - 1) * (ends[1] - ends[0])) ** rho
    return Level(torch.ones_like(sigma), sigma)


def heun_teacher(teacher: Denoiser, cond: Condition | None = None, order: int = 2) -> Teacher:
    """Returns one step by a trained denoiser, without gradients (Song et al. 2023, eq. 6).

    Args:
        teacher: The denoiser; its guides act.
        cond: Its conditions.
        order: 2 for Heun's method, 1 for Euler's (DDIM).
    """

    def move(x: Tensor, source: Level, target: Level) -> Tensor:
        with torch.no_grad():
            first = teacher(x, source, cond).guided_score(clip_after_guidance=True)
            end = moved(first, source, target)
            clean = target.sigma == 0  # where there is no second slope
            if order == 1 or bool(clean.all()):
                return end
            shown = replaced(target, clean, source)
            second = teacher(end, shown, cond).guided_score(clip_after_guidance=True)
            # The flow is d(x / alpha) = eps d(sigma / alpha): half of the change of the slope times the step.
            step = torch.where(clean, 0.0, target.sigma - target.alpha / source.alpha * source.sigma)
            return end + expand(step / 2, x) * (second.eps - first.eps)

    return move


def straight_teacher(x0: Tensor) -> Teacher:
    """Returns a step towards given clean images [B, C, H, W]: an unbiased stand-in for a teacher (Song et al. 2023)."""

    def move(x: Tensor, source: Level, target: Level) -> Tensor:
        kept = target.sigma / source.sigma
        return expand(kept, x) * x + expand(target.alpha - kept * source.alpha, x) * x0

    return move


def pseudo_huber(difference: Tensor, scale: float = 0.00054) -> Tensor:
    """Returns sqrt(|d|^2 + c^2) - c for each image [B], c = `scale` sqrt(dimensions) (Song & Dhariwal 2024, eq. 8)."""
    flat = difference.flatten(1)
    c = scale * math.sqrt(flat.shape[1])
    return (flat.square().sum(1) + c**2).sqrt() - c


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda difference: difference.abs().flatten(1).mean(1),
    "l2": lambda difference: difference.square().flatten(1).mean(1),
    "pseudo-huber": pseudo_huber,
}
"""Distances of two images from their difference [B, C, H, W], one for each image [B]."""


def consistency_loss(
    student: Denoiser,
    target: Denoiser,
    teacher: Teacher,
    x0: Tensor,
    noise: Tensor,
    source: Level,
    next_level: Level,
    *,
    cond: Condition | None = None,
    distance: str = "l2",
    weight: Tensor | None = None,
    end: Level | None = None,
) -> Tensor:
    """Returns the consistency loss of each image.

    Args:
        student: The denoiser that is trained.
        target: The denoiser it is compared with, of which no gradient is taken; often an average of the student.
        teacher: Moves x along its trajectory, see `heun_teacher` and `straight_teacher`.
        x0: Clean images [B, C, H, W] in [-1, 1].
        noise: Standard normal noise of the same shape.
        source: Noise levels [B].
        next_level: The neighbouring cleaner levels [B].
        cond: Conditions of the denoisers.
        distance: "l1", "l2" (means over the image) or "pseudo-huber".
        weight: Weights [B] of the levels; None for 1.
        end: The levels [B] where the student's segments end; None for the clean image.

    Raises:
        ValueError: If the distance is unknown.
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; choose one of {', '.join(DISTANCES)}")
    x_t = diffuse(x0, source, noise)
    x_s = teacher(x_t, source, next_level)
    with torch.no_grad():
        if end is None:
            aim = target(x_s, next_level, cond).x0
        else:
            arrived = next_level.sigma / next_level.alpha <= end.sigma / end.alpha  # there the target has no say
            shown = replaced(next_level, arrived, source)
            there = moved(target(x_s, shown, cond), shown, end)
            rows = arrived.reshape(-1, *[1] * (x_s.ndim - 1)).to(x_s.device)
            aim = ddim_x0(x_t, torch.where(rows, x_s, there), source, end)
    loss = DISTANCES[distance](student(x_t, source, cond).x0 - aim)
    return loss if weight is None else weight.to(loss) * loss


@dataclass(frozen=True)
class Consistency:
    """What consistency distillation and training share.

    Attributes:
        preconditioning: The levels of the student's process.
        calls: Calls of the sampler.
        segments: 1, or `calls` for a multistep consistency model.
        levels: How many levels are compared, see `Discretisation`.
        distance: "l1", "l2" or "pseudo-huber".
        target_decay: Decay of the average of the student that it is compared with; 0 compares it with itself, without
            gradient, as Song & Dhariwal (2024) do.
    """

    preconditioning: Preconditioning
    calls: int
    segments: int = 1
    levels: Discretisation = field(default_factory=Discretisation)
    distance: str = "pseudo-huber"
    target_decay: float = 0.0

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"unknown distance {self.distance!r}; choose one of {', '.join(DISTANCES)}")
        if self.calls < 1 or self.segments not in (1, self.calls):
            raise ValueError(f"segments must be 1 or the number of calls ({self.calls}), got {self.segments}")

    @property
    def needs(self) -> frozenset[str]:
        """See `Method.needs`."""
        return frozenset({TARGET}) if self.target_decay else frozenset()

    @property
    def solver(self) -> str:
        """See `Method.solver`."""
        return "consistency" if self.segments == 1 else "ddim"

    @property
    def anywhere(self) -> bool:
        """See `Method.anywhere`."""
        return self.segments == 1

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest sigma / alpha of the levels of a single segment."""
        chain = self.preconditioning.chain
        ends = chain.level(torch.tensor([0, chain.steps - 1]))
        low, high = (ends.sigma / ends.alpha).tolist()
        return low, min(high, FARTHEST)

    @classmethod
    def of(cls, preconditioning: Preconditioning, calls: int, settings: Mapping[str, Any]) -> Consistency:
        """See `Method.of`."""
        levels = Discretisation(settings["curve"], settings["first"], settings["last"])
        return cls(
            preconditioning, calls, segments=settings["segments"] or calls, levels=levels,
            distance=settings["distance"], target_decay=settings["target_decay"],
        )  # fmt: skip

    def sampling_grid(self) -> str:
        """See `Method.sampling_grid`: the segments' starts, or levels of the training's grid, evenly in number."""
        if self.segments > 1:
            return "trailing"
        low, high = self.ends
        sigma = karras_level(torch.arange(self.calls), self.calls + 1, low, high).sigma
        return "at:" + ",".join(f"{-2 * math.log(value):.9g}" for value in sigma.tolist())

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """See `Method.losses`."""
        source, nearer, end, weight = self._levels(batch)
        loss = consistency_loss(
            networks.student, networks.target or networks.student, self._teacher(networks, batch), batch.x0,
            batch.draw("train"), source, nearer, cond=batch.cond, distance=self.distance, end=end,
        )  # fmt: skip
        return {"loss": weight.to(loss) * loss, "distance": loss.detach()}

    def _levels(self, batch: Batch) -> tuple[Level, Level, Level, Tensor]:
        """Source, its cleaner neighbour, the end of the segment, and the weight [B] of the pair."""
        count = self.levels.count(batch.progress)
        if self.segments == 1:
            low, high = self.ends
            sigmas = karras_level(torch.arange(count - 1, -1, -1), count, low, high).sigma
            i = self.levels.pairs(sigmas, batch.u)
            upper, lower = sigmas[i + 1], sigmas[i]
            clean = Level(torch.ones_like(upper), torch.zeros_like(upper))
            return Level.from_ratio(upper), Level.from_ratio(lower), clean, self.levels.weight(upper, lower)
        segments = Segments(self.preconditioning, grid(self.preconditioning.chain, self.segments, "trailing"))
        n, share = segments.choose(batch.u)
        steps = max(1, round((count - 1) / self.segments))
        upper = (share * steps).floor().clamp(0, steps - 1) + 1
        source, end = segments.inside(n, upper / steps), segments.end(n)
        nearer = replaced(segments.inside(n, (upper - 1) / steps), upper == 1, end)
        return source, nearer, end, (source.alpha / source.sigma).clamp(1.0, 10.0)

    def _teacher(self, networks: Networks, batch: Batch) -> Teacher:
        raise NotImplementedError


@dataclass(frozen=True)
class ConsistencyDistillation(Consistency):
    """The neighbour is one step of the teacher away (Song et al. 2023, eq. 7): Heun's in one segment, else DDIM's."""

    name: ClassVar[str] = "consistency-distillation"

    @property
    def needs(self) -> frozenset[str]:
        """See `Method.needs`."""
        return super().needs | {TEACHER}

    def _teacher(self, networks: Networks, batch: Batch) -> Teacher:
        assert networks.teacher is not None
        return heun_teacher(networks.teacher, batch.cond, order=2 if self.segments == 1 else 1)


@dataclass(frozen=True)
class ConsistencyTraining(Consistency):
    """The neighbour has the same image and the same noise: no teacher is needed (Song et al. 2023, eq. 10)."""

    name: ClassVar[str] = "consistency-training"

    def _teacher(self, networks: Networks, batch: Batch) -> Teacher:
        return straight_teacher(batch.x0)
