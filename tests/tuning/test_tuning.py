"""Levels chosen by the model itself: the costs are those of the steps, and the grids err less than even ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.grids import grid
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser
from undiffuse.tuning import Batch, Tuned, search, tune

CHAIN = named_schedule("linear", 1000)
HARD = Mixture.scalar([0.2, 0.5, 0.3], [-1, 0.1, 0.8], [0.02, 0.25, 0.05])


class Quantiles:
    """Starts spread evenly over the normal distribution, so that few of them say what many random ones would."""

    def __init__(self, count: int, shift: float = 0.5) -> None:
        self.start = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + shift) / count)

    def __len__(self) -> int:
        return len(self.start)

    def normal(self, shape: Sequence[int], step: int = 0, purpose: str = "step", device: Any = "cpu") -> Tensor:
        assert purpose == "x_T"
        return self.start.reshape(-1, 1, 1, 1)


CHOICE, CHECK = Quantiles(100), Quantiles(501, 0.3)


@cache
def tuned(solver: str, steps: int) -> Tuned:
    return tune(OracleDenoiser(HARD, CHAIN), build_solver(solver), steps, Batch(CHOICE), Batch(CHECK), HARD.shape)


@pytest.mark.parametrize(
    ("solver", "gain"), [("ddim", 1.5), ("dpmpp-2m", 1.6), ("dpmpp-3m", 1.6), ("unipc", 1.7), ("deis", 2.0)]
)
def test_ten_tuned_steps_err_less_than_ten_even_in_log_snr(solver: str, gain: float) -> None:
    """On starts that the grid was not chosen by."""
    found = tuned(solver, 10)
    ours, even = found.tried[found.spec], found.tried["logsnr"]
    assert found.spec.startswith("at:")
    assert gain * ours.check < even.check
    assert 0 < ours.stderr < ours.check
    assert found.nfe == {"dpmpp-3m": 11, "deis": 11}.get(solver, 10)


def test_the_reported_error_is_that_of_the_grid() -> None:
    """Made again by hand from the text that is printed, against a finer solution."""
    found, denoiser, noise = tuned("dpmpp-2m", 10), OracleDenoiser(HARD, CHAIN), CHECK
    ours = generate(denoiser, grid(CHAIN, 10, found.spec), build_solver("dpmpp-2m"), noise, HARD.shape)
    exact = generate(denoiser, grid(CHAIN, 300, "logsnr"), build_solver("dpmpp-3m"), noise, HARD.shape)
    error = (ours - exact).square().mean().sqrt().item()
    assert error == pytest.approx(found.tried[found.spec].check, rel=0.1)


def test_heun_is_not_served_by_it_and_gets_a_named_grid() -> None:
    """The costs are those of other methods; what the solver itself does decides."""
    found = tuned("heun", 10)
    assert found.tried[found.spec].choice == min(m.choice for m in found.tried.values())
    assert found.spec in search.NAMED


def test_a_cost_is_what_a_step_errs_by() -> None:
    """First order and 2M, against the steps of the solvers themselves along a fine solution of a Gaussian."""
    gaussian = Mixture.scalar([1.0], [0.3], [0.4])
    denoiser = OracleDenoiser(gaussian, CHAIN)
    levels = np.linspace(-6, 6, 121)
    start = Noise64(0, 40).normal(gaussian.shape)
    spread = [torch.sqrt(lv.alpha**2 * 0.16 + lv.sigma**2) for lv in map(Level.from_logsnr, levels)]

    def at(k: int) -> Tensor:  # the flow carries quantiles to quantiles
        alpha = Level.from_logsnr(levels[k]).alpha
        return alpha * 0.3 + spread[k] / spread[0] * (start - Level.from_logsnr(levels[0]).alpha * 0.3)

    def denoised(k: int) -> Tensor:
        level = Level.from_logsnr(levels[k])
        return denoiser(at(k), level).x0

    values = torch.stack([denoised(k) for k in range(len(levels))])
    truth = values[-1]
    flat = (values - truth).flatten(1).numpy()
    first, second = search._costs(levels / 2, flat @ flat.T / flat.shape[1], 0.16)
    for p, i, j in ((0, 20, 50), (30, 40, 60), (50, 70, 80)):
        alpha, sigma = (float(v) for v in (Level.from_logsnr(levels[j]).alpha, Level.from_logsnr(levels[j]).sigma))
        shrinks = 0.16 / (0.16 + (sigma / alpha) ** 2)
        h, before = (levels[j] - levels[i]) / 2, (levels[i] - levels[p]) / 2
        x = at(i) / Level.from_logsnr(levels[i]).alpha
        one = np.exp(-h) * x + (1 - np.exp(-h)) * values[i]
        two = one + (1 - np.exp(-h)) / 2 * h / before * (values[i] - values[p])
        for step, cost in ((one, first[i, j]), (two, second[p, i, j])):
            assert float((step - at(j) / alpha).square().mean()) * shrinks == pytest.approx(cost, rel=0.02)
    assert np.isinf(first[5, 5])
    assert np.isinf(second[3, 3, 5])


@pytest.mark.parametrize("order", [1, 2])
def test_dynamic_programming_finds_the_cheapest_way(order: int) -> None:
    """Against all ways there are."""
    rng = np.random.default_rng(order)
    count, steps = 9, 5
    later = np.triu(np.ones((count, count), bool), 1)
    first = np.where(later, rng.random((count, count)), np.inf)
    second = np.where(later[:, :, None] & later[None], rng.random((count,) * 3), np.inf) if order == 2 else None
    last = rng.random(count)

    def cost(way: tuple[int, ...]) -> float:
        total = first[way[0], way[1]] + last[way[-1]]
        for p, i, j in zip(way, way[1:], way[2:], strict=False):
            total += first[i, j] if second is None else second[p, i, j]
        return float(total)

    ways = [(0, *rest) for rest in itertools.combinations(range(1, count), steps - 1)]
    assert tuple(search._cheapest(first, second, last, steps)) == min(ways, key=cost)


def test_progress_and_misuse() -> None:
    heard: list[float] = []
    batch = Batch(Noise64(0, 4))
    denoiser = OracleDenoiser(HARD, CHAIN)
    tune(denoiser, build_solver("ddim"), 2, batch, Batch(Noise64(1, 4)), HARD.shape, fine=8, progress=heard.append)
    assert sum(heard) == pytest.approx(1)
    for steps in (1, 8):
        with pytest.raises(ValueError, match="2 or more steps, fewer than the 8"):
            tune(denoiser, build_solver("ddim"), steps, batch, batch, HARD.shape, fine=8)
    for noisy in (build_solver("ddpm"), build_solver("ddim", eta=0.5), build_solver("heun", churn=3.0)):
        with pytest.raises(ValueError, match="this solver draws noise"):
            tune(denoiser, noisy, 3, batch, batch, HARD.shape, fine=8)
