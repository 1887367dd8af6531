"""Exact distances by a rough filter: the bound holds for every pair, and every answer is that of float64 throughout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from undiffuse.metrics import filtered, kth_neighbour, manifold_metrics, nearest
from undiffuse.metrics.filtered import FilteredSquares
from undiffuse.metrics.neighbours import Squares
from undiffuse.metrics.pairs import best_of_rows, keep_smallest, where_true

PRODUCTS = [torch.bfloat16, torch.float32]


def draw(kind: str, n: int, dimension: int, seed: int) -> torch.Tensor:
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, dimension))
    if kind == "integers":
        x = r.integers(0, 4, (n, dimension)).astype(float)
    elif kind == "copies":
        x = x[r.integers(0, n // 3, n)]
    elif kind == "offset":
        x = x + 1000
    elif kind == "outlier":
        x = 1e-2 * x
        x[0] += 1e3
    elif kind == "tiny":
        x = 1e-30 * x
    elif kind == "tiny beside one":
        x = 1e-25 * x
        x[0] += 1
    elif kind == "huge":
        x = 1e36 * x
    elif kind == "sparse":
        x = x.clip(0) * (r.random((n, dimension)) < 0.2)
    elif kind == "scales":
        x = x * np.logspace(-6, 6, dimension)
    elif kind == "equal":
        x = 0 * x + 2
    return torch.from_numpy(x.astype("float32"))


KINDS = ["normal", "integers", "copies", "offset", "outlier", "tiny", "tiny beside one", "huge", "sparse", "scales"]
KINDS += ["equal"]


def squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.double()[:, None] - y.double()[None]).square().sum(dim=-1)


@pytest.fixture(params=PRODUCTS, ids=str)
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(filtered, "_fast_type", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [1, 300])
def test_no_bound_exceeds_its_distance(kind: str, dimension: int, product: torch.dtype) -> None:
    """A limit of exactly a pair's distance is never below the pair's bound, rough or fine."""
    x, y = draw(kind, 90, dimension, 1), draw(kind, 70, dimension, 2)
    y[:20] = x[:20] + draw(kind, 20, dimension, 3) / 100
    tiles = FilteredSquares(x, y, 1000)
    measured = squares(x, y)
    for bounds in (tiles.bounds(0, 0), tiles.bounds(0, 0, 1)):
        assert bounds.dtype in (product, torch.float64)
        limits = tiles.limits(measured.flatten(), bounds).view(measured.shape)
        assert bool((bounds.double() <= limits.double()).all())


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_bound_is_near(product: torch.dtype) -> None:
    """Of ordinary features it is below the distance by some parts in a thousand, the fine one by parts in 10^12."""
    x, y = draw("normal", 200, 500, 1), draw("normal", 150, 500, 2)
    tiles = FilteredSquares(x, y, 1000, product)
    halves = squares(x, y) * tiles.scale**2 / 2
    assert float((1 - tiles.bounds(0, 0).double() / halves).max()) < 0.015
    assert float((1 - tiles.bounds(0, 0, 1) / halves).max()) < 1e-11


@pytest.mark.parametrize(("kind", "tile"), [*((kind, 48) for kind in KINDS), ("normal", 33), ("copies", 1000)])
def test_every_answer_is_that_of_float64(kind: str, tile: int, product: torch.dtype) -> None:
    dimension = 7 if kind == "integers" else 40
    x, y = draw(kind, 100, dimension, 1), draw(kind, 75, dimension, 2)
    y[:10] = x[:10]
    own, others, cross = (s.sort(dim=1).values for s in (squares(x, x), squares(y, y), squares(x, y)))
    # Sums in another order: relative to the distance, so ties stay ties.
    options = {"rtol": 1e-14, "atol": 0.0}
    torch.testing.assert_close(kth_neighbour(x, (1, 4), precision="exact", tile=tile), own[:, [1, 4]], **options)
    found = nearest(x, y, precision="exact", tile=tile)
    torch.testing.assert_close(found.squared, cross[:, 0], **options)
    between = squares(x, y)
    assert bool((between[torch.arange(100), found.row] <= cross[:, 0] * (1 + 1e-14)).all())
    values = {
        "precision": (between <= others[:, 3]).any(dim=1).double().mean(),
        "recall": (between <= own[:, 3, None]).any(dim=0).double().mean(),
        "density": (between < others[:, 5]).sum(dim=1).double().mean() / 5,
        "coverage": (between < others[:, 5]).any(dim=0).double().mean(),
    }
    metrics = manifold_metrics(x, y, precision="exact", tile=tile)
    assert {name: e.value for name, e in metrics.items()} == {n: pytest.approx(float(v)) for n, v in values.items()}


def test_float64_features_and_mixed_ones() -> None:
    x, y = draw("normal", 60, 9, 1).double() + 1e-9, draw("normal", 50, 9, 2)
    torch.testing.assert_close(nearest(x, y, precision="exact").squared, squares(x, y).amin(dim=1), rtol=1e-14, atol=0)
    torch.testing.assert_close(nearest(y, x, precision="exact").squared, squares(x, y).amin(dim=0), rtol=1e-14, atol=0)


def test_where_rough_bounds_rule_out_nothing_finer_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points near each other and far from their centre: bfloat16 cannot tell them apart, float64 can."""
    x, y = draw("outlier", 200, 12, 1), draw("outlier", 150, 12, 2)
    measured: list[int] = []
    original = FilteredSquares.measure

    def counting(self, bounds, i, j, rows, columns):  # type: ignore[no-untyped-def]
        measured.append(len(rows))
        return original(self, bounds, i, j, rows, columns)

    monkeypatch.setattr(FilteredSquares, "measure", counting)
    nearest(x, y, precision="exact")
    assert sum(measured) < 0.05 * 200 * 150
    rough = FilteredSquares(x, y, 1000)
    limits = squares(x, y).amin(dim=1)
    assert len(where_true(rough.near(rough.bounds(0, 0), limits, None))[0]) > 0.9 * 200 * 150


