"""Progressive distillation: a student takes in one step what its teacher takes in two (Salimans & Ho 2022).

At the start of a segment, z = alpha x + sigma eps, the teacher takes two DDIM steps, to the middle and to the end. The
student learns the denoised image whose single DDIM step arrives at the same point (algorithm 2):

    x~ = (z'' - (sigma'' / sigma) z) / (alpha'' - (sigma'' / sigma) alpha),    L = max(SNR, 1) |x~ - x^(z)|^2

Repeated, it halves the number of calls each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoiser import Denoiser
from undiffuse.distillation.base import TEACHER, Batch, Networks, Segments, ddim_x0, mean_flat, moved, truncated_snr
from undiffuse.grids import grid
from undiffuse.noise_levels import diffuse, expand
from undiffuse.preconditioning import Preconditioning

__all__ = ["Progressive"]


@dataclass(frozen=True)
class Progressive:
    """Trains a student of `calls` steps from a teacher of `factor` times as many.

    Attributes:
        preconditioning: The levels of the student's process.
        calls: Steps of the student.
        factor: Teacher's steps per step of the student; the paper halves (2).
        inputs: What the student is called on: "data" for noisy images of the data, "own" for what the teacher's steps
            make of noise.
    """

    preconditioning: Preconditioning
    calls: int
    factor: int = 2
    inputs: str = "data"

    name: ClassVar[str] = "progressive"
    needs: ClassVar[frozenset[str]] = frozenset({TEACHER})
    solver: ClassVar[str] = "ddim"
    target_decay: ClassVar[float] = 0.0
    anywhere: ClassVar[bool] = False

    def __post_init__(self) -> None:
        chain = self.preconditioning.chain
        if self.calls < 1 or self.factor < 2 or self.calls * self.factor > chain.steps:
            raise ValueError(
                f"a student of {self.calls} calls with {self.factor} teacher's steps for each needs 1 to {chain.steps} "
                "trained levels"
            )
        own = Segments(self.preconditioning, grid(chain, self.calls, "trailing"))
        finer = Segments(self.preconditioning, grid(chain, self.calls * self.factor, "trailing"))
        object.__setattr__(self, "_own", own)
        object.__setattr__(self, "_finer", finer)

    @classmethod
    def of(cls, preconditioning: Preconditioning, calls: int, settings: Mapping[str, Any]) -> Progressive:
        """See `Method.of`."""
        return cls(preconditioning, calls, inputs=settings["inputs"])

    def sampling_grid(self) -> str:
        """See `Method.sampling_grid`."""
        return "trailing"

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """See `Method.losses`."""
        assert networks.teacher is not None
        own: Segments = self._own  # type: ignore[attr-defined]
        finer: Segments = self._finer  # type: ignore[attr-defined]
        n, _ = own.choose(batch.u)
        source, end = own.start(n), own.end(n)
        if self.inputs == "own":
            x = self._made_inputs(networks.teacher, batch, finer, n)
        else:
            x = diffuse(batch.x0, source, batch.draw("train"))
        with torch.no_grad():
            z = x
            for part in range(self.factor):
                k = self.factor * n + part
                here, there = finer.start(k), finer.end(k)
                z = moved(networks.teacher(z, here, batch.cond), here, there)
            aim = ddim_x0(x, z, source, end)
        error = mean_flat((networks.student(x, source, batch.cond).x0 - aim).square())
        weight = expand(truncated_snr(source), error)
        return {"loss": weight * error, "mse": error.detach()}

    @torch.no_grad()
    def _made_inputs(self, teacher: Denoiser, batch: Batch, finer: Segments, n: Tensor) -> Tensor:
        """What the teacher's steps make of noise, down to the starts of segments n."""
        first = finer.start(torch.zeros_like(n))
        x = expand(first.sigma, batch.x0) * batch.draw("train")
        for k in range(self.factor * int(n.max())):
            rows = torch.nonzero(self.factor * n > k)[:, 0]
            here = torch.full_like(rows, k)
            source, end = finer.start(here), finer.end(here)
            x[rows.to(x.device)] = moved(teacher(*batch.rows(x, rows, source)), source, end)
        return x
