"""KID, CMMD, the Vendi score and class accuracy: double loops, identities, expectations, merging."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undiffuse.metrics import (
    Card,
    ClassAccuracy,
    KernelDistance,
    MetricError,
    VendiScore,
    cmmd,
    kid,
    kid_subsets,
)
from undiffuse.metrics import kernel_distance as module


def draw(n: int, dimension: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dimension)))


def test_kid_by_a_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(5), draw(7, seed=1) + 0.5

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 4 + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(k(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / 42
    xy = sum(k(a, b) for a in x for b in y) / 35
    for tile in (2, 3, 100):
        monkeypatch.setattr(module, "TILE", tile)
        assert kid(x, y).value == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_kid_has_expectation_zero_for_one_law() -> None:
    found = [kid(draw(20, seed=2 * s), draw(25, seed=2 * s + 1)).value for s in range(150)]
    assert abs(np.mean(found)) < 3.5 * np.std(found) / math.sqrt(150)
    assert min(found) < 0


def test_the_standard_error_of_kid_against_monte_carlo() -> None:
    estimates = [kid(draw(150, seed=2 * s) + 0.5, draw(100, seed=2 * s + 1)) for s in range(60)]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert np.mean([e.stderr for e in estimates]) == pytest.approx(spread, rel=0.3)


def test_kid_of_subsets() -> None:
    x, y = draw(100), draw(130, seed=1) + 0.3
    disjoint = kid_subsets(x, y, size=20)
    assert disjoint.extra["subsets"] == 5
    assert disjoint.stderr == pytest.approx(disjoint.extra["std"] / math.sqrt(5))
    overlapping = kid_subsets(x, y, size=50, subsets=200)
    assert overlapping.stderr is None
    assert overlapping.value == pytest.approx(kid(x, y).value, abs=3.5 * overlapping.extra["std"] / math.sqrt(200))
    assert kid_subsets(x, y, size=20, seed=1).value != disjoint.value
    assert kid_subsets(x, y, size=20).value == disjoint.value
    whole = kid_subsets(x[:50], y[:50], size=50)
    assert whole.value == pytest.approx(kid(x[:50], y[:50]).value, rel=1e-12)
    assert whole.stderr is None
    with pytest.raises(MetricError, match="subsets of 101"):
        kid_subsets(x, y, size=101)


def test_cmmd_by_brute_force_and_of_equal_sets() -> None:
    x, y = draw(9), draw(11, seed=1) + 0.5
    u, v = (z / z.norm(dim=1, keepdim=True) for z in (x, y))

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((-(a[:, None] - b[None]).square().sum(dim=-1) / 200).exp().mean())

    assert cmmd(x, y).value == pytest.approx(1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v)), rel=1e-8)
    assert cmmd(x, 3 * x).value == pytest.approx(0, abs=1e-9)
    with pytest.raises(MetricError, match="length zero"):
        cmmd(x, torch.zeros(5, 4))


def test_kernel_distances_stream_and_are_named_by_their_features() -> None:
    card = Card(protocol="efflite", distance="FD-efflite", extractor="efflite", layer="pool", dimension=4)
    x, y = draw(30).float(), draw(20, seed=1).float()
    metric = KernelDistance(y, kid, card=card).update(x[:10]).merge(KernelDistance(y, kid, card=card).update(x[10:]))
    assert metric.compute().value == kid(x, y).value
    assert metric.compute().name == "KD-efflite"
    assert KernelDistance(y, cmmd, card=card, sigma=2.0).update(x).compute().name == "MMD-efflite"
    with pytest.raises(MetricError, match="at least 2"):
        kid(x[:1], y)


def like_pool(n: int, shift: float, seed: int) -> torch.Tensor:
    """Features like Inception's: not negative, correlated, of a mean that is large beside the distances."""
    draw = np.random.default_rng(seed)
    basis = 0.15 * np.random.default_rng(9).standard_normal((32, 256))
    spread = draw.standard_normal((n, 32)) @ basis + 0.3 * draw.standard_normal((n, 256))
    return torch.from_numpy((0.4 + shift + spread).clip(0)).float()


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.3])
def test_float32_features_give_the_digits_of_float64(shift: float) -> None:
    """Tiles in float32 move KID by millionths of its error, and CMMD by millionths of itself, even near 0."""
    x, y = like_pool(700, 0.0, 1), like_pool(600, shift, 2)
    single, double = kid(x, y), kid(x.double(), y.double())
    assert double.stderr is not None
    assert single.value == pytest.approx(double.value, rel=0, abs=1e-5 * double.stderr)
    assert single.stderr == pytest.approx(double.stderr, rel=1e-4)
    single, double = cmmd(x, y), cmmd(x.double(), y.double())
    assert single.value == pytest.approx(double.value, rel=2e-6)
    assert kid(x, y.double()).value == pytest.approx(kid(x, y).value, rel=1e-12)