def test_few_pairs_are_measured(product: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    original = FilteredSquares.measure

    def counting(self, bounds, i, j, rows, columns):  # type: ignore[no-untyped-def]
        measured.append(len(rows))
        return original(self, bounds, i, j, rows, columns)

    monkeypatch.setattr(FilteredSquares, "measure", counting)
    kth_neighbour(draw("normal", 1500, 200, 1), 3, precision="exact", tile=500)
    assert sum(measured) < 25 * 1500


@pytest.mark.parametrize("precision", ["exact", "float32", "float64", "float16-emulated"])
def test_tiles_find_what_they_promise(precision: str) -> None:
    x, y = draw("normal", 60, 8, 1), draw("normal", 48, 8, 2)
    tiles = FilteredSquares(x, y, 16) if precision == "exact" else Squares(x, y, precision=precision, tile=16)  # type: ignore[arg-type]
    measured = squares(x, y)
    pairs = tiles.smallest(16, 32, 3)
    best = torch.full((60, 3), torch.inf, dtype=tiles.dtype)
    keep_smallest(best, pairs.rows, pairs.squared)
    expected = measured[16:32, 32:48].sort(dim=1).values[:, :3]
    tolerance = 0.02 if precision == "float16-emulated" else 1e-5
    torch.testing.assert_close(best[16:32].double(), expected, rtol=tolerance, atol=tolerance)
    assert bool(torch.isinf(best[:16]).all() and torch.isinf(best[32:]).all())
    rows, columns = torch.full((60,), 4.0, dtype=tiles.dtype), torch.full((48,), -1.0, dtype=tiles.dtype)
    rows[20], columns[40] = -1, 9
    wanted = (measured <= 3.9) & (torch.arange(60) != 20)[:, None]
    wanted[:, 40] |= measured[:, 40] <= 8.9
    pairs = tiles.within(16, 32, rows, columns)
    found = torch.zeros(60, 48, dtype=torch.bool)
    found[pairs.rows, pairs.columns] = True
    assert bool((found[16:32, 32:48] >= wanted[16:32, 32:48]).all())
    assert int(found.sum()) == len(pairs.rows) <= 1.5 * int(wanted[16:32, 32:48].sum()) + 1
    assert not found[20, :40].any()


def test_places_of_pairs() -> None:
    for width in (5, 8, 24):
        mask = torch.from_numpy(np.random.default_rng(0).random((30, width)) < 0.1)
        assert torch.equal(torch.stack(where_true(mask)), mask.nonzero().T)


def test_the_smallest_are_kept_and_ties_go_to_the_first() -> None:
    best = torch.tensor([[1.0, 5.0], [2.0, 2.0], [7.0, torch.inf]])
    keep_smallest(best, torch.tensor([2, 0, 2, 0, 2]), torch.tensor([9.0, 4.0, 3.0, 6.0, 7.0]))
    assert best.tolist() == [[1, 4], [2, 2], [3, 7]]
    keep_smallest(best, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert best.tolist() == [[1, 4], [2, 2], [3, 7]]
    from undiffuse.metrics.pairs import Pairs

    rows, columns = torch.tensor([1, 1, 1, 4]), torch.tensor([3, 5, 6, 0])
    found = best_of_rows(Pairs(rows, columns, torch.tensor([2.0, 1.0, 1.0, 8.0])))
    assert [t.tolist() for t in found] == [[1, 4], [5, 0], [1, 8]]
