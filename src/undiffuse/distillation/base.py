"""What the methods of distillation share: their interface, their inputs, and the levels of a student's calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Level, expand
from undiffuse.preconditioning import Preconditioning
from undiffuse.prediction import Prediction

__all__ = [
    "Batch", "Critic", "Method", "Networks", "Segments", "ddim_x0", "mean_flat", "moved", "replaced",
    "truncated_snr",
]  # fmt: skip

TEACHER, TARGET, AUXILIARY, DISCRIMINATOR = "teacher", "target", "auxiliary", "discriminator"
"""Networks that a method may need besides the student: the model that is distilled, an average of the student that the
student is compared with, a second denoiser that is trained together with the student, and a network that is trained to
tell the student's images from the data."""

Critic = Callable[[Tensor, Level, "Condition | None"], Tensor]
"""(noisy images [B, C, H, W], levels [B], conditions) -> scores [B], high where an image looks real."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The denoisers of a training step; None where the method does not need one.

    Attributes:
        student: The denoiser that is trained.
        teacher: The denoiser that is distilled, with its guidance. It is never trained.
        target: An average of the student.
        auxiliary: A second denoiser that is trained.
        discriminator: Tells real from made images; it is trained.
    """

    student: Denoiser
    teacher: Denoiser | None = None
    target: Denoiser | None = None
    auxiliary: Denoiser | None = None
    discriminator: Critic | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One training batch.

    Attributes:
        x0: Clean images [B, C, H, W] in [-1, 1].
        u: Numbers in (0, 1) [B], float64 on the CPU, that choose the noise levels.
        progress: How much of the training is done, from 0 to 1.
        update: Number of the update, from 0.
        draw: Returns standard normal noise of x0's shape; each purpose gives an independent draw.
        cond: Conditions of the denoisers by name.
    """

    x0: Tensor
    u: Tensor
    progress: float
    draw: Callable[[str], Tensor]
    cond: Condition | None = None
    update: int = 0

    def rows(self, x: Tensor, rows: Tensor, level: Level) -> tuple[Tensor, Level, Condition | None]:
        """Returns what a denoiser takes for some rows [b] of images `x` at levels [b] of these rows."""
        rows = rows.to(x.device)
        cond = None if self.cond is None else {name: value[rows] for name, value in self.cond.items()}
        return x[rows], level, cond


class Method(Protocol):
    """A method of distillation. One instance belongs to one student: it knows the levels of its calls.

    Attributes:
        name: Name in the registry.
        needs: Networks that it needs besides the student.
        solver: Sampler of its students.
        target_decay: Decay of the average "target" per update; 0 follows the student at once.
        anywhere: Whether students may be called at any level; otherwise only at those of `sampling_grid`.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def solver(self) -> str: ...

    @property
    def target_decay(self) -> float: ...

    @property
    def anywhere(self) -> bool: ...

    @classmethod
    def of(cls, preconditioning: Preconditioning, calls: int, settings: Mapping[str, Any]) -> Method:
        """Makes the method from its settings in the registry.

        Args:
            preconditioning: The levels of the student's process.
            calls: Calls of the student.
            settings: All settings of the method by name.

        Raises:
            ValueError: The settings are not possible.
        """
        ...

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Returns terms [B] by name: "loss" is minimised, the others are reported."""
        ...

    def sampling_grid(self) -> str:
        """Returns the grid of the student's calls as samplers take it: "trailing" or "at:...", see `grids.grid`."""
        ...


class Segments:
    """The levels of a student's calls: segment n begins at `starts[n]`, where the student is called, and ends at the
    next start or on the clean image. Segment 0 is the noisiest.

    Args:
        preconditioning: The levels of the student's process.
        path: The path of the student's calls.
    """

    def __init__(self, preconditioning: Preconditioning, path: NoisePath) -> None:
        self.preconditioning = preconditioning
        self.count = path.steps
        levels = [path.level(k) for k in reversed(range(path.steps))] + [path.transition(0).target]
        self.alpha = torch.cat([level.alpha for level in levels])
        self.sigma = torch.cat([level.sigma for level in levels])
        inner = preconditioning.position(Level(self.alpha[:-1], self.sigma[:-1]))
        self.positions = torch.cat([inner, inner.new_full((1,), -1.0)])
        """Positions of all starts and of the end [count + 1]; -1 is the clean image."""

    def start(self, n: Tensor) -> Level:
        """Returns the levels where segments n [B] begin."""
        return Level(self.alpha[n], self.sigma[n])

    def end(self, n: Tensor) -> Level:
        """Returns the levels where segments n [B] end."""
        return Level(self.alpha[n + 1], self.sigma[n + 1])

    def inside(self, n: Tensor, share: Tensor) -> Level:
        """Returns levels inside segments.

        Args:
            n: Segments [B].
            share: How far each level lies from the end (0) to the start (1) of its segment [B], in positions of the
                process. Positions of a discrete process are rounded.
        """
        start, end = self.positions[n], self.positions[n + 1]
        position = end + share * (start - end)
        if not self.preconditioning.continuous:
            position = position.round().long()
        return replaced(self.preconditioning.level(position.clamp(min=0)), position <= -1, Level.clean())

    def choose(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Splits numbers in (0, 1): the segment of each [B], evenly, and an independent number in (0, 1) [B]."""
        scaled = (1 - u) * self.count
        n = scaled.floor().long().clamp(0, self.count - 1)
        return n, (1 - (scaled - n)).clamp(0, 1)


def moved(prediction: Prediction, source: Level, target: Level) -> Tensor:
    """Moves images along the probability flow by one first-order step (DDIM): alpha' x0 + sigma' eps.

    Args:
        prediction: The prediction at the source; its guides act.
        source: Noise levels [B] or [1] of the images.
        target: The levels to move to.

    Returns:
        Images at the target [B, C, H, W]. The noise is (x - alpha x0) / sigma, so that it belongs to a clipped x0.
    """
    guided = prediction.guided_score(clip_after_guidance=True)
    kept = target.sigma / source.sigma
    x0, x = guided.x0, guided.x
    return expand(kept, x) * x + expand(target.alpha - kept * source.alpha, x) * x0


def ddim_x0(x: Tensor, end: Tensor, source: Level, target: Level) -> Tensor:
    """Returns the denoised image whose first-order step from `x` at `source` arrives at `end` at `target`.

    It inverts `moved` (Salimans & Ho 2022, algorithm 2): x0 = (end - (sigma' / sigma) x) / (alpha' - (sigma' / sigma)
    alpha).
    """
    kept = target.sigma / source.sigma
    over = target.alpha - kept * source.alpha
    return expand(1 / over, x) * end - expand(kept / over, x) * x


def replaced(level: Level, rows: Tensor, by: Level) -> Level:
    """Returns levels [B] with those of `by` in chosen rows [B]."""
    return Level(torch.where(rows, by.alpha, level.alpha), torch.where(rows, by.sigma, level.sigma))


def truncated_snr(level: Level) -> Tensor:
    """Returns max(SNR, 1) [B], the weight of squared errors of x0 in progressive distillation (Salimans & Ho 2022)."""
    return (level.alpha / level.sigma).square().clamp(min=1)


def mean_flat(x: Tensor) -> Tensor:
    """Returns the mean over all axes but the first."""
    return x.flatten(1).mean(1)
