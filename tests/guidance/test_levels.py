"""Guidance at some levels only: schedules, intervals, and what was computed last used again."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from undiffuse.guidance import (
    GUIDANCE_SCHEDULES,
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Guided,
    Interval,
    LossGuidance,
    product,
)
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM, DDPM
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

FULL = named_schedule("cosine", 1000)
MIXTURE = Mixture.random((1, 2, 2), components=6, seed=4, classes=3)
Y = torch.tensor([0, 2, 1])
COND = {"y": Y}
CHAIN = FULL.respaced("20")
KINDS = ["classifier", "classifier-free", "auto", "loss"]


class Counted:
    """A guidance of some kind, counting the images whose guidance was computed, beside the main pass."""

    def __init__(self, kind: str, scale: float = 2.0, **keywords: object) -> None:
        self.inner = OracleDenoiser(MIXTURE, FULL, conditional=True)
        self.blurred = OracleDenoiser(Mixture.random((1, 2, 2), 3, 9, classes=3), FULL)
        self.gradients = 0
        build: dict[str, Callable[[], Guided]] = {
            "classifier": lambda: ClassifierGuidance(self.inner, self.gradient, scale, **keywords),  # type: ignore[arg-type]
            "classifier-free": lambda: ClassifierFree(self.inner, scale, {"y": 3}, **keywords),  # type: ignore[arg-type]
            "auto": lambda: Autoguidance(self.inner, self.blurred, scale, **keywords),  # type: ignore[arg-type]
            "loss": lambda: LossGuidance(self.inner, self.loss, scale, **keywords),  # type: ignore[arg-type]
        }
        self.guided = build[kind]()

    def gradient(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        self.gradients += len(x)
        return MIXTURE.class_gradients(x, level, y)

    def loss(self, x0: Tensor) -> Tensor:
        self.gradients += len(x0)
        return (x0 - 0.2).square().flatten(1).sum(1)

    def extra(self, calls: int) -> int:
        """Images whose guidance was computed in so many calls of a batch of 3."""
        return sum(self.inner.calls) - 3 * calls + sum(self.blurred.calls) + self.gradients

    def run(self, steps: int = 20, seed: int = 0, solver: DDIM | DDPM | None = None) -> Tensor:
        chain = FULL.respaced(str(steps))
        return generate(self.guided, chain, solver or DDIM(), Noise64(seed, 3), MIXTURE.shape, cond=COND)


def test_schedules_by_level() -> None:
    """u = (2 / pi) arctan(sigma / alpha): 0 clean, 1/2 where log-SNR = 0, 1 pure noise; the mean over u is 1."""
    at = lambda u: Level.from_alpha_bar(math.cos(u * math.pi / 2) ** 2)  # noqa: E731
    expected = {"constant": (1, 1, 1), "linear": (2, 1, 0), "cosine": (2, 1, 0)}
    for name, values in expected.items():
        for u, value in zip((0.0, 0.5, 1.0), values, strict=True):
            assert float(GUIDANCE_SCHEDULES[name](at(u))) == pytest.approx(value, abs=1e-12), (name, u)
        mean = sum(float(GUIDANCE_SCHEDULES[name](at((i + 0.5) / 1000))) for i in range(1000)) / 1000
        assert mean == pytest.approx(1, abs=1e-5)
    assert float(GUIDANCE_SCHEDULES["linear"](at(0.25))) == pytest.approx(1.5)
    assert float(GUIDANCE_SCHEDULES["cosine"](at(0.25))) == pytest.approx(1 + math.cos(math.pi / 4))
    both = product(GUIDANCE_SCHEDULES["linear"], Interval(-0.1, 9))
    assert [round(float(both(at(u))), 6) for u in (0.25, 0.5, 0.6)] == [1.5, 1.0, 0.0]


def test_interval_bounds() -> None:
    level = Level.from_alpha_bar([0.9, 0.5, 0.1])
    assert Interval(0.0, math.inf)(level).tolist() == [1, 1, 0]
    assert Interval(-3.0, 1.0)(level).tolist() == [0, 1, 1]
    sigma = Interval.of_sigma(0.19, 1.61)
    assert (sigma.low, sigma.high) == pytest.approx((-2 * math.log(1.61), -2 * math.log(0.19)))
    assert Interval.of_sigma(0, 1) == Interval(0.0, math.inf)
    with pytest.raises(ValueError, match="low <= high"):
        Interval(1.0, -1.0)
    with pytest.raises(ValueError, match="0 <= low <= high"):
        Interval.of_sigma(2.0, 1.0)


def test_weight_runs_from_neutral_to_the_scale() -> None:
    """Half of a scale of 3 is 1.5 for a gradient, whose neutral value is 0, and 2 for a contrast, neutral at 1."""
    half = lambda level: torch.full_like(level.alpha, 0.5)  # noqa: E731
    weights = {kind: float(Counted(kind, 3.0, schedule=half).guided.weight(FULL.level(5))) for kind in KINDS}
    assert weights == {"classifier": 1.5, "classifier-free": 2.0, "auto": 2.0, "loss": 1.5}


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_interval_there_is_no_guidance_and_no_cost(kind: str) -> None:
    interval = Interval(-1.0, 2.0)
    inside = [k for k in range(20) if float(interval(CHAIN.level(k)))]
    assert 3 <= len(inside) <= 15
    whole, limited = Counted(kind), Counted(kind, schedule=interval)
    x = Noise64(1, 3).normal(MIXTURE.shape)
    for k in range(20):
        level, spent = CHAIN.level(k), limited.extra(k)
        got = limited.guided(x, level, COND).guided_score()
        expected = whole.guided if k in inside else whole.inner
        torch.testing.assert_close(got.eps, expected(x, level, COND).guided_score().eps, rtol=1e-12, atol=1e-12)
        assert limited.extra(k + 1) - spent == (3 if k in inside else 0)
    assert limited.extra(20) == 3 * len(inside)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_levels(kind: str) -> None:
    """Every row is guided as its own level says, also where some of a batch are outside the interval."""
    schedule = product(GUIDANCE_SCHEDULES["linear"], Interval(-1.0, 2.0))
    steps = torch.tensor([900, 400, 20])
    guided, x = Counted(kind, schedule=schedule).guided, Noise64(1, 3).normal(MIXTURE.shape)
    together = guided(x, FULL.level(steps), COND).guided_score().eps
    for i, k in enumerate(steps.tolist()):
        one = guided(x[i : i + 1], FULL.level(k), {"y": Y[i : i + 1]}).guided_score().eps
        torch.testing.assert_close(together[i : i + 1], one)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kth_call_costs_a_kth(kind: str) -> None:
    for every, computed in ((1, 8), (2, 4), (3, 3), (100, 1)):
        counted = Counted(kind, every=every)
        counted.run(8)
        assert counted.extra(8) == 3 * computed, every
        counted.run(8)  # a new trajectory computes anew
        assert counted.extra(16) == 6 * computed, every


@pytest.mark.parametrize("kind", KINDS)
def test_the_shift_of_the_noise_is_used_again(kind: str) -> None:
    """At the call in between eps moves by what the last one moved it by, scaled by the schedule's new value."""
    counted = Counted(kind, 2.0, every=2, schedule=GUIDANCE_SCHEDULES["linear"])
    guided, x = counted.guided, Noise64(1, 3).normal(MIXTURE.shape)
    moves = []
    for k in (9, 8):
        level = CHAIN.level(k)
        # The main pass of every kind is the conditional model.
        move = guided(x, level, COND).guided_score().eps - counted.inner(x, level, COND).eps
        moves.append(move / (guided.weight(level) - guided.neutral))
    torch.testing.assert_close(moves[1], moves[0])
    again = guided(x, CHAIN.level(7), COND).guided_score().eps - counted.inner(x, CHAIN.level(7), COND).eps
    assert (again / (guided.weight(CHAIN.level(7)) - guided.neutral) - moves[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_what_was_sampled_before(kind: str) -> None:
    """Reuse begins anew with every trajectory, also one that was left in the middle, or goes back to noise."""
    counted = Counted(kind, every=3)
    first = counted.run(7)
    counted.run(7, seed=1)
    x = Noise64(1, 3).normal(MIXTURE.shape)
    for k in (19, 18, 17, 16):
        counted.guided(x, CHAIN.level(k), COND)
    torch.testing.assert_close(counted.run(7), first, rtol=0, atol=0)
    level = CHAIN.level(10)
    fresh = counted.guided(x, level, COND).guided_score().eps
    other = counted.guided(x, CHAIN.level(5), dict(COND)).guided_score().eps  # another run, at a cleaner level
    expected = Counted(kind, every=3).guided(x, CHAIN.level(5), COND).guided_score().eps
    torch.testing.assert_close(other, expected, rtol=0, atol=0)
    torch.testing.assert_close(counted.guided(x, level, COND).guided_score().eps, fresh, rtol=0, atol=0)
    counted.guided(-x, level, COND).guided_score()
    torch.testing.assert_close(counted.guided(x, level, COND).guided_score().eps, fresh, rtol=0, atol=0)  # no cleaner


@pytest.mark.parametrize("kind", KINDS)
def test_reuse_errs_little_and_less_with_more_steps(kind: str) -> None:
    """Using a shift twice is first order in the step: the error falls as steps grow."""

    def error(steps: int) -> float:
        exact, thrifty = Counted(kind, 1.5).run(steps), Counted(kind, 1.5, every=2).run(steps)
        return (exact - thrifty).square().mean().sqrt().item()

    few, many = error(16), error(64)
    assert 1e-4 < few < 0.2
    assert many < 0.45 * few


def test_an_interval_begins_with_a_fresh_shift() -> None:
    """Within an interval the first call computes, whatever the count of calls before it."""
    interval = Interval(-1.0, 2.0)
    inside = sum(bool(interval(CHAIN.level(k))) for k in range(20))
    counted = Counted("classifier", every=2, schedule=interval)
    counted.run()
    assert counted.gradients == 3 * math.ceil(inside / 2)
    gap = Counted("classifier", every=99, schedule=lambda level: 1 - interval(level))
    gap.run()
    assert sum(not interval(CHAIN.level(k)) for k in range(20)) == 20 - inside > 2
    assert gap.gradients == 3 * 2, "begun anew behind a gap"


def test_gradients_at_the_mean_can_be_reused() -> None:
    counted = Counted("classifier", every=2, at="mean")
    x = counted.run(solver=DDPM())
    assert counted.gradients == 30
    assert x.isfinite().all()


def test_misuse_is_explained() -> None:
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match="at least 1"):
            Counted("classifier", every=every)
