"""The Frechet distance: closed forms, degenerate sets, its standard error and bias against Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undiffuse.metrics import (
    Card,
    FrechetDistance,
    MetricError,
    Moments,
    Statistics,
    frechet_bias,
    frechet_distance,
    frechet_estimate,
    frechet_infinity,
    frechet_influence,
    frechet_two_halves,
    paired_error,
)
from undiffuse.metrics import frechet as module


def gaussian(r: np.random.Generator, dimension: int, n: int | None = None) -> Statistics:
    root = r.standard_normal((dimension, dimension)) / math.sqrt(dimension)
    return Statistics(
        torch.from_numpy(r.standard_normal(dimension)), torch.from_numpy(root @ root.T + np.eye(dimension) / 5), n
    )


def sample(law: Statistics, n: int, r: np.random.Generator) -> torch.Tensor:
    return law.mean + torch.from_numpy(r.standard_normal((n, law.dimension))) @ law.factor.T


def of(features: torch.Tensor) -> Statistics:
    return Moments().update(features).statistics()


@pytest.fixture
def r() -> np.random.Generator:
    return np.random.default_rng(3)


def test_against_the_textbook_formula(r: np.random.Generator) -> None:
    x, y = gaussian(r, 9), gaussian(r, 9)
    # The eigenvalues of the product itself, which is not symmetric.
    roots = np.sqrt(np.linalg.eigvals((x.covariance @ y.covariance).numpy()).real)
    expected = float((x.mean - y.mean).square().sum() + (x.covariance + y.covariance).trace()) - 2 * roots.sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-11)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-11)


def test_a_shift(r: np.random.Generator) -> None:
    x, shift = gaussian(r, 5), torch.arange(5.0, dtype=torch.float64)
    assert frechet_distance(Statistics(x.mean + shift, x.covariance), x) == pytest.approx(30, rel=1e-12)


def test_a_scale(r: np.random.Generator) -> None:
    x = gaussian(r, 5)
    expected = 0.25 * float(x.covariance.trace() + x.mean @ x.mean)
    assert frechet_distance(Statistics(1.5 * x.mean, 2.25 * x.covariance), x) == pytest.approx(expected, rel=1e-11)


def test_commuting_covariances(r: np.random.Generator) -> None:
    basis = torch.from_numpy(np.linalg.qr(r.standard_normal((6, 6)))[0])
    a, b = (torch.from_numpy(r.uniform(0.1, 4, 6)) for _ in range(2))
    x, y = (Statistics(torch.zeros(6), basis @ v.diag() @ basis.T) for v in (a, b))
    assert frechet_distance(x, y) == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-11)


def test_one_dimension() -> None:
    x, y = (
        Statistics(torch.tensor([1.0]), torch.tensor([[4.0]])),
        Statistics(torch.tensor([3.0]), torch.tensor([[9.0]])),
    )
    assert frechet_distance(x, y) == pytest.approx(4 + 1, rel=1e-12)


def test_rotations_and_blocks(r: np.random.Generator) -> None:
    x, y, u, v = (gaussian(r, 4) for _ in range(4))
    basis = torch.from_numpy(np.linalg.qr(r.standard_normal((4, 4)))[0])

    def turned(s: Statistics) -> Statistics:
        return Statistics(basis @ s.mean, basis @ s.covariance @ basis.T)

    assert frechet_distance(turned(x), turned(y)) == pytest.approx(frechet_distance(x, y), rel=1e-11)
    xu, yv = (
        Statistics(torch.cat([a.mean, b.mean]), torch.block_diag(a.covariance, b.covariance))
        for a, b in ((x, u), (y, v))
    )
    assert frechet_distance(xu, yv) == pytest.approx(frechet_distance(x, y) + frechet_distance(u, v), rel=1e-11)


def test_equal_sets_are_at_distance_zero(r: np.random.Generator) -> None:
    for n in (6, 200):
        x = of(sample(gaussian(r, 10), n, r))
        assert abs(frechet_distance(x, x)) < 1e-9 * float(x.covariance.trace())


def test_equal_images_leave_the_shift() -> None:
    x, y = of(torch.ones(10, 4)), of(torch.full((5, 4), 3.0))
    assert frechet_distance(x, y) == pytest.approx(16, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (5, 100), (100, 5), (2, 2)])
def test_fewer_images_than_dimensions(n: int, m: int, r: np.random.Generator) -> None:
    """Against the nuclear norm of the product of the centred features, which takes no root of a singular matrix."""
    x, y = sample(gaussian(r, 30), n, r), sample(gaussian(r, 30), m, r)
    a, b = ((z - z.mean(dim=0)) / math.sqrt(len(z) - 1) for z in (x, y))
    expected = float((x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum())
    expected -= 2 * float(torch.linalg.svdvals(a @ b.T).sum())
    assert frechet_distance(of(x), of(y)) == pytest.approx(expected, rel=1e-11)


def test_a_constant_dimension_counts_only_by_its_mean(r: np.random.Generator) -> None:
    x, y = sample(gaussian(r, 4), 50, r), sample(gaussian(r, 4), 60, r)
    expected = frechet_distance(of(x), of(y)) + 1
    x, y = (torch.cat([z, torch.full((len(z), 1), c)], dim=1) for z, c in ((x, 2.0), (y, 3.0)))
    assert frechet_distance(of(x), of(y)) == pytest.approx(expected, rel=1e-9)
    influence = frechet_influence(x, of(x), of(y))
    assert bool(torch.isfinite(influence).all())


def test_influence_is_the_derivative(r: np.random.Generator) -> None:
    """An image with a little more weight moves the distance by its influence."""
    x, y = sample(gaussian(r, 4), 40, r), gaussian(r, 4)
    n, step = len(x), 1e-6
    # Population moments (divisor n), since the weights are what changes.
    influence = frechet_influence(x, Statistics(x.mean(dim=0), torch.cov(x.T, correction=0), n), y)
    base = torch.full((n,), 1 / n, dtype=torch.float64)
    for i in (0, 7):
        values = []
        for sign in (-1, 1):
            w = (1 - sign * step) * base
            w[i] += sign * step
            mean = w @ x
            values.append(frechet_distance(Statistics(mean, (x - mean).T @ (w[:, None] * (x - mean))), y))
        assert float(influence[i]) == pytest.approx((values[1] - values[0]) / (2 * step), rel=1e-5)
    assert abs(float(influence.mean())) < 1e-9


def test_standard_error_and_corrections_against_monte_carlo(r: np.random.Generator) -> None:
    law, reference = gaussian(r, 8), gaussian(r, 8)
    truth = frechet_distance(law, reference)
    plain, halves, errors, infinite = [], [], [], []
    for repeat in range(60):
        x = sample(law, 200, r)
        metric = FrechetDistance(reference, splits=2, seed=repeat).update(x)
        estimate = metric.compute()
        assert estimate.stderr is not None
        plain.append(estimate.value)
        errors.append(estimate.stderr)
        halves.append(estimate.extra["two_halves"])
        infinite.append(frechet_infinity(x, reference, sizes=(50, 100, 200), seed=repeat).value)
    spread = float(np.std(plain, ddof=1))
    assert np.mean(errors) == pytest.approx(spread, rel=0.3)  # a spread of 60 is known to 9%
    error = spread / math.sqrt(len(plain))
    assert abs(np.mean(halves) - truth) < 3.5 * error * np.std(halves) / spread
    assert abs(np.mean(infinite) - truth) < 3.5 * float(np.std(infinite)) / math.sqrt(len(plain))


def test_the_error_of_a_difference_against_monte_carlo(r: np.random.Generator) -> None:
    """Two sets of samples that share part of their chance, and the reference images, as two solvers do."""
    apart, paired, independent = [], [], []
    for _ in range(120):
        common, y = torch.from_numpy(r.standard_normal((300, 4))), torch.from_numpy(r.standard_normal((400, 4)))
        other = torch.from_numpy(r.standard_normal((300, 4)))
        samples = (1.3 * common + 0.5, 1.2 * (0.9 * common + 0.436 * other) + 0.6)
        a, b = (
            frechet_estimate(of(x), of(y), features=x, reference_features=y, splits=0) for x in samples
        )  # fmt: skip
        error = paired_error(a, b)
        assert error is not None
        assert error == paired_error(b, a)
        apart.append(a.value - b.value)
        paired.append(error)
        independent.append(math.hypot(a.stderr or 0, b.stderr or 0))
    spread = float(np.std(apart, ddof=1))
    assert np.mean(paired) == pytest.approx(spread, rel=0.2)  # a spread of 120 is known to 6.5%
    assert np.mean(independent) > 1.5 * spread  # what would have been said without pairs
    assert paired_error(a, a) == 0
    few = frechet_estimate(of(samples[0][:200]), of(y), features=samples[0][:200], reference_features=y, splits=0)
    known = frechet_estimate(of(samples[0]), of(y), features=samples[0], splits=0)
    bare = frechet_estimate(of(samples[0]), of(y), splits=0)
    assert [paired_error(a, other) for other in (few, known, bare)] == [None, None, None]
    assert "influence" not in a.to_dict()


def test_bias_near_the_reference(r: np.random.Generator) -> None:
    """Where both laws are equal, the mean distance is the bias C / n."""
    law = gaussian(r, 8)
    values = [frechet_distance(of(sample(law, 300, r)), law) for _ in range(100)]
    predicted = frechet_bias(Statistics(law.mean, law.covariance, 300))
    assert np.mean(values) == pytest.approx(predicted, abs=3.5 * float(np.std(values)) / 10)
    # The formula itself, with equal variances: C = d s + s d (d + 1) / 4.
    assert frechet_bias(Statistics(torch.zeros(5), 2 * torch.eye(5), 10)) == pytest.approx((10 + 15) / 10)


def test_two_halves_are_halves(r: np.random.Generator) -> None:
    """Against the formula with each half's own moments, for even and odd numbers of images and of splits."""
    reference = gaussian(r, 5)
    for n, splits in ((60, 1), (61, 2), (60, 3)):
        x = sample(gaussian(r, 5), n, r)
        generator = np.random.Generator(np.random.Philox(key=7))
        values = []
        for _ in range(splits):
            order = torch.from_numpy(generator.permutation(n))
            halves = (order[: n // 2], order[n // 2 :])
            values.append(sum(frechet_distance(of(x[half]), reference) for half in halves) / 2)
        found = frechet_two_halves(x, of(x), reference, splits=splits, seed=7)
        assert found.value == pytest.approx(2 * frechet_distance(of(x), reference) - np.mean(values), rel=1e-11)
    with pytest.raises(MetricError, match="features of 59 images, their statistics are of 60"):
        frechet_two_halves(x[:59], of(x), reference)


def test_halves_with_a_constant_dimension(r: np.random.Generator) -> None:
    """What remains of a constant's scatter is 0, not a negative rounding error."""
    x = torch.cat([sample(gaussian(r, 3), 50, r), torch.full((50, 1), 1 / 3, dtype=torch.float64)], dim=1)
    assert math.isfinite(frechet_two_halves(x, of(x), gaussian(r, 4), splits=3).value)


def test_the_quadratic_form_in_blocks(r: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sample(gaussian(r, 7), 40, r), gaussian(r, 7)
    whole = frechet_influence(x, of(x), y)
    monkeypatch.setattr(module, "COLUMNS", 3)
    monkeypatch.setattr(module, "ROWS", 11)
    torch.testing.assert_close(frechet_influence(x, of(x), y), whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("constant", [False, True])
def test_the_error_of_the_reference_from_either_side(constant: bool, r: np.random.Generator) -> None:
    """By the inverse of the samples' map, or where that is not to be had by the reference's own."""
    x, y = sample(gaussian(r, 5), 90, r), sample(gaussian(r, 5), 80, r)
    if constant:
        x[:, 1] = 0.5
    alone = frechet_estimate(of(x), of(y), features=x, splits=0).stderr
    both = frechet_estimate(of(x), of(y), features=x, reference_features=y, splits=0).stderr
    theirs = frechet_influence(y, of(y), of(x))
    assert alone is not None
    assert both == pytest.approx(math.sqrt(alone**2 + float(theirs.var()) / len(y)), rel=1e-11)


def test_the_references_sampling_error_counts_when_given(r: np.random.Generator) -> None:
    x, y = sample(gaussian(r, 4), 100, r), sample(gaussian(r, 4), 100, r)
    one = FrechetDistance(of(y)).update(x).compute().stderr
    both = FrechetDistance(of(y), reference_features=y).update(x).compute().stderr
    reverse = FrechetDistance(of(x)).update(y).compute().stderr
    assert one is not None and both is not None and reverse is not None
    assert both == pytest.approx(math.hypot(one, reverse), rel=1e-6)


def test_streams_merge(r: np.random.Generator) -> None:
    reference = gaussian(r, 5, n=1000)
    x = sample(gaussian(r, 5), 90, r).float()
    whole = FrechetDistance(reference, seed=1).update(x).compute()
    parts = FrechetDistance(reference, seed=1).update(x[:30]).merge(FrechetDistance(reference).update(x[30:])).compute()
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.extra["two_halves"] == pytest.approx(whole.extra["two_halves"], rel=1e-10)
    assert parts.n == 90 and parts.n_reference == 1000
    with pytest.raises(MetricError, match="kept no features"):
        FrechetDistance(reference).merge(FrechetDistance(reference, keep=False).update(x))


def test_few_images_warn_and_give_no_error_bar(r: np.random.Generator) -> None:
    x = sample(gaussian(r, 20), 10, r)
    estimate = FrechetDistance(gaussian(r, 20)).update(x).compute()
    assert estimate.stderr is None
    assert estimate.extra["rank"] == 9
    assert any("singular" in warning for warning in estimate.warnings)
    with pytest.raises(MetricError, match="more images"):
        frechet_influence(x, of(x), gaussian(r, 20))
    full = FrechetDistance(gaussian(r, 20)).update(sample(gaussian(r, 20), 4000, r)).compute()
    assert full.warnings == () and full.stderr is not None


def test_protocols_and_dimensions_must_agree(r: np.random.Generator) -> None:
    x, y = gaussian(r, 4), gaussian(r, 5)
    with pytest.raises(MetricError, match="dimension 4"):
        frechet_distance(x, y)
    adm = Card(protocol="adm", distance="FID", extractor="inception", layer="pool_3", dimension=4)
    clean = Card(protocol="clean", distance="FID", extractor="inception", layer="pool_3", dimension=4)
    a, b = Statistics(x.mean, x.covariance, card=adm), Statistics(x.mean, x.covariance, card=clean)
    with pytest.raises(MetricError, match="prepared differently"):
        frechet_distance(a, b)
    with pytest.raises(MetricError, match="prepared differently"):
        FrechetDistance(a, card=clean)
    assert FrechetDistance(a, splits=0, card=adm).update(sample(x, 9, r)).compute().name == "FID"


def test_corrections_say_what_they_need(r: np.random.Generator) -> None:
    law = gaussian(r, 3)
    x = sample(law, 3, r)
    with pytest.raises(MetricError, match="at least 4"):
        frechet_two_halves(x, of(x), law)
    with pytest.raises(MetricError, match="two sizes"):
        frechet_infinity(x, law, sizes=(2, 5))
    with pytest.raises(MetricError, match="unknown"):
        frechet_bias(law)
