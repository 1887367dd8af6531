"""Every solver converges at its order; with any of its coefficients wrong it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

import undiffuse.solvers.adams
import undiffuse.solvers.ddim
import undiffuse.solvers.dpmpp
import undiffuse.solvers.edm
import undiffuse.solvers.langevin
import undiffuse.solvers.multistep
import undiffuse.solvers.pndm
import undiffuse.solvers.unipc
from support.planted import half_bend
from undiffuse.solvers import DDPM, EDM, Bosh3, DPMpp, LangevinPC, Restart, UniPC, build_solver
from undiffuse.solvers.registry import SOLVERS
from undiffuse.testing.orders import (
    Make,
    flow,
    of,
    smooth_grid,
    strong_error,
    strong_order,
    tolerance_order,
    weak_error,
    weak_order,
)

FLOW: list[tuple[str, dict[str, Any], float]] = [
    ("ddim", {}, 1),
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpmpp-2s", {}, 2),
    ("dpmpp-2m", {}, 2),
    ("dpmpp-3m", {}, 3),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2}, 3),
    ("unipc", {"order": 2, "variant": "bh1"}, 3),
    ("unipc", {}, 3),
    ("unipc", {"variant": "bh1"}, 3),
    ("deis", {"order": 1}, 1),
    ("deis", {"order": 2}, 2),
    ("deis", {}, 3),
    ("ab3", {"order": 2}, 2),
    ("ab3", {}, 3),
    ("dpm-2", {}, 2),
    ("dpm-2", {"last": "midpoint"}, 2),
    ("pndm", {}, 2),
    ("pndm", {"warmup": "plms"}, 2),
]
NOISY: list[tuple[str, dict[str, Any], float]] = [
    ("ddpm", {}, 1),
    ("ddim", {"eta": 1.0}, 1),
    ("ddim", {"eta": 0.5}, 1),
    ("euler", {"churn": 10.0}, 1),
    ("heun", {"churn": 10.0}, 2),
    ("dpmpp-2m-sde", {}, 2),
    ("dpmpp-2m-sde", {"eta": 0.5}, 2),
    ("dpmpp-3m-sde", {}, 2),
    ("langevin-pc", {}, 1),
    ("langevin-pc", {"correctors": 2, "rate": 2.0}, 1),
]
Restarting: Make = lambda steps: Restart(inner=steps, s_min=0.15, s_max=1.0)  # noqa: E731


def called(value: object) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else str(value)


def test_the_reference_is_fine_enough() -> None:
    assert (flow() - flow(150)).abs().max() < 1e-6


@pytest.mark.parametrize(("name", "options", "order"), FLOW, ids=called)
def test_order_of_the_flow(name: str, options: dict[str, Any], order: float) -> None:
    """Distance to the exact solution of the probability-flow ODE on a mixture, on uneven steps."""
    measured = strong_order(of(name, **options))
    assert order - 0.25 < measured < order + 1.1, measured
    if not options:
        assert SOLVERS[name].order == order


@pytest.mark.parametrize(("name", "options", "order"), NOISY, ids=called)
def test_weak_order_with_noise(name: str, options: dict[str, Any], order: float) -> None:
    """Mean and variance of what comes out, computed and not sampled, on a Gaussian."""
    measured = weak_order(of(name, **options))
    assert order - 0.25 < measured < order + 0.9, measured
    if not options:
        assert SOLVERS[name].order == order


def test_weak_order_of_restarts() -> None:
    """In steps of the way and of the stretch together; noise up and flow down keep the distribution."""
    assert weak_order(Restarting, (16, 32)) == pytest.approx(SOLVERS["restart"].order, abs=0.15)


def test_order_of_the_adaptive_solver() -> None:
    """In the calls that it makes for ever smaller tolerances."""
    assert 2.75 < tolerance_order(lambda tol: Bosh3(tol=tol)) < 4.3
    assert SOLVERS["bosh3"].order == 3


def test_every_method_is_certified() -> None:
    assert set(SOLVERS) == {name for name, _, _ in [*FLOW, *NOISY]} | {"restart", "bosh3", "consistency"}


def test_ancestral_sampling_with_the_optimal_variance_makes_no_error_at_all() -> None:
    """On a Gaussian the exact second moment of every step gives the exact distribution, in 4 steps as in 400."""
    for steps in (4, 40):
        assert weak_error(DDPM(), smooth_grid(steps), variance="optimal") < 1e-13
    assert 0.8 < weak_order(of("ddpm"), variance="fixed_large") < 1.2


def test_more_points_are_better_at_equal_cost() -> None:
    """What the order is for: the same number of calls, a smaller error."""
    errors = [
        strong_error(build_solver(name), smooth_grid(24))[1] for name in ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc")
    ]
    assert errors[0] > 10 * errors[1] > 15 * errors[2] > 15 * errors[3]


# What is wrong, whose order it must ruin, and how it is planted: (object, attribute, old value -> new value).
Plant = tuple[Any, str, Callable[[Any], Any]]


def _weight(factor: float) -> Callable[[Any], Any]:
    """`moved` with its weight off by a factor."""
    return lambda move: lambda x, target, weight, direction: move(x, target, factor * weight, direction)


def _too_far(factor: float) -> Callable[[Any], Any]:
    """`ddim_move` with a part of x0 missing."""
    return lambda move: lambda prediction, target: move(prediction, target) - (1 - factor) * prediction.x0


def _scaled(factor: float) -> Callable[[Any], Any]:
    """A function whose (array or number) result is off by a factor."""
    return lambda function: lambda *args: factor * function(*args)


def _bashforth(rows: Any) -> Any:
    return (*rows[:3], (55 / 24, -59 / 24, 38 / 24, -9 / 24))


SOLVER = undiffuse.solvers
FLOW_MISTAKES: dict[str, tuple[str, dict[str, Any], Plant]] = {
    "DDIM's move": ("ddim", {}, (SOLVER.ddim, "ddim_move", _too_far(0.999))),
    "Euler's move": ("euler", {}, (SOLVER.edm, "ddim_move", _too_far(0.999))),
    "Heun's half": ("heun", {}, (SOLVER.edm, "shift", _weight(1.05))),
    "2S's second call": ("dpmpp-2s", {}, (SOLVER.multistep, "shift", _weight(0.95))),
    "2M's slope": ("dpmpp-2m", {}, (DPMpp, "_correction", _scaled(1.05))),
    "3M's slope": ("dpmpp-3m", {}, (DPMpp, "_correction", _scaled(1.02))),
    "3M as published": ("dpmpp-3m", {}, (DPMpp, "_correction", half_bend)),
    "3M's first step": ("dpmpp-3m", {}, (SOLVER.multistep, "shift", _weight(0.5))),
    "UniPC's weights": ("unipc", {}, (SOLVER.unipc, "_weights", _scaled(1.02))),
    "UniPC's move": ("unipc", {"order": 2}, (SOLVER.unipc, "shift", _weight(1.2))),
    "DEIS's polynomial": ("deis", {}, (SOLVER.adams, "combined", _scaled(1.05))),
    "Adams's polynomial": ("ab3", {}, (SOLVER.adams, "combined", _scaled(1.05))),
    "Bashforth's third weight": ("pndm", {}, (SOLVER.pndm, "_BASHFORTH", _bashforth)),
}


@pytest.mark.parametrize("mistake", FLOW_MISTAKES)
def test_a_wrong_coefficient_ruins_the_order(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options, (where, attribute, change) = FLOW_MISTAKES[mistake]
    order = next(order for own, given, order in FLOW if (own, given) == (name, options))
    monkeypatch.setattr(where, attribute, change(getattr(where, attribute)))
    measured = strong_order(of(name, **options), (48, 96))
    assert measured < order - 0.25, f"{mistake} went unnoticed: {measured}"


class _Louder:
    """A solver whose noise is too strong, or whose every step is off, by a factor."""

    def __init__(self, solver: Any, noise: float = 1.0, x: float = 1.0) -> None:
        self.solver, self.name, self.noise, self.x = solver, solver.name, noise, x
        self.init = solver.init

    def step(self, denoise: Any, x: Tensor, transition: Any, state: Any, draw: Any) -> Any:
        x, state, prediction = self.solver.step(denoise, x, transition, state, lambda n=0: self.noise * draw(n))
        return self.x * x, state, prediction


NOISY_MISTAKES: dict[str, Make] = {
    "ddpm": lambda steps: _Louder(DDPM(), 0.9),
    "ddim": lambda steps: _Louder(build_solver("ddim", eta=1.0), 0.9),
    "euler": lambda steps: _Louder(EDM(order=1, churn=10.0), 1.1),
    "heun": lambda steps: _Louder(EDM(churn=10.0), 1.03),
    "dpmpp-2m-sde": lambda steps: _Louder(build_solver("dpmpp-2m-sde"), 1.03),
    "dpmpp-3m-sde": lambda steps: _Louder(build_solver("dpmpp-3m-sde"), 1.03),
    "langevin-pc": lambda steps: _Louder(LangevinPC(), 1.03),
    "restart": lambda steps: _Louder(Restarting(steps), 1.03),
    "a step too long": lambda steps: _Louder(DDPM(), x=0.999),
}


@pytest.mark.parametrize("mistake", NOISY_MISTAKES)
def test_wrong_noise_ruins_the_weak_order(mistake: str) -> None:
    order = SOLVERS[mistake].order if mistake in SOLVERS else 1
    measured = weak_order(NOISY_MISTAKES[mistake], (32, 72) if mistake != "restart" else (16, 32))
    assert measured < order - 0.25, measured


def test_a_wrong_slope_in_2m_sde_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DPMpp, "_correction", _scaled(1.1)(DPMpp._correction))
    assert weak_order(of("dpmpp-2m-sde"), (64, 96)) < 1.75


def test_wrong_churn_and_a_wrong_langevin_step_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    up = undiffuse.solvers.edm.noised
    monkeypatch.setattr(
        undiffuse.solvers.edm, "noised", lambda x, a, b, noise, strength: 1.001 * up(x, a, b, noise, strength)
    )
    assert weak_order(of("heun", churn=10.0)) < 1.75
    monkeypatch.setattr(undiffuse.solvers.langevin, "expand", lambda c, x: 1.0005 * float(c))
    assert weak_order(of("langevin-pc")) < 0.75


def test_a_wrong_weight_of_the_adaptive_pair_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Bosh3._trial

    def wrong(self: Bosh3, denoise: Any, x: Tensor, first: Tensor, s: Tensor, step: Tensor) -> Any:
        new, end, error = trial(self, denoise, x, first, s, step)
        return new - 0.01 * step.reshape(-1, 1, 1, 1) * (end - first), end, error

    monkeypatch.setattr(Bosh3, "_trial", wrong)
    assert tolerance_order(lambda tol: Bosh3(tol=tol)) < 2.5


def test_unipc_goes_on_from_the_corrected_image() -> None:
    """One call a step, and the order of a predictor with a corrector: without the correction it is lost."""

    class Uncorrected(UniPC):
        def step(self, denoise: Any, x: Tensor, transition: Any, state: Any, draw: Any) -> Any:
            return super().step(denoise, x, transition, replace(state, pending=None), draw)

    assert strong_order(lambda steps: Uncorrected(order=2)) < 2.4
