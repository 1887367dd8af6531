"""Which neighbouring noise levels consistency models compare, how often, and with what weight.

A grid of N levels sigma_1 < ... < sigma_N is even in sigma^(1/7) (Karras et al. 2022). During training N grows, so that
the neighbours come closer:

    fixed       N = s1                                                         distillation (Song et al. 2023)
    original    N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1      training (Song et al. 2023, appendix C)
    improved    N(k) = min(s0 2^floor(k / K'), s1) + 1,  K' = floor(K / (log2 floor(s1 / s0) + 1))
                                                                               (Song & Dhariwal 2024, section 3.4)

after k of K updates. "original" chooses the neighbours evenly and weighs them alike; "improved" chooses them with a
probability from a log-normal distribution of sigma and divides the loss by their distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CURVES", "Discretisation"]

CURVES = ("fixed", "original", "improved")
P_MEAN, P_STD = -1.1, 2.0  # of ln sigma (Song & Dhariwal 2024, table 1)


@dataclass(frozen=True)
class Discretisation:
    """The number of levels over the course of a training.

    Attributes:
        curve: "fixed", "original" or "improved".
        first: s0, about the number of levels at the beginning; at least 2.
        last: s1, about the number at the end.
    """

    curve: str = "improved"
    first: int = 10
    last: int = 160

    def __post_init__(self) -> None:
        if self.curve not in CURVES:
            raise ValueError(f"unknown discretisation {self.curve!r}; choose one of {', '.join(CURVES)}")
        if not 2 <= self.first <= self.last:
            raise ValueError(f"a discretisation needs 2 <= first <= last, got {self.first} and {self.last}")

    def count(self, progress: float) -> int:
        """Returns N, the number of levels, at least 2.

        Args:
            progress: k / K, from 0 to 1.
        """
        if self.curve == "fixed":
            return self.last
        if self.curve == "original":
            inner = progress * ((self.last + 1) ** 2 - self.first**2) + self.first**2
            return math.ceil(math.sqrt(inner) - 1) + 1
        stages = math.floor(math.log2(self.last // self.first)) + 1
        stage = min(math.floor(progress * stages), stages - 1) if progress < 1 else stages - 1
        return min(self.first * 2**stage, self.last) + 1

    def pairs(self, sigmas: Tensor, u: Tensor) -> Tensor:
        """Chooses neighbours on a grid.

        Args:
            sigmas: The levels [N], rising.
            u: Numbers in (0, 1) [B].

        Returns:
            Indices i [B], from 0 to N - 2: levels i + 1 and i are compared.
        """
        pairs = len(sigmas) - 1
        if self.curve != "improved":
            return (u * pairs).long().clamp(0, pairs - 1)
        edges = torch.erf((sigmas.log() - P_MEAN) / (math.sqrt(2) * P_STD))
        total = (edges[1:] - edges[:-1]).cumsum(0)
        return torch.searchsorted(total / total[-1], u).clamp(0, pairs - 1)

    def weight(self, upper: Tensor, lower: Tensor) -> Tensor:
        """Returns the weights [B] of neighbours: 1 / (upper - lower) for "improved", else 1."""
        return 1 / (upper - lower) if self.curve == "improved" else torch.ones_like(upper)
