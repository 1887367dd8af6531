"""Neighbours, precision, recall, density and coverage: by hand, against brute force, in tiles, with ties and copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from undiffuse.metrics import MetricError, PrecisionRecall, kth_neighbour, manifold_metrics, memorisation, nearest
from undiffuse.metrics.neighbours import Squares


def draw(n: int, dimension: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dimension)))


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def brute_force(samples: torch.Tensor, reference: torch.Tensor, k: int, k_density: int) -> dict[str, float]:
    def squares(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a[:, None] - b[None]).square().sum(dim=-1)

    cross = squares(samples, reference)
    radii = {n: squares(reference, reference).sort(dim=1).values[:, n] for n in (k, k_density)}
    own = squares(samples, samples).sort(dim=1).values[:, k]
    dense = cross < radii[k_density]
    return {
        "precision": float((cross <= radii[k]).any(dim=1).double().mean()),
        "recall": float((cross <= own[:, None]).any(dim=0).double().mean()),
        "density": float(dense.sum(dim=1).double().mean()) / k_density,
        "coverage": float(dense.any(dim=0).double().mean()),
    }


def values(*args: Any, **options: Any) -> dict[str, float]:
    return {name: estimate.value for name, estimate in manifold_metrics(*args, **options).items()}


@pytest.mark.parametrize("tile", [7, 50, 1000])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_against_brute_force(tile: int, precision: Any) -> None:
    samples, reference = draw(90), draw(70, seed=1) + 0.7
    found = values(samples, reference, k=3, k_density=5, tile=tile, precision=precision)
    assert found == pytest.approx(brute_force(samples, reference, 3, 5), rel=1e-12)
    assert 0.1 < found["precision"] < 0.95 and 0.1 < found["recall"] < 0.95


def test_points_on_a_line_with_ties() -> None:
    """Radii of 0, 1, 2, 10 to the first neighbour: 1, 1, 1, 8. A point on a radius is in, for density it is out."""
    found = values(points(3, 18, 19, -2), points(0, 1, 2, 10), k=1, k_density=1)
    assert found["precision"] == 3 / 4 - 1 / 4  # 3 and 18 are on an edge, 19 and -2 are outside
    assert found["density"] == 1 / 4  # 3 is inside the ball of 10, at distance 7 < 8
    assert found["coverage"] == 1 / 4
    assert kth_neighbour(points(0, 1, 2, 10), (1, 2))[:, 0].tolist() == [1, 1, 1, 64]
    assert kth_neighbour(points(0, 1, 2, 10), (1, 2))[:, 1].tolist() == [4, 1, 4, 81]


def test_recall_by_hand() -> None:
    """Balls of the samples 0, 1, 5 reach 1, 1, 4."""
    found = values(points(0, 1, 5), points(-1, 2, 9, 10), k=1, k_density=1)
    assert found["recall"] == 3 / 4


@pytest.mark.parametrize("precision", ["float32", "float64", "float16-emulated"])
def test_equal_and_distant_sets(precision: Any) -> None:
    x = draw(60)
    same = values(x, x, precision=precision)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert set(values(x, x + 1e2, precision=precision).values()) == {0}


def test_exchanged_sides_exchange_precision_and_recall() -> None:
    a, b = draw(50), 0.5 * draw(60, seed=1)
    there, back = values(a, b), values(b, a)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_copies_are_at_distance_zero(precision: Any, offset: float) -> None:
    """Six copies of each image: the third neighbour is at distance exactly 0, and copies are within it."""
    x = (draw(20, 40) + offset).float()
    many = x.repeat(6, 1)
    assert bool((kth_neighbour(many, 3, precision=precision) == 0).all())
    found = values(x, many, precision=precision, tile=9)
    assert found["precision"] == 1
    assert found["density"] == 0  # nothing is inside a ball of radius 0


def test_a_large_offset_does_not_matter() -> None:
    samples, reference = draw(90, 16), draw(70, 16, seed=1)
    expected = brute_force(samples, reference, 3, 5)
    assert values(samples + 300, reference + 300, precision="float32") == pytest.approx(expected, abs=0.03)


def test_an_outlier_does_not_blur_the_others() -> None:
    reference = torch.cat([1e-2 * draw(50, 3), torch.full((1, 3), 1e3)])
    samples = 1e-2 * draw(50, 3, seed=1)
    found = values(samples, reference, precision="float64")
    assert found == pytest.approx(brute_force(samples, reference.double(), 3, 5), rel=1e-12)


def test_coverage_and_density_of_equal_laws() -> None:
    """Coverage is 1 - prod_i (M - i) / (N + M - i), i = 1..k, for N samples of the law of M references; density 1."""
    n, m, k = 300, 200, 4
    found = [values(draw(n, 2, 2 * s), draw(m, 2, 2 * s + 1), k_density=k) for s in range(12)]
    expected = 1 - np.prod([(m - i) / (n + m - i) for i in range(1, k + 1)])
    coverage, density = ([f[name] for f in found] for name in ("coverage", "density"))
    assert np.mean(coverage) == pytest.approx(expected, abs=3.5 * np.std(coverage) / np.sqrt(11))
    assert np.mean(density) == pytest.approx(1, abs=3.5 * np.std(density) / np.sqrt(11) + 0.01)


def test_half_precision_is_coarse_and_falls_back() -> None:
    """Rounded distances are multiples of the half-precision step; where one overflows the tile is in float32."""
    x = 8 * draw(40, 16)
    rounded = Squares(x.float(), precision="float16-emulated").bounds(0, 0)
    assert torch.equal(rounded, rounded.half().float())
    exact = (x[:, None] - x[None]).square().sum(dim=-1)
    assert 0 < float((rounded - exact).abs().max()) < 8
    large = torch.cat([x, torch.full((1, 16), 200.0)])
    whole = Squares(large.float(), precision="float16-emulated").bounds(0, 0)
    assert not torch.equal(whole, whole.half().float())
    assert bool(torch.isfinite(whole).all())


def test_standard_errors_are_those_of_shares() -> None:
    estimate = manifold_metrics(draw(90), draw(70, seed=1) + 0.7)["precision"]
    p = estimate.value
    assert estimate.stderr == pytest.approx((p * (1 - p) / 89) ** 0.5)
    assert any("small sets" in warning for warning in estimate.warnings)


def test_streams_merge_in_any_split() -> None:
    samples, reference = draw(90).float(), draw(70, seed=1).float()
    one = PrecisionRecall(reference, k=2).update(samples).compute()
    other = PrecisionRecall(reference, k=2).update(samples[:11])
    other.merge(PrecisionRecall(reference, k=2).update(samples[11:]))
    assert {n: e.value for n, e in other.compute().items()} == {n: e.value for n, e in one.items()}
    assert one["precision"].settings["k"] == 2


def test_too_few_images_and_wrong_input() -> None:
    with pytest.raises(MetricError, match="more than 5 images, the reference has 5"):
        manifold_metrics(draw(10), draw(5))
    with pytest.raises(MetricError, match="more than 3 images, the samples has 3"):
        manifold_metrics(draw(3), draw(10))
    with pytest.raises(MetricError, match="dimension 5"):
        manifold_metrics(draw(10), draw(10, 4))
    with pytest.raises(MetricError, match="at least 1"):
        manifold_metrics(draw(10), draw(10), k=0)
    with pytest.raises(MetricError, match="unknown precision"):
        manifold_metrics(draw(10), draw(10), precision="bfloat16")  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="more than 4"):
        kth_neighbour(draw(4), 4)


@pytest.mark.parametrize("tile", [7, 1000])
def test_nearest_neighbours(tile: int) -> None:
    x, y = draw(30), draw(40, seed=1)
    squares = (x[:, None] - y[None]).square().sum(dim=-1)
    found = nearest(x, y, precision="float64", tile=tile)
    assert torch.equal(found.row, squares.argmin(dim=1))
    torch.testing.assert_close(found.squared, squares.min(dim=1).values)


def test_memorisation_tells_copies_from_fresh_images() -> None:
    training, held_out, fresh = draw(150), draw(100, seed=1), draw(120, seed=2)
    # 100 training images, evenly spaced from the first to the last, are compared with: these two are among them.
    copies = memorisation(training[::149] + 1e-3, training, held_out)
    assert copies["authentic"].value == 0
    assert copies["closer_to_train"].value == 1
    assert copies["copies"].value == 0
    assert memorisation(training[:50], training)["copies"].value == 1
    honest = memorisation(fresh, training, held_out)
    error = honest["closer_to_train"].stderr
    assert error is not None
    assert abs(honest["closer_to_train"].value - 0.5) < 4 * error
    assert 0.35 < honest["authentic"].value < 0.65
    assert honest["closer_to_train"].n_reference == 100
    assert memorisation(held_out[:3] * 0 + 7, training, training)["closer_to_train"].value == 0.5
    with pytest.raises(MetricError, match="no samples"):
        memorisation(fresh[:0], training)


@pytest.mark.parametrize("larger", ["training", "held_out"])
def test_sets_that_are_sorted_by_class_are_compared_over_all_classes(larger: str) -> None:
    """Folders are read class by class; the first images of the larger set would be of one class only."""

    def of_classes(each: int, seed: int) -> torch.Tensor:
        return torch.cat([draw(each, seed=seed + k) + 100 * k for k in range(4)])

    few, many, fresh = of_classes(40, 0), of_classes(160, 10), of_classes(40, 20)
    pair = (many, few) if larger == "training" else (few, many)
    found = memorisation(fresh, *pair)["closer_to_train"]
    assert found.n_reference == 160
    assert found.stderr is not None
    assert abs(found.value - 0.5) < 4 * found.stderr
