"""The Inception Score: closed forms, chunks in file order, underflow, several processes, its standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undiffuse.metrics import InceptionScore, MetricError


def direct(logits: np.ndarray, chunk: int) -> list[float]:
    """Scores of the chunks by the definition."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    parts = [p[i : i + chunk] for i in range(0, len(p), chunk)]
    return [math.exp((part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1).mean()) for part in parts]


def draw(n: int, classes: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(2 * np.random.default_rng(seed).standard_normal((n, classes)))


def test_one_hot_uniform_gives_the_number_of_classes() -> None:
    estimate = InceptionScore().update(1e4 * torch.eye(7).repeat(10, 1)).compute()
    assert estimate.value == pytest.approx(7, rel=1e-12)
    assert estimate.stderr == pytest.approx(0, abs=1e-6)


def test_equal_images_give_one() -> None:
    assert InceptionScore().update(draw(1).repeat(20, 1)).compute().value == pytest.approx(1, rel=1e-12)


def test_three_images_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    mean = p.mean(dim=0)
    kl = sum(float(torch.xlogy(row, row / mean).sum()) for row in p) / 3
    logits = torch.where(p > 0, p, 1.0).log().masked_fill(p == 0, -1e5)
    assert InceptionScore().update(logits).compute().value == pytest.approx(math.exp(kl), rel=1e-12)


@pytest.mark.parametrize("n", [49, 50, 51, 123])
def test_chunks_are_consecutive_and_the_last_may_be_short(n: int) -> None:
    logits = draw(n)
    score = InceptionScore(50)
    for part in logits.split(17):
        score.update(part)
    expected = direct(logits.numpy(), 50)
    estimate = score.compute()
    assert estimate.value == pytest.approx(np.mean(expected), rel=1e-10)
    assert estimate.extra["std"] == pytest.approx(np.std(expected), abs=1e-10)
    assert estimate.extra["chunks"] == len(expected)


def test_the_original_number_of_images_a_chunk() -> None:
    logits = draw(5001, 2)
    assert InceptionScore().update(logits).compute().value == pytest.approx(np.mean(direct(logits.numpy(), 5000)))


def test_shared_images_merge_by_position() -> None:
    logits = draw(123)
    parts = [InceptionScore(50).update(logits[rank::3], range(rank, 123, 3)) for rank in range(3)]
    merged = InceptionScore(50).merge(parts[2]).merge(parts[0]).merge(parts[1]).compute()
    whole = InceptionScore(50).update(logits).compute()
    assert merged.value == pytest.approx(whole.value, rel=1e-12)
    assert merged.stderr == pytest.approx(whole.stderr, rel=1e-6)
    assert not any("positions" in warning for warning in merged.warnings)


def test_positions_given_twice_are_an_error() -> None:
    with pytest.raises(MetricError, match="given twice"):
        InceptionScore(50).update(draw(40)).merge(InceptionScore(50).update(draw(40)))
    with pytest.raises(MetricError, match="chunks of"):
        InceptionScore(50).merge(InceptionScore(60))
    with pytest.raises(MetricError, match="one position"):
        InceptionScore().update(draw(3), [0, 1])


def test_missing_positions_warn() -> None:
    estimate = InceptionScore(50).update(draw(60), range(100, 160)).compute()
    assert any("positions are missing" in warning for warning in estimate.warnings)


def test_standard_error_against_monte_carlo() -> None:
    estimates = [InceptionScore(400).update(draw(400, seed=seed)).compute() for seed in range(80)]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert np.mean([e.stderr for e in estimates]) == pytest.approx(spread, rel=0.3)


def test_few_images_warn() -> None:
    assert any("depends" in w for w in InceptionScore().update(draw(20)).compute().warnings)
    assert InceptionScore().update(draw(1)).compute().stderr is None


def test_no_image_has_no_score() -> None:
    with pytest.raises(MetricError, match="no image"):
        InceptionScore().compute()
    with pytest.raises(MetricError, match="NaN"):
        InceptionScore().update(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(MetricError, match="dimension 6"):
        InceptionScore().update(draw(3)).update(draw(3, 5))
