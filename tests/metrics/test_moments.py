"""Streaming moments: any batches, order and number of processes give the moments of two passes over all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from undiffuse.metrics import Card, FeatureStore, MetricError, Moments, Statistics
from undiffuse.metrics import moments as module


def draw(n: int = 300, dimension: int = 7, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    r = np.random.default_rng(seed)
    return torch.from_numpy(offset + r.standard_normal((n, dimension)) @ r.standard_normal((dimension, dimension)))


def two_passes(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return x.double().numpy().mean(axis=0), np.cov(x.double().numpy(), rowvar=False)


def check(found: Statistics, x: torch.Tensor, tolerance: float = 1e-12) -> None:
    mean, covariance = two_passes(x)
    assert found.n == len(x)
    np.testing.assert_allclose(found.mean, mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.covariance, covariance, rtol=tolerance, atol=tolerance * np.abs(covariance).max())


@pytest.mark.parametrize("sizes", [(300,), (1, 299), (100, 100, 100), (1,) * 300, (7, 0, 93, 200)])
def test_any_batches(sizes: tuple[int, ...]) -> None:
    x = draw()
    moments = Moments()
    for part in x.split(list(sizes)):
        moments.update(part)
    check(moments.statistics(), x)


def test_any_order() -> None:
    x = draw()
    a = Moments().update(x).statistics()
    b = Moments().update(x.flip(0)[:100]).update(x.flip(0)[100:]).statistics()
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_any_number_of_processes_and_any_association(ranks: int) -> None:
    x = draw()
    parts = [Moments().update(x[rank::ranks]) for rank in range(ranks)]
    left = Moments()
    for part in parts:
        left.merge(part)
    check(left.statistics(), x)
    right = Moments(x.shape[1])
    for part in reversed(parts):
        right = Moments.from_state_dict(part.state_dict()).merge(right)
    check(right.statistics(), x)


def test_merging_leaves_the_other_alone() -> None:
    a, b = Moments().update(draw(seed=1)), Moments().update(draw(seed=2))
    before = {name: tensor.clone() for name, tensor in b.state_dict().items()}
    empty = Moments().merge(b)
    empty.merge(a).update(draw(seed=3))
    assert all(torch.equal(before[name], tensor) for name, tensor in b.state_dict().items())


def test_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows at once than there are, which is so of real features."""
    monkeypatch.setattr(module, "ROWS", 50)
    x = draw()
    check(Moments().update(x[:120]).merge(Moments().update(x[120:])).statistics(), x)


def test_a_large_offset_cancels_nothing() -> None:
    x = draw(dimension=3).float() + 1e4
    moments = Moments()
    for part in x.split(11):
        moments.update(part)
    check(moments.statistics(), x)


def test_taking_away_what_was_seen() -> None:
    x = draw(offset=1e3)
    x[:, 2] = 5
    whole, some = Moments().update(x), Moments().update(x[::3])
    rest = torch.cat([x[1::3], x[2::3]])
    check(whole.without(some).statistics(), rest)
    check(Moments.from_statistics(whole.statistics(), 300).without(some).statistics(), rest)
    assert float(whole.without(some).scatter[2, 2]) == 0  # and never below
    assert whole.without(whole).n == 0
    with pytest.raises(MetricError, match="cannot be taken away"):
        some.without(whole)


def test_a_restart_changes_nothing() -> None:
    x = draw()
    whole = Moments().update(x[:100]).update(x[100:])
    half = Moments.from_state_dict(Moments().update(x[:100]).state_dict()).update(x[100:])
    assert torch.equal(whole.statistics().covariance, half.statistics().covariance)


def test_half_precision_features_are_accepted() -> None:
    x = draw().half()
    check(Moments().update(x).statistics(), x)


def test_memory_does_not_grow() -> None:
    moments = Moments()
    for seed in range(5):
        moments.update(draw(seed=seed))
    assert sum(tensor.numel() for tensor in moments.state_dict().values()) == 1 + 7 + 49


