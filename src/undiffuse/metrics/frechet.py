"""Computes the Frechet distance between Gaussian summaries of features (FID), its error and its bias.

    d^2 = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

With S_y = B B^T the last trace is the sum of the square roots of the eigenvalues of the symmetric matrix B^T S_x B:
real, not negative, and without the square root of a matrix that is not symmetric.

References:
    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", equation 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features
from undiffuse.metrics.estimate import Card, Estimate, Influence, MetricError, check_same_protocol
from undiffuse.metrics.moments import ROWS, SINGULAR, FeatureStore, Moments, Statistics

__all__ = [
    "FrechetDistance",
    "frechet_bias",
    "frechet_distance",
    "frechet_estimate",
    "frechet_infinity",
    "frechet_influence",
    "frechet_two_halves",
]


COLUMNS = 512  # of a quadratic form at once


class _Comparison:
    """Holds two Gaussians and what their distance and its derivatives share: M = B^T S_x B of the module's text."""

    def __init__(self, x: Statistics, reference: Statistics) -> None:
        if x.dimension != reference.dimension:
            raise MetricError(
                f"statistics of dimension {x.dimension} cannot be compared with statistics of {reference.dimension}; "
                "both must come from the same extractor and layer"
            )
        check_same_protocol(x.card, reference.card)
        self.x, self.reference = x, reference

    @cached_property
    def middle(self) -> Tensor:
        middle = self.reference.factor.T @ self.x.covariance @ self.reference.factor
        return (middle + middle.T) / 2

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Returns eigenvalues, rising, and eigenvectors of M."""
        return torch.linalg.eigh(self.middle)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """Returns the eigenvalues of M, in a quarter of the time if the vectors are not known."""
        return self.spectrum[0] if "spectrum" in self.__dict__ else torch.linalg.eigvalsh(self.middle)

    def distance(self) -> float:
        """Returns the distance, see `frechet_distance`."""
        values = self.eigenvalues
        # What rounding put beyond the rank is dropped.
        rank = min(self.x.rank_bound, self.reference.rank_bound)
        roots = values[max(0, len(values) - rank) :].clamp(min=0).sqrt()
        shift = self.x.mean - self.reference.mean
        traces = self.x.covariance.diagonal().sum() + self.reference.covariance.diagonal().sum()
        return float(shift @ shift + traces - 2 * roots.sum())

    def influence(self, features: Tensor) -> Tensor:
        """Returns the influence of features of x, see `frechet_influence`."""
        _check_enough(features, self.x)
        values, vectors = self.spectrum
        # Directions in which the samples do not vary cannot be mapped, and no centred feature has a part in them.
        kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
        weights = (self.reference.factor @ vectors[:, kept]) * values[kept].pow(-0.25)
        return _influence(features, self.x, self.reference, weights @ weights.T)

    def influence_of_reference(self, features: Tensor) -> Tensor:
        """Returns that of features of the reference, whose optimal map to x is the inverse of the map from x."""
        _check_enough(features, self.reference)
        triangle, (values, vectors) = self.reference.triangle, self.spectrum
        if triangle is None or float(values[0]) < SINGULAR * float(values[-1]):
            return _Comparison(self.reference, self.x).influence(features)
        weights = torch.linalg.solve_triangular(triangle.T, vectors * values.pow(0.25), upper=True)
        return _influence(features, self.reference, self.x, weights @ weights.T)


def _check_enough(features: Tensor, x: Statistics) -> None:
    if len(features) <= x.dimension or x.rank_bound < x.dimension:
        raise MetricError(
            f"the standard error of a Frechet distance needs more images ({len(features)}) than dimensions "
            f"({x.dimension}); evaluate more samples"
        )


def _influence(features: Tensor, x: Statistics, reference: Statistics, transport: Tensor) -> Tensor:
    """Returns 2 (m_x - m_r).c + c^T (I - T) c - tr((I - T) S_x) with c = f - m_x and T = `transport`."""
    form = torch.eye(x.dimension, dtype=torch.float64) - transport
    constant = (form * x.covariance).sum()
    form = form.triu() + form.triu(1)  # the same quadratic form with half of the numbers
    shift = x.mean - reference.mean
    parts = []
    for part in features.split(ROWS):
        centred = part.to("cpu", torch.float64) - x.mean
        quadratic = centred.new_zeros(len(centred))
        for start in range(0, x.dimension, COLUMNS):
            rows = slice(start, start + COLUMNS)
            quadratic += (centred[:, start:] * (centred[:, rows] @ form[rows, start:])).sum(dim=1)
        parts.append(2 * (centred @ shift) + quadratic)
    return torch.cat(parts) - constant


def frechet_distance(x: Statistics, reference: Statistics) -> float:
    """Returns the squared Frechet distance, which is what is reported as FID.

    It is not clipped: near 0 rounding may make it negative. Singular covariances (fewer images than dimensions) are
    fine.

    Args:
        x: Statistics of the samples.
        reference: Statistics of the reference, which keep their factorisation for further calls.
    """
    return _Comparison(x, reference).distance()


def frechet_influence(features: Tensor, x: Statistics, reference: Statistics) -> Tensor:
    """Returns the influence of each image on the distance to a reference.

        2 (m_x - m_r).c + c^T (I - T) c - tr((I - T) S_x)

    with c = f - m_x and T the optimal map from N(0, S_x) to N(0, S_r), T = B M^(-1/2) B^T, M = B^T S_x B. Its standard
    deviation over sqrt(N) is the standard error of the distance (delta method). It vanishes where the two distributions
    are equal; there the second order matters.

    Args:
        features: Features that `x` are the statistics of, [N, D].
        x: Their statistics.
        reference: Statistics of the reference.

    Returns:
        float64 [N].

    Raises:
        MetricError: Not more images than dimensions.
    """
    features = as_features(features, x.dimension)
    return _Comparison(x, reference).influence(features)


def frechet_bias(x: Statistics) -> float:
    """Returns the expected excess C / n of the distance because `x` is measured on n images, for Gaussian features.

        C = tr S + 1/2 sum_ij l_i l_j (1 + d_ij) / (l_i + l_j)

    over the eigenvalues l of the covariance S: the second order of the distance where both distributions are close.

    References:
        Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and Where to Find Them".
    """
    if x.n is None:
        raise MetricError("the bias of statistics of an unknown number of images is unknown")
    values = x.eigenvalues
    sums = values[:, None] + values[None]
    pairs = (values[:, None] * values[None] / sums).sum() + (values / 2).sum()
    return float(values.sum() + pairs / 2) / x.n


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _of(features: Tensor, rows: np.ndarray, card: Card | None) -> Moments:
    """Returns the moments of some rows of the features."""
    moments = Moments(features.shape[1], card)
    for start in range(0, len(rows), ROWS):
        moments.update(features[torch.from_numpy(rows[start : start + ROWS])])
    return moments


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """Holds a distance without the samples' part of the bias.

    `spread` is the standard deviation of its repetitions or points, not a standard error.
    """

    value: float
    spread: float


def frechet_two_halves(
    features: Tensor, x: Statistics, reference: Statistics, *, splits: int = 2, seed: int = 0
) -> Corrected:
    """Returns 2 d(all) - mean of d(half), in which the 1/n part of the bias cancels.

    The finite number of reference images still counts.

    Args:
        features: Features of the samples, [N, D].
        x: Their statistics.
        reference: Statistics of the reference.
        splits: Random splits into halves.
        seed: Seed of the splits.
    """
    return _two_halves(as_features(features, x.dimension), _Comparison(x, reference), splits, seed)


def _two_halves(features: Tensor, comparison: _Comparison, splits: int, seed: int) -> Corrected:
    x = comparison.x
    if x.n not in (None, len(features)):
        raise MetricError(f"these are the features of {len(features)} images, their statistics are of {x.n}")
    if len(features) < 4 or splits < 1:
        raise MetricError(f"two halves need at least 4 images and 1 split, got {len(features)} and {splits}")
    generator = _generator(seed)
    sets = np.zeros((splits, len(features)), dtype=bool)
    for chosen in sets:
        chosen[generator.permutation(len(features))[: len(features) // 2]] = True
    whole, total = comparison.distance(), Moments.from_statistics(x, len(features))
    values = []
    for half in _moments_of_sets(features, sets, x.card):
        parts = [frechet_distance(m.statistics(), comparison.reference) for m in (half, total.without(half))]
        values.append(2 * whole - sum(parts) / 2)
    return Corrected(value=float(np.mean(values)), spread=float(np.std(values, ddof=1)) if splits > 1 else 0.0)


def _moments_of_sets(features: Tensor, sets: np.ndarray, card: Card | None) -> Iterator[Moments]:
    """Returns the moments of the rows of each of the sets [S, N]; two sets share the product of their common part."""
    for start in range(0, len(sets), 2):
        one, other = sets[start], sets[start + 1] if start + 1 < len(sets) else np.zeros_like(sets[start])
        common = _of(features, np.flatnonzero(one & other), card)
        yield _of(features, np.flatnonzero(one & ~other), card).merge(common)
        if start + 1 < len(sets):
            yield _of(features, np.flatnonzero(other & ~one), card).merge(common)


def frechet_infinity(
    features: Tensor, reference: Statistics, *, sizes: Sequence[int] | None = None, seed: int = 0
) -> Corrected:
    """Extrapolates the distance to infinitely many samples.

    A line in 1/n is fitted to the distances of random subsets, one of each size, and read at 1/n = 0.

    Args:
        features: Features of the samples, [N, D].
        reference: Statistics of the reference.
        sizes: Sizes of the subsets; by default 15 from max(N / 10, 2) or 5000, whichever is less, to N.
        seed: Seed of the subsets.

    References:
        Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and Where to Find Them".
    """
    features = as_features(features, reference.dimension)
    total = len(features)
    if sizes is None:
        sizes = sorted({int(s) for s in np.linspace(max(2, min(5000, total // 10)), total, 15)})
    if len(sizes) < 2 or min(sizes) < 2 or max(sizes) > total:
        raise MetricError(f"subsets need at least two sizes from 2 to the {total} images, got {list(sizes)}")
    generator = _generator(seed)
    values = [
        frechet_distance(_of(features, generator.permutation(total)[:size], reference.card).statistics(), reference)
        for size in sizes
    ]
    inverse = 1 / np.asarray(sizes, dtype=np.float64)
    slope, intercept = np.polyfit(inverse, values, 1)
    residual = np.asarray(values) - (intercept + slope * inverse)
    return Corrected(value=float(intercept), spread=float(residual.std()))


def frechet_estimate(
    x: Statistics,
    reference: Statistics,
    *,
    features: Tensor | None = None,
    reference_features: Tensor | None = None,
    splits: int = 2,
    seed: int = 0,
    card: Card | None = None,
) -> Estimate:
    """Returns the distance with its error and bias; `extra` holds ranks and the corrected value "two_halves".

    Args:
        x: Statistics of the samples.
        reference: Statistics of the reference.
        features: Features that `x` are the statistics of, [N, D]; without them there is no error and no correction.
        reference_features: Features of the reference, [M, D]; with them its sampling error is part of the standard
            error.
        splits: Random halvings for the corrected value, 0 for none.
        seed: Seed of the halvings.
        card: How the features were made.
    """
    comparison = _Comparison(x, reference)
    influence, stderr, method = None, None, None
    if features is not None and x.rank_bound == x.dimension:
        influence = _influences(comparison, features, reference_features)
        stderr, method = _error(influence), "influence function"
    value = comparison.distance()
    warnings = []
    extra: dict[str, float] = {
        "rank": float(len(x.eigenvalues)),
        "reference_rank": float(len(reference.eigenvalues)),
    }
    for count, whose in ((x.n, "samples"), (reference.n, "reference images")):
        if count is not None and count <= x.dimension:
            warnings.append(
                f"{count} {whose} for {x.dimension} dimensions: the covariance is singular and the value's bias "
                "large; compare only values of equal counts"
            )
    if features is not None and splits and len(features) >= 4:
        features = as_features(features, x.dimension)
        extra["two_halves"] = _two_halves(features, comparison, splits, seed).value
    known = [side for side in (x, reference) if side.n is not None]
    bias = sum(frechet_bias(side) for side in known) if known else None
    if bias is not None and bias > 0.1 * abs(value):
        warnings.append(f"about {bias:.3g} of the value {value:.4g} is due to the finite number of images")
    return Estimate(
        name=card.distance if card else "FD",
        value=value,
        stderr=stderr,
        stderr_method=method,
        n=x.n or (0 if features is None else len(features)),
        n_reference=reference.n,
        bias=bias,
        extra=extra,
        settings={"splits": splits, "seed": seed},
        warnings=tuple(warnings),
        card=card,
        influence=influence,
    )


def _influences(comparison: _Comparison, features: Tensor, reference_features: Tensor | None) -> Influence:
    dimension = comparison.x.dimension
    ours, theirs = comparison.influence(as_features(features, dimension)), None
    if reference_features is not None and comparison.reference.rank_bound == dimension:
        theirs = comparison.influence_of_reference(as_features(reference_features, dimension))
    return Influence(samples=ours, reference=theirs)


def _error(influence: Influence) -> float:
    sides = [side for side in (influence.samples, influence.reference) if side is not None]
    return float(sum(float(side.var()) / len(side) for side in sides)) ** 0.5


class FrechetDistance:
    """Accumulates the Frechet distance of samples to a reference.

    Args:
        reference: Statistics, from a file or from `Moments.statistics`.
        card: How the samples' features are made; MetricError if the reference's were made otherwise.
        keep: Keeps the samples' features, for the standard error and the correction of the bias.
        splits: Random halvings for the corrected value, 0 for none.
        reference_features: Features of the reference, [M, D], if its sampling error should be part of the standard
            error.
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
        """Adds samples.

        Args:
            features: Features of the samples, [B, D].
        """
        self.moments.update(features)
        if self.store is not None:
            self.store.update(features)
        return self

    def merge(self, other: FrechetDistance) -> FrechetDistance:
        """Adds what another accumulator with the same reference has collected."""
        self.moments.merge(other.moments)
        if self.store is not None:
            if other.store is None:
                raise MetricError("the other accumulator kept no features; make both with the same `keep`")
            self.store.merge(other.store)
        return self

    def compute(self) -> Estimate:
        """Returns the distance, see `frechet_estimate`."""
        return frechet_estimate(
            self.moments.statistics(),
            self.reference,
            features=None if self.store is None else self.store.features(),
            reference_features=self.reference_features,
            splits=self.splits,
            seed=self.seed,
            card=self.card,
        )
