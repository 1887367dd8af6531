"""The classifier two-sample test: calibrated without a difference, right about planted ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undiffuse.metrics import MetricError, c2st, paired_error
from undiffuse.metrics import two_sample as module


def draw(n: int, dimension: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dimension)))


def test_without_a_difference_it_is_right_half_of_the_time() -> None:
    """Its p values are uniform enough: 5 % of them are below 0.05, and the interval mostly holds 1/2."""
    found = [c2st(draw(80, seed=2 * s), draw(120, seed=2 * s + 1), seed=s) for s in range(200)]
    values = np.array([e.value for e in found])
    assert abs(values.mean() - 0.5) < 4 * values.std() / math.sqrt(200)
    assert 0.01 <= np.mean([e.extra["p"] < 0.05 for e in found]) <= 0.09
    assert np.mean([e.extra["low"] <= 0.5 <= e.extra["high"] for e in found]) >= 0.88
    assert np.mean([e.stderr for e in found]) == pytest.approx(values.std(ddof=1), rel=0.25)


def test_a_shift_is_found_as_often_as_the_best_classifier_finds_it() -> None:
    """Of N(0, 1) and N(d, 1) the best classifier is right Phi(d / 2) of the time."""
    x, y = draw(3000), draw(4000, seed=1)
    x[:, 2] += 1.0
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    found = c2st(x, y)
    assert found.value == pytest.approx(best, abs=3 * float(found.stderr or 0))
    assert found.extra["p"] < 1e-6
    assert found.extra["low"] < best < found.extra["high"]


def test_a_difference_of_spreads_alone_is_found() -> None:
    x, y = draw(1500), draw(1500, seed=1)
    x[:, 0] *= 1.7
    assert c2st(x, y).extra["p"] < 1e-4


def test_without_absolute_values_spreads_would_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_inputs", module._standardised)
    x, y = draw(1500), draw(1500, seed=1)
    x[:, 0] *= 1.7
    assert c2st(x, y).extra["p"] > 1e-3


def test_more_features_than_images_do_not_make_a_difference() -> None:
    """Features of a large network: the penalty keeps the classifier from learning the images by heart."""
    found = c2st(draw(60, 200), draw(80, 200, seed=1))
    assert found.extra["p"] > 0.01
    x = draw(150, 200)
    x[:, :40] += 1
    assert c2st(x, draw(150, 200, seed=1)).value > 0.9


def test_the_sides_count_the_same() -> None:
    """A classifier that always says "reference" would be right 10 times in 11."""
    assert c2st(draw(100), draw(1000, seed=1)).value == pytest.approx(0.5, abs=0.15)


def test_it_does_not_depend_on_units_and_constant_features() -> None:
    x, y = draw(80), draw(90, seed=1) + 0.3
    scale = torch.tensor([1e-4, 1.0, 1e5, 1.0, 1.0, 1.0], dtype=torch.float64)
    other = c2st(torch.cat([x * scale, torch.ones(80, 1)], 1), torch.cat([y * scale, torch.ones(90, 1)], 1))
    assert other.value == pytest.approx(c2st(x, y).value, abs=0.02)


def test_the_leave_one_out_errors_by_refitting() -> None:
    """The chosen penalty is the one that a loop over left-out images would choose."""
    x, is_sample = draw(24, 3), torch.arange(24) < 10
    x[is_sample, 0] += 0.5
    weight = torch.where(is_sample, 0.5 / 10, 0.5 / 14).double()
    target = torch.where(is_sample, 1.0, -1.0).double()
    losses = []
    for penalty in module._PENALTIES:
        center = weight @ x
        rows = x - center
        square = rows.T @ (weight[:, None] * rows)
        damp = penalty * torch.linalg.eigvalsh(square).mean() * torch.eye(3, dtype=torch.float64)
        loss = 0.0
        for i in range(24):
            keep = torch.arange(24) != i
            w, r = weight[keep], rows[keep]
            a = r.T @ (w[:, None] * r) + damp
            offset = w @ r / w.sum()
            mean = w @ target[keep] / w.sum()
            a = a - w.sum() * torch.outer(offset, offset)  # the mean is fitted without a penalty
            beta = torch.linalg.solve(a, r.T @ (w * target[keep]) - w.sum() * offset * mean)
            loss += float(weight[i] * (target[i] - mean - (rows[i] - offset) @ beta) ** 2)
        losses.append(loss)
    best = module._PENALTIES[int(np.argmin(losses))]
    scores = module._fit(x, is_sample, x)
    center = weight @ x
    rows = x - center
    square = rows.T @ (weight[:, None] * rows)
    damp = best * torch.linalg.eigvalsh(square).mean() * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(scores, rows @ torch.linalg.solve(square + damp, rows.T @ (weight * target)))


def test_paired_errors_know_that_the_reference_is_shared() -> None:
    reference = draw(400, seed=9)
    same = c2st(draw(300), reference)
    assert paired_error(same, same) == 0.0


def test_impossible_arguments() -> None:
    with pytest.raises(MetricError, match="at least 8 images are needed on each side, got 7 samples and 40"):
        c2st(draw(7), draw(40))