@pytest.mark.parametrize("n", [0, 1])
def test_no_covariance_of_fewer_than_two(n: int) -> None:
    with pytest.raises(MetricError, match="at least 2"):
        Moments(3).update(torch.ones(n, 3)).statistics()


def test_dimensions_must_agree() -> None:
    with pytest.raises(MetricError, match="dimension 3"):
        Moments(3).update(torch.ones(2, 4))
    with pytest.raises(MetricError, match="cannot be merged"):
        Moments(3).merge(Moments().update(torch.ones(2, 4)))


def test_a_broken_image_is_named() -> None:
    x = draw()
    x[140, 3] = float("nan")
    moments = Moments().update(x[:100])
    with pytest.raises(MetricError, match="image 140"):
        moments.update(x[100:])
    assert moments.n == 100
    x[140, 3] = float("inf")
    with pytest.raises(MetricError, match="1 of 300"):
        Moments().update(x)


def test_large_but_finite_numbers_pass() -> None:
    x = torch.full((3, 2), 3e38)
    assert Moments().update(x).n == 3


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(2), torch.eye(3), "were expected"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not a covariance"),
        (torch.zeros(2), -torch.eye(2), "not a covariance"),
        (torch.zeros(2), torch.eye(2) * float("nan"), "NaN"),
        (torch.zeros(2, 2), torch.eye(2), "were expected"),
    ],
)
def test_statistics_of_a_file_are_checked(mean: torch.Tensor, covariance: torch.Tensor, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        Statistics(mean, covariance)


def test_the_factor_gives_the_covariance_and_knows_the_rank() -> None:
    few = Moments().update(draw(4)).statistics()
    assert few.factor.shape == (7, 3)
    torch.testing.assert_close(few.factor @ few.factor.T, few.covariance, rtol=1e-9, atol=1e-9)
    full = Moments().update(draw()).statistics()
    assert full.triangle is not None and full.factor is full.triangle
    torch.testing.assert_close(full.factor @ full.factor.T, full.covariance, rtol=1e-12, atol=1e-12)
    assert few.triangle is None


@pytest.mark.parametrize("scale", [0.0, 1e-7])
def test_a_nearly_singular_covariance_is_factored_by_its_spectrum(scale: float) -> None:
    """A column that is another one but for a millionth, or altogether."""
    x = draw()
    x[:, 1] = x[:, 0] + scale * x[:, 1]
    statistics = Moments().update(x).statistics()
    assert statistics.triangle is None
    torch.testing.assert_close(statistics.factor @ statistics.factor.T, statistics.covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [4, 300])
def test_eigenvalues_with_and_without_vectors(n: int) -> None:
    alone, both = (Moments().update(draw(n)).statistics() for _ in range(2))
    values = alone.eigenvalues
    assert "spectrum" not in alone.__dict__
    torch.testing.assert_close(values, both.spectrum[0], rtol=1e-12, atol=1e-12)
    assert both.eigenvalues is both.spectrum[0]


def test_a_store_keeps_order_and_copies() -> None:
    x = draw().float()
    store = FeatureStore()
    batch = x[:100].clone()
    store.update(batch)
    batch.zero_()
    store.merge(FeatureStore().update(x[100:]))
    assert torch.equal(store.features(), x)
    assert len(store) == 300
    with pytest.raises(MetricError, match="never called"):
        FeatureStore().features()


def test_stores_and_moments_of_other_protocols_do_not_merge() -> None:
    a = Card(protocol="adm", distance="FID", extractor="inception", layer="pool_3", dimension=7)
    b = Card(protocol="clean", distance="FID", extractor="inception", layer="pool_3", dimension=7)
    for kind in (Moments, FeatureStore):
        with pytest.raises(MetricError, match="'clean' against 'adm'"):
            kind(card=a).merge(kind(card=b).update(draw().float()))  # type: ignore[arg-type]
