"""The Frechet distance between Gaussian summaries of features (FID, Heusel et al. 2017), its error and its bias.

    d^2 = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

With S_y = B B^T the last trace is the sum of the square roots of the eigenvalues of the symmetric matrix B^T S_x B:
real, not negative, and without the square root of a matrix that is not symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features
from undiffuse.metrics.estimate import Card, Estimate, MetricError, check_same_protocol
from undiffuse.metrics.moments import ROWS, FeatureStore, Moments, Statistics

__all__ = [
    "FrechetDistance",
    "frechet_bias",
    "frechet_distance",
    "frechet_infinity",
    "frechet_influence",
    "frechet_two_halves",
]


def _middle(x: Statistics, reference: Statistics) -> Tensor:
    if x.dimension != reference.dimension:
        raise MetricError(
            f"statistics of dimension {x.dimension} cannot be compared with statistics of {reference.dimension}; "
            "both must come from the same extractor and layer"
        )
    check_same_protocol(x.card, reference.card)
    middle = reference.factor.T @ x.covariance @ reference.factor
    return (middle + middle.T) / 2


def _roots(values: Tensor, rank: int) -> Tensor:
    """Square roots of the `rank` largest eigenvalues (rising order): what rounding put beyond the rank is dropped."""
    return values[max(0, len(values) - rank) :].clamp(min=0).sqrt()


def frechet_distance(x: Statistics, reference: Statistics) -> float:
    """The squared Frechet distance, as everybody reports it. Not clipped: near 0 it may be negative by rounding.

    Singular covariances (fewer images than dimensions) are fine. `reference` is factored once and remembers it.
    """
    roots = _roots(torch.linalg.eigvalsh(_middle(x, reference)), min(x.rank_bound, reference.rank_bound))
    shift = x.mean - reference.mean
    traces = x.covariance.diagonal().sum() + reference.covariance.diagonal().sum()
    return float(shift @ shift + traces - 2 * roots.sum())


def frechet_influence(features: Tensor, x: Statistics, reference: Statistics) -> Tensor:
    """Influence [N] of each of the features [N, D], of which `x` are the statistics, on the distance to `reference`.

    2 (m_x - m_r).c + c^T (I - T) c - tr((I - T) S_x) with c = f - m_x and T the optimal map from N(0, S_x) to
    N(0, S_r), T = B M^(-1/2) B^T, M = B^T S_x B. Their standard deviation over sqrt(N) is the standard error of the
    distance (delta method). It vanishes where the two distributions are equal, where the second order matters.
    MetricError unless there are more images than dimensions.
    """
    features = as_features(features, x.dimension)
    if x.rank_bound < x.dimension or len(features) <= x.dimension:
        raise MetricError(
            f"the standard error of a Frechet distance needs more images ({len(features)}) than dimensions "
            f"({x.dimension}); evaluate more samples"
        )
    values, vectors = torch.linalg.eigh(_middle(x, reference))
    # Directions in which the samples do not vary cannot be mapped, and no centred feature has a part in them.
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    weights = (reference.factor @ vectors[:, kept]) * values[kept].pow(-0.25)
    shift = x.mean - reference.mean
    parts = []
    for part in features.split(ROWS):
        centred = part.to("cpu", torch.float64) - x.mean
        quadratic = centred.square().sum(dim=1) - (centred @ weights).square().sum(dim=1)
        parts.append(2 * (centred @ shift) + quadratic)
    influence = torch.cat(parts)
    constant = x.covariance.diagonal().sum() - torch.einsum("ij,ij->", weights, x.covariance @ weights)
    return influence - constant


def frechet_bias(x: Statistics) -> float:
    """Expected excess C / n of the distance that is due to `x` being measured on n images, for Gaussian features.

    C = tr S + 1/2 sum_ij l_i l_j (1 + d_ij) / (l_i + l_j) over the eigenvalues l of the covariance S: the second order
    of the distance where both distributions are near each other (Chong & Forsyth 2020 on why it matters).
    """
    if x.n is None:
        raise MetricError("the bias of statistics of an unknown number of images is unknown")
    values = x.spectrum[0]
    sums = values[:, None] + values[None]
    pairs = (values[:, None] * values[None] / sums).sum() + (values / 2).sum()
    return float(values.sum() + pairs / 2) / x.n


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _of(features: Tensor, rows: np.ndarray, card: Statistics) -> Statistics:
    moments = Moments(features.shape[1])
    for start in range(0, len(rows), ROWS):
        moments.update(features[torch.from_numpy(rows[start : start + ROWS])])
    made = moments.statistics()
    return Statistics(made.mean, made.covariance, made.n, card.card)


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A distance freed of the samples' part of the bias. `spread` is the standard deviation of its repetitions or
    points, not a standard error."""

    value: float
    spread: float


