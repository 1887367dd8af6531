"""Computes mean and covariance of features in one pass, in float64, across batches, processes and restarts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features
from undiffuse.metrics.estimate import Card, MetricError, check_same_protocol

__all__ = ["FeatureStore", "Moments", "Statistics"]

ROWS = 2048  # features multiplied at once, in float64
SINGULAR = 1e-10  # smallest pivot, relative to the largest variance, of a covariance that counts as regular


@dataclass(frozen=True)
class Statistics:
    """Summarises features by a Gaussian, float64 on the CPU.

    Args:
        mean: [D].
        covariance: [D, D], with divisor n - 1.
        n: Number of images; None if it is not known (OpenAI's reference batches do not say it).
        card: How the features were made.

    Raises:
        MetricError: Wrong shapes, NaN, or a matrix that is no covariance.
    """

    mean: Tensor
    covariance: Tensor
    n: int | None = None
    card: Card | None = None

    def __post_init__(self) -> None:
        mean = torch.as_tensor(self.mean).detach().to(device="cpu", dtype=torch.float64)
        covariance = torch.as_tensor(self.covariance).detach().to(device="cpu", dtype=torch.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or len(mean) == 0:
            raise MetricError(
                f"a mean [D] and a covariance [D, D] were expected, got {list(mean.shape)} and {list(covariance.shape)}"
            )
        if self.card is not None and self.card.dimension != len(mean):
            raise MetricError(f"{self.card.layer} has {self.card.dimension} features, these statistics {len(mean)}")
        if self.n is not None and self.n < 2:
            raise MetricError(f"statistics of {self.n} images have no covariance; at least 2 are needed")
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise MetricError("the statistics contain NaN or infinity: the file or the features behind it are broken")
        scale = float(covariance.diagonal().abs().max())
        if float((covariance - covariance.T).abs().max()) > 1e-4 * scale or float(covariance.diagonal().min()) < 0:
            raise MetricError(
                "this matrix is not a covariance: it must be symmetric with a diagonal that is not negative"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", (covariance + covariance.T) / 2)

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @property
    def rank_bound(self) -> int:
        """The largest possible rank of the covariance, by the number of images."""
        return self.dimension if self.n is None else min(self.n - 1, self.dimension)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Returns eigenvalues [r], rising, and eigenvectors [D, r] of the covariance's range, r <= `rank_bound`.

        Eigenvalues that rounding made negative or zero are left out.
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = self._in_range(values)
        return values[kept], vectors[:, kept]

    @cached_property
    def eigenvalues(self) -> Tensor:
        """Returns the eigenvalues of `spectrum`, in a quarter of its time."""
        if "spectrum" in self.__dict__:
            return self.spectrum[0]
        values = torch.linalg.eigvalsh(self.covariance)
        return values[self._in_range(values)]

    def _in_range(self, values: Tensor) -> Tensor:
        kept = values > 0
        kept[: self.dimension - self.rank_bound] = False
        return kept

    @cached_property
    def triangle(self) -> Tensor | None:
        """Returns lower triangular B [D, D] with B B^T = the covariance (Cholesky); None if it is nearly singular."""
        if self.rank_bound < self.dimension:
            return None
        triangle, failed = torch.linalg.cholesky_ex(self.covariance)
        pivots = triangle.diagonal().square()
        if int(failed) or float(pivots.min()) < SINGULAR * float(self.covariance.diagonal().max()):
            return None
        return triangle

    @cached_property
    def factor(self) -> Tensor:
        """Returns B [D, r] with B B^T = the covariance. It is kept, so that a reference is factored once."""
        if self.triangle is not None:
            return self.triangle
        values, vectors = self.spectrum
        return vectors * values.sqrt()


class Moments:
    """Accumulates mean and scatter of features; its memory is one D x D float64 matrix for any number of images.

    Batches are centred before they are multiplied, and merged by the update of Chan, Golub & LeVeque (1979), so that a
    large common offset cancels nothing. The result does not depend on batches, their order or how they were shared
    among processes, up to the rounding of float64.

    Args:
        dimension: D; by default that of the first features.
        card: How the features are made.
    """

    def __init__(self, dimension: int | None = None, card: Card | None = None) -> None:
        """Begins without images."""
        if card is not None and dimension is None:
            dimension = card.dimension
        self.card = card
        self.n = 0
        self.mean = torch.zeros(dimension or 0, dtype=torch.float64)
        self.scatter = torch.zeros(dimension or 0, dimension or 0, dtype=torch.float64)
        self._open = dimension is None

    def update(self, features: Tensor | np.ndarray) -> Moments:
        """Adds images.

        Args:
            features: [B, D], on any device (all of one call on the same).

        Raises:
            MetricError: NaN, or another dimension.
        """
        features = as_features(features, None if self._open else len(self.mean), self.n)
        # One more row than features, for the shift between means: no second copy is made to append it.
        memory = features.new_empty((min(len(features), ROWS) + 1, features.shape[1]), dtype=torch.float64)
        for part in features.split(ROWS):
            rows = memory[: len(part) + 1]
            rows[:-1] = part
            mean = rows[:-1].mean(dim=0)
            rows[:-1] -= mean
            self._take(len(part), mean, rows)
        return self

    def merge(self, other: Moments) -> Moments:
        """Adds what another accumulator has collected."""
        check_same_protocol(other.card, self.card)
        if other.n:
            if not self._open and len(other.mean) != len(self.mean):
                raise MetricError(f"moments of dimension {len(self.mean)} and {len(other.mean)} cannot be merged")
            rows = torch.empty_like(other.mean)[None]
            self._take(other.n, other.mean, rows)
            self.scatter += other.scatter.to(self.scatter.device)
        return self

    def _take(self, n: int, mean: Tensor, rows: Tensor) -> None:
        """Merges n images with this mean; the last of `rows` is free, those before are centred features."""
        if n == 0:
            return
        if self._open:
            self._open = False
            self.mean = torch.zeros_like(mean)
            self.scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
        elif self.mean.device != mean.device:
            self.mean, self.scatter = self.mean.to(mean.device), self.scatter.to(mean.device)
        total = self.n + n
        delta = mean - self.mean
        # The scatter of two sets exceeds the sum of theirs by n m / (n + m) (mean_b - mean_a)(mean_b - mean_a)^T.
        rows[-1] = delta * (self.n / total * n) ** 0.5
        _add_gram(self.scatter, rows)
        self.mean = self.mean + delta * (n / total)
        self.n = total

    def statistics(self) -> Statistics:
        """Returns mean and covariance so far; raises MetricError with fewer than two images."""
        if self.n < 2:
            raise MetricError(f"a covariance needs at least 2 images, got {self.n}")
        return Statistics(self.mean, self.scatter / (self.n - 1), self.n, self.card)

    def without(self, other: Moments) -> Moments:
        """Returns the moments without the images of `other`, all of which must be among these."""
        n = self.n - other.n
        if n < 0:
            raise MetricError(f"{other.n} images cannot be taken away from {self.n}")
        rest = Moments(len(self.mean), self.card)
        if n:
            rest.n = n
            rest.mean = (self.n * self.mean - other.n * other.mean) / n
            delta = rest.mean - other.mean
            rest.scatter = self.scatter - other.scatter - (other.n / self.n * n) * delta.outer(delta)
            rest.scatter.diagonal().clamp_(min=0)
        return rest

    @classmethod
    def from_statistics(cls, statistics: Statistics, n: int) -> Moments:
        """Returns the moments that have the `statistics` of n images."""
        moments = cls(statistics.dimension, statistics.card)
        moments.n, moments.mean = n, statistics.mean.clone()
        moments.scatter = statistics.covariance * (n - 1)
        return moments

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything as tensors, to save or to send to another process."""
        n = torch.tensor(self.n, dtype=torch.int64)
        return {"n": n, "mean": self.mean.cpu().clone(), "scatter": self.scatter.cpu().clone()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], card: Card | None = None) -> Moments:
        """Reads the result of `state_dict`."""
        moments = cls(len(state["mean"]), card)
        moments.n = int(state["n"])
        moments.mean, moments.scatter = state["mean"].clone(), state["scatter"].clone()
        return moments