def test_kid_is_called_as_the_frechet_distance_is() -> None:
    x, y = draw(9), draw(8, seed=1)
    for distance, name in (("FID", "KID"), ("clean-FID", "clean-KID"), ("FD-inception", "KD-inception")):
        card = Card(protocol="p", distance=distance, extractor="inception-2015-12-05", layer="pool_3", dimension=4)
        assert kid(x, y, card=card).name == name
        assert kid_subsets(x, y, size=5, card=card).name == name
        assert cmmd(x, y, card=card).name == f"MMD-{distance.removeprefix('FD-')}"
    assert kid(x, y).name == "KD"


def test_vendi_closed_forms() -> None:
    assert VendiScore().update(draw(1).repeat(9, 1)).compute().value == pytest.approx(1, rel=1e-9)
    assert VendiScore().update(3 * torch.eye(6)).compute().value == pytest.approx(6, rel=1e-12)
    assert VendiScore().update(torch.eye(6)[[0, 0, 0, 1, 1, 1]]).compute().value == pytest.approx(2, rel=1e-12)
    for order in (0.5, 2, math.inf):
        assert VendiScore(order).update(torch.eye(6)[[0, 1, 2]]).compute().value == pytest.approx(3, rel=1e-6)
    uneven = torch.eye(2)[[0, 0, 0, 1]]
    assert VendiScore(2).update(uneven).compute().value == pytest.approx(1 / (9 / 16 + 1 / 16))
    assert VendiScore(math.inf).update(uneven).compute().value == pytest.approx(4 / 3)


@pytest.mark.parametrize("n", [3, 20])
def test_vendi_by_the_similarities_themselves(n: int) -> None:
    x = draw(n, 7)
    u = x / x.norm(dim=1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(u @ u.T / n).clamp(min=1e-300)
    expected = math.exp(-float((eigenvalues * eigenvalues.log()).sum()))
    assert VendiScore().update(x).compute().value == pytest.approx(expected, rel=1e-9)
    merged = VendiScore().update(x[:2]).merge(VendiScore().update(x[2:])).compute()
    assert merged.value == pytest.approx(expected, rel=1e-9)
    assert merged.n == n


def test_vendi_refuses_what_has_no_direction() -> None:
    with pytest.raises(MetricError, match="image 4"):
        VendiScore().update(draw(3)).update(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(MetricError, match="no image"):
        VendiScore().compute()
    with pytest.raises(MetricError, match="positive"):
        VendiScore(0)


def test_accuracy_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [5, 4, 0]])
    labels = torch.tensor([0, 1, 1, 1])
    estimate = (
        ClassAccuracy().update(logits[:1], labels[:1]).merge(ClassAccuracy().update(logits[1:], labels[1:])).compute()
    )
    assert estimate.value == 0.5
    assert estimate.stderr == pytest.approx(0.25)
    assert estimate.extra == {"class_0": 1, "class_1": pytest.approx(1 / 3), "balanced": pytest.approx(2 / 3)}
    assert any("2 of 3 classes" in warning for warning in estimate.warnings)
    assert ClassAccuracy(2).update(logits, labels).compute().value == 1


def test_a_classifier_without_opinion_is_never_right() -> None:
    assert ClassAccuracy().update(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).compute().value == 0


def test_accuracy_refuses_wrong_labels() -> None:
    for labels in (torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([0.0, 1.0])):
        with pytest.raises(MetricError, match="class number"):
            ClassAccuracy().update(torch.zeros(2, 3), labels)
    with pytest.raises(MetricError, match="everything is right"):
        ClassAccuracy(3).update(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(MetricError, match="no image"):
        ClassAccuracy().compute()


def test_unequal_classes_warn() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1])
    assert any("frequent" in w for w in ClassAccuracy().update(torch.eye(2)[labels], labels).compute().warnings)