def frechet_two_halves(
    features: Tensor, x: Statistics, reference: Statistics, *, splits: int = 2, seed: int = 0
) -> Corrected:
    """2 d(all) - mean of d(half) over `splits` random splits into halves: the 1/n part of the bias cancels.

    `x` are the statistics of all `features` [N, D]. The reference's own finite number still counts.
    """
    features = as_features(features, x.dimension)
    if len(features) < 4 or splits < 1:
        raise MetricError(f"two halves need at least 4 images and 1 split, got {len(features)} and {splits}")
    whole = frechet_distance(x, reference)
    generator = _generator(seed)
    values = []
    for _ in range(splits):
        order = generator.permutation(len(features))
        middle = len(order) // 2
        halves = [frechet_distance(_of(features, part, x), reference) for part in (order[:middle], order[middle:])]
        values.append(2 * whole - sum(halves) / 2)
    return Corrected(value=float(np.mean(values)), spread=float(np.std(values, ddof=1)) if splits > 1 else 0.0)


def frechet_infinity(
    features: Tensor, reference: Statistics, *, sizes: Sequence[int] | None = None, seed: int = 0
) -> Corrected:
    """The distance extrapolated to infinitely many samples (Chong & Forsyth 2020): a line in 1/n through the distances
    of random subsets, one of each size, at 1/n = 0. By default 15 sizes from max(N / 10, 2) or 5000, whichever is
    less, to N.
    """
    features = as_features(features, reference.dimension)
    total = len(features)
    if sizes is None:
        sizes = sorted({int(s) for s in np.linspace(max(2, min(5000, total // 10)), total, 15)})
    if len(sizes) < 2 or min(sizes) < 2 or max(sizes) > total:
        raise MetricError(f"subsets need at least two sizes from 2 to the {total} images, got {list(sizes)}")
    generator = _generator(seed)
    values = [
        frechet_distance(_of(features, generator.permutation(total)[:size], reference), reference) for size in sizes
    ]
    inverse = 1 / np.asarray(sizes, dtype=np.float64)
    slope, intercept = np.polyfit(inverse, values, 1)
    residual = np.asarray(values) - (intercept + slope * inverse)
    return Corrected(value=float(intercept), spread=float(residual.std()))


class FrechetDistance:
    """FID and its relatives of streamed samples against a reference.

    `reference`   statistics, from a file or from `Moments.statistics`
    `card`        how the samples' features are made; MetricError if the reference's were made otherwise
    `keep`        keep the samples' features, for the standard error and the correction of the bias
    `splits`      random halvings for the corrected value, 0 for none
    `reference_features` [M, D] of the reference, if its sampling error should be part of the standard error
    """

    def __init__(
        self,
        reference: Statistics,
        *,
        card: Card | None = None,
        keep: bool = True,
        splits: int = 2,
        seed: int = 0,
        reference_features: Tensor | None = None,
    ) -> None:
        check_same_protocol(card, reference.card)
        self.reference = reference
        self.card = card or reference.card
        self.moments = Moments(reference.dimension, self.card)
        self.store = FeatureStore(reference.dimension, self.card) if keep else None
        self.splits = splits
        self.seed = seed
        self.reference_features = reference_features

    def update(self, features: Tensor | np.ndarray) -> FrechetDistance:
        """Take in samples' features [B, D]."""
        self.moments.update(features)
        if self.store is not None:
            self.store.update(features)
        return self

    def merge(self, other: FrechetDistance) -> FrechetDistance:
        """Take in what another accumulator with the same reference has seen."""
        self.moments.merge(other.moments)
        if self.store is not None:
            if other.store is None:
                raise MetricError("the other accumulator kept no features; make both with the same `keep`")
            self.store.merge(other.store)
        return self

    def compute(self) -> Estimate:
        """The distance, with `extra` holding ranks, and the corrected value "two_halves" where features were kept."""
        x, reference = self.moments.statistics(), self.reference
        value = frechet_distance(x, reference)
        warnings = []
        extra: dict[str, float] = {
            "rank": float(len(x.spectrum[0])),
            "reference_rank": float(reference.factor.shape[1]),
        }
        for count, whose in ((x.n, "samples"), (reference.n, "reference images")):
            if count is not None and count <= x.dimension:
                warnings.append(
                    f"{count} {whose} for {x.dimension} dimensions: the covariance is singular and the value's bias "
                    "large; compare only values of equal counts"
                )
        stderr = None
        method = None
        if self.store is not None and x.rank_bound == x.dimension:
            stderr, method = self._error(x), "influence function"
        if self.store is not None and self.splits and self.moments.n >= 4:
            halves = frechet_two_halves(self.store.features(), x, reference, splits=self.splits, seed=self.seed)
            extra["two_halves"] = halves.value
        bias = frechet_bias(x) + (frechet_bias(reference) if reference.n is not None else 0.0)
        if bias > 0.1 * abs(value):
            warnings.append(f"about {bias:.3g} of the value {value:.4g} is due to the finite number of images")
        return Estimate(
            name=self.card.distance if self.card else "FD",
            value=value,
            stderr=stderr,
            stderr_method=method,
            n=self.moments.n,
            n_reference=reference.n,
            bias=bias,
            extra=extra,
            settings={"splits": self.splits, "seed": self.seed},
            warnings=tuple(warnings),
            card=self.card,
        )

    def _error(self, x: Statistics) -> float:
        assert self.store is not None
        influence = frechet_influence(self.store.features(), x, self.reference)
        variance = float(influence.var()) / len(influence)
        if self.reference_features is not None and self.reference.rank_bound == x.dimension:
            theirs = frechet_influence(self.reference_features, self.reference, x)
            variance += float(theirs.var()) / len(theirs)
        return variance**0.5