def _add_gram(scatter: Tensor, rows: Tensor) -> None:
    """Adds rows^T rows to `scatter`."""
    if rows.device.type == "cpu":
        # NumPy sees that both factors are one matrix and computes half of the symmetric product.
        array = rows.numpy()
        scatter += torch.from_numpy(array.T @ array)
    else:
        scatter.addmm_(rows.T, rows)


class FeatureStore:
    """Keeps features in order, float32 on the CPU, for the metrics that need them one by one."""

    def __init__(self, dimension: int | None = None, card: Card | None = None) -> None:
        self.card = card
        self.dimension = card.dimension if card is not None and dimension is None else dimension
        self._parts: list[Tensor] = []
        self.n = 0

    def __len__(self) -> int:
        return self.n

    def update(self, features: Tensor | np.ndarray) -> FeatureStore:
        """Adds images.

        Args:
            features: [B, D].

        Raises:
            MetricError: NaN, or another dimension.
        """
        features = as_features(features, self.dimension, self.n)
        self.dimension = features.shape[1]
        # A copy: the caller may use the memory of the batch again.
        self._parts.append(features.to(device="cpu", dtype=torch.float32, copy=True))
        self.n += len(features)
        return self

    def merge(self, other: FeatureStore) -> FeatureStore:
        """Adds another store's features after its own."""
        check_same_protocol(other.card, self.card)
        for part in other._parts:
            self.update(part)
        return self

    def features(self) -> Tensor:
        """Returns all features [N, D] in the order they came; raises MetricError if there are none."""
        if not self.n:
            raise MetricError("there are no features yet: update() was never called with an image")
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]
