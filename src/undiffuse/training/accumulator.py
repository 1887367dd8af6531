"""Means of the terms since the last record, as a whole and by noise level, exact across processes and resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from undiffuse.training.density import bin_of

QUARTILES = 4


def binned_sums(terms: Mapping[str, Tensor], t: Tensor, weights: Tensor, steps: int, bins: int) -> Tensor:
    """Sums of one share of a batch, float64 [1 + terms, 1 + bins] on the CPU, terms in order of name.

    Column 0 belongs to all images, weighted by the timesteps' importance weights (so that its mean estimates the mean
    over uniform t); column 1 + j to timesteps (or positions of continuous levels) in [j, j+1) steps / bins,
    unweighted. Row 0 counts images. Sums of several processes add up.
    """
    where = bin_of(t, steps, bins)
    member = torch.nn.functional.one_hot(where, bins).to(torch.float64)
    columns = torch.cat([weights.cpu().double()[:, None], member], dim=1)
    values = torch.stack([terms[name].float() for name in sorted(terms)]).to("cpu").to(torch.float64)
    counts = torch.cat([torch.tensor([float(len(t))], dtype=torch.float64), member.sum(dim=0)])
    # 0 * nan must not spoil the bins the image is not in
    per_bin = torch.where(columns == 0, 0.0, values[:, :, None] * columns).sum(dim=1)
    return torch.cat([counts[None], per_bin])


def means(sums: Tensor, names: list[str], by: str) -> dict[str, Any]:
    """{"loss": mean, ..., by: {"loss": [mean per bin, None where there was no image], ...}} from `binned_sums`."""
    out: dict[str, Any] = {name: float(row[0] / sums[0, 0]) for name, row in zip(names, sums[1:], strict=True)}
    out[by] = {
        name: [float(v / n) if n > 0 else None for v, n in zip(row[1:].tolist(), sums[0, 1:].tolist(), strict=True)]
        for name, row in zip(names, sums[1:], strict=True)
    }
    return out


@dataclass
class MetricAccumulator:
    """What has been added up since the last record."""

    names: list[str] = field(default_factory=list)
    sums: Tensor | None = None
    updates: int = 0
    norm_sum: float = 0.0
    norm_max: float = 0.0

    def add(self, names: list[str], sums: Tensor, norm: float) -> None:
        """One good update: its sums over all processes and its gradient norm."""
        if self.names != names or self.sums is None:
            self.names, self.sums = names, torch.zeros_like(sums)
        self.sums += sums
        self.updates += 1
        self.norm_sum += norm
        self.norm_max = max(self.norm_max, norm)

    def summary(self) -> dict[str, Any]:
        """Means for a record, NaN if there was no good update."""
        if self.sums is None or self.updates == 0:
            return {"loss": float("nan"), "grad_norm": float("nan")}
        return {
            **means(self.sums, self.names, "by_quartile"),
            "grad_norm": self.norm_sum / self.updates,
            "grad_norm_max": self.norm_max,
        }

    def state(self) -> dict[str, Any]:
        """JSON-ready; floats survive JSON exactly."""
        return {
            "names": self.names,
            "sums": None if self.sums is None else self.sums.tolist(),
            "updates": self.updates,
            "norm_sum": self.norm_sum,
            "norm_max": self.norm_max,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MetricAccumulator:
        """The inverse of `state`."""
        sums = None if state["sums"] is None else torch.tensor(state["sums"], dtype=torch.float64)
        return cls(
            names=list(state["names"]),
            sums=sums,
            updates=int(state["updates"]),
            norm_sum=float(state["norm_sum"]),
            norm_max=float(state["norm_max"]),
        )
