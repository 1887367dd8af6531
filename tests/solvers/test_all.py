"""What every solver does alike: guides, kinds of prediction, batches, calls, ends, levels between trained steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.denoiser import ChainDenoiser, ProcessConfig, clip_static
from undiffuse.grids import NoisePath, grid
from undiffuse.guidance import ClassifierGuidance
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import DiscreteSchedule, Level, named_schedule
from undiffuse.prediction import Prediction
from undiffuse.sampling import generate, sample
from undiffuse.solvers import PNDM, AdamsBashforth, Bosh3, DPMpp, Restart, Solver, UniPC, build_solver
from undiffuse.solvers.registry import SOLVERS, read_options, write_options
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser, OracleNet

LINEAR, COSINE = named_schedule("linear", 1000), named_schedule("cosine", 1000)
MIXTURE = Mixture.random((1, 2, 1), components=4, seed=3, classes=2)
EVERY = sorted(SOLVERS)
NOISY = {"euler": {"churn": 5.0}, "heun": {"churn": 5.0}, "langevin-pc": {"correctors": 2}}


def solver_of(name: str, **more: Any) -> Solver:
    """The solver, with noise where it can have any."""
    return build_solver(name, **NOISY.get(name, {}), **more)


def path_of(name: str, steps: int = 6, chain: DiscreteSchedule = COSINE) -> NoisePath:
    return grid(chain, str(steps), "logsnr" if name != "ddpm" else "quadratic")


class BetweenSteps:
    """The perfect network for every time of a chain, also between its steps; what `target` asks for."""

    conditions: frozenset[str] = frozenset()

    def __init__(self, mixture: Mixture, chain: DiscreteSchedule, target: str, fraction: float | None = None) -> None:
        self.mixture, self.target, self.fraction = mixture, target, fraction
        self.logsnr = chain.level(torch.arange(chain.steps)).logsnr.numpy()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        level = Level.from_logsnr(np.interp(t.double().numpy(), np.arange(len(self.logsnr)), self.logsnr))
        prediction = Prediction(x, level, "eps", self.mixture.eps(x, level.alpha, level.sigma))
        out: Tensor = getattr(prediction, self.target)
        return out if self.fraction is None else torch.cat([out, torch.full_like(out, 2 * self.fraction - 1)], dim=1)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_every_kind_of_prediction_gives_the_same_images(name: str, kind: str) -> None:
    """Through the time that the network is told (float32, hence the tolerance), at levels between its steps."""
    process = ProcessConfig(schedule="cosine", target=kind, variance="fixed_small")
    denoiser = ChainDenoiser(BetweenSteps(MIXTURE, COSINE, kind), process, clip="none")
    runs = [
        generate(d, path_of(name), solver_of(name), Noise64(2, 3), MIXTURE.shape)
        for d in (denoiser, OracleDenoiser(MIXTURE, COSINE))
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "ddpm"])
def test_guidance_by_the_perfect_classifier_is_the_class(name: str) -> None:
    """At scale 1 Bayes' rule: an unconditional model, guided, makes what the class's own model makes of the noise."""

    def gradient(x: Tensor, level: Level, y: Tensor) -> Tensor:
        return MIXTURE.class_gradient(x, int(y[0]), level.alpha, level.sigma)

    cond = {"y": torch.tensor([1, 1, 1])}
    guided = ClassifierGuidance(OracleDenoiser(MIXTURE, LINEAR), gradient, 1.0)
    own = OracleDenoiser(MIXTURE, LINEAR, conditional=True)
    path = path_of(name, chain=LINEAR)
    a, b = (generate(d, path, solver_of(name), Noise64(0, 3), MIXTURE.shape, cond=cond) for d in (guided, own))
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    plain = generate(OracleDenoiser(MIXTURE, LINEAR), path, solver_of(name), Noise64(0, 3), MIXTURE.shape)
    assert (plain - a).abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name in EVERY if name != "ddpm"])
def test_reclip_keeps_guided_images_in_range(name: str) -> None:
    """With a gradient that pulls far out: within [-1, 1] if x0 is clipped again after the guides."""

    class Clipping(OracleDenoiser):
        def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
            prediction = super().__call__(x, level, cond)
            return replace(prediction.with_x0(clip_static(prediction.x0)), clip=clip_static)

    guided = ClassifierGuidance(Clipping(MIXTURE, LINEAR), lambda x, level, y: torch.full_like(x, 400.0), 1.0)
    cond = {"y": torch.tensor([0, 0])}
    path, shape = path_of(name, chain=LINEAR), MIXTURE.shape
    solvers = [solver_of(name, clip_after_guidance=clip_after_guidance) for clip_after_guidance in (True, False)]
    x, free = (generate(guided, path, solver, Noise64(1, 2), shape, cond=cond) for solver in solvers)
    assert x.abs().max() <= 1
    assert (x - free).abs().max() > 0.02


@pytest.mark.parametrize("name", EVERY)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    """Also where it decides its own steps."""
    denoiser, solver = OracleDenoiser(MIXTURE, COSINE), solver_of(name)

    def images(numbers: list[int]) -> Tensor:
        noise = Noise64(4, 1)
        noise.source = NoiseSource(4, numbers)
        return generate(denoiser, path_of(name), solver, noise, MIXTURE.shape)

    whole = images([0, 1, 2, 3, 4])
    for part in ([0], [4, 2], [1, 0, 3]):
        torch.testing.assert_close(images(part), whole[part], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_the_calls_are_as_many_as_the_table_says(name: str, steps: int) -> None:
    path = path_of(name, steps)
    *_, last = sample(OracleDenoiser(MIXTURE, COSINE), path, build_solver(name), Noise64(0, 2), MIXTURE.shape)
    expected = SOLVERS[name].nfe(steps, SOLVERS[name].settings())
    assert (last.index, last.total) == (steps - 1, steps)
    assert last.nfe >= steps if expected is None else last.nfe == expected


@pytest.mark.parametrize("name", EVERY)
def test_the_last_step_returns_the_denoised_image(name: str) -> None:
    *_, last = sample(OracleDenoiser(MIXTURE, LINEAR), path_of(name, 5), solver_of(name), Noise64(0, 2), MIXTURE.shape)
    torch.testing.assert_close(last.x, last.prediction.x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_chains_that_begin_in_pure_noise(name: str) -> None:
    """alpha = 0: no division by it, and nothing remembered from infinitely far."""
    betas = named_schedule("linear", 40).betas.copy()
    betas[-1] = 1.0
    process = ProcessConfig(betas=tuple(betas), target="v", variance="fixed_small")
    chain = process.chain()
    path = chain.respaced("10") if name not in ("restart", "bosh3", "heun", "dpmpp-2s") else chain.respaced("4")
    network = BetweenSteps(MIXTURE, named_schedule("linear", 40), "v")
    denoiser = ChainDenoiser(
        lambda x, t: network(x, t) if bool((t < 39).all()) else -MIXTURE.moments()[0].reshape(1, 1, 2, 1).expand_as(x),
        process,
        clip="none",
    )
    x = generate(denoiser, path, solver_of(name), Noise64(1, 40), MIXTURE.shape)
    assert bool(torch.isfinite(x).all())
    assert (x.mean(0).flatten() - MIXTURE.moments()[0]).abs().max() < 0.5


def test_samplers_reach_the_distribution() -> None:
    """W1-like check of the moments after few steps: 2,000 images of each method with noise, 30 steps."""
    mean, covariance = MIXTURE.moments()
    for name in ("heun", "dpmpp-2m-sde", "dpmpp-3m-sde", "restart", "langevin-pc", "unipc", "bosh3"):
        path = grid(LINEAR, "30" if name != "bosh3" else "3", "logsnr")
        x = generate(OracleDenoiser(MIXTURE, LINEAR), path, solver_of(name), Noise64(5, 2000), MIXTURE.shape).flatten(1)
        assert (x.mean(0) - mean).abs().max() < 4 * math.sqrt(covariance.diagonal().max() / 2000) + 0.01, name
        assert (x.var(0) / covariance.diagonal() - 1).abs().max() < (0.12 if SOLVERS[name].order > 1 else 0.25), name


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_learned_variance_is_a_fraction_between_the_bounds_of_any_transition(fraction: float) -> None:
    process = ProcessConfig(schedule="linear", variance="learned_range")
    denoiser = ChainDenoiser(BetweenSteps(MIXTURE, LINEAR, "eps", fraction), process, clip="none")
    for step in (grid(LINEAR, "7", "karras").transition(k) for k in range(7)):
        prediction = denoiser(torch.zeros(1, 1, 2, 1, dtype=torch.float64), step.source)
        expected = fraction * step.log_beta + (1 - fraction) * step.log_posterior_variance
        torch.testing.assert_close(prediction.log_variance(step).flatten()[:1], expected, rtol=1e-6, atol=1e-6)


def test_a_predicted_previous_mean_needs_the_trained_steps() -> None:
    """It is defined there only: grids of trained steps work, levels between them are refused with the reason."""
    process = ProcessConfig(steps=50, target="previous_mean", variance="fixed_small")
    denoiser = ChainDenoiser(OracleNet(MIXTURE, process.chain(), "previous_mean"), process, clip="none")
    exact = OracleDenoiser(MIXTURE, process.chain())
    for name in ("ddim", "dpmpp-2m", "unipc", "dpmpp-2m-sde"):
        path = process.chain().respaced("10")
        runs = [generate(d, path, build_solver(name), Noise64(1, 3), MIXTURE.shape) for d in (denoiser, exact)]
        torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="only at the trained steps"):
        generate(denoiser, grid(process.chain(), 10, "karras"), build_solver("ddim"), Noise64(1, 3), MIXTURE.shape)


def test_exact_equivalences() -> None:
    """Different ways to write the same method."""
    denoiser, noise, shape = OracleDenoiser(MIXTURE, LINEAR), Noise64(0, 3), MIXTURE.shape
    path = grid(LINEAR, "9", "karras")

    def run(solver: Solver) -> Tensor:
        return generate(denoiser, path, solver, noise, shape)

    for a, b in (
        (build_solver("euler"), build_solver("ddim")),
        (AdamsBashforth(order=1), build_solver("ddim")),
        (AdamsBashforth(order=1, variable="logsnr"), build_solver("ddim")),
        (build_solver("euler", churn=0.0, s_noise=1.5), build_solver("ddim")),
        (DPMpp(order=2, eta=0.0), build_solver("dpmpp-2m")),
        (build_solver("langevin-pc", rate=0.0), build_solver("ddim")),
        (Restart(restarts=0), build_solver("heun")),
        (build_solver("heun", churn=9.0, s_min=1e3), build_solver("heun")),
    ):
        torch.testing.assert_close(run(a), run(b), rtol=1e-9, atol=1e-9)
    assert (run(UniPC(order=2, variant="bh1")) - run(UniPC(order=2))).abs().max() > 1e-6


def test_2m_by_hand() -> None:
    """Three steps of the published formulas, x' = (sigma' / sigma) x - alpha' (e^-h - 1) D~ and its like."""
    path = grid(LINEAR, "4", "at:-6,-3,1,4")
    denoiser = OracleDenoiser(MIXTURE, LINEAR)
    x = x_T = Noise64(3, 2).normal(MIXTURE.shape)
    before, h_before = None, 0.0
    for k in (3, 2, 1):
        a, b = path.transition(k).source, path.transition(k).target
        D = MIXTURE.denoised(x, a.alpha, a.sigma)
        h = float(b.logsnr - a.logsnr) / 2
        mixed = D if before is None else D + (D - before) * h / (2 * h_before)
        x = (b.sigma / a.sigma) * x - b.alpha * math.expm1(-h) * mixed
        before, h_before = D, h
    run = list(sample(denoiser, path, build_solver("dpmpp-2m"), Noise64(3, 2), MIXTURE.shape, x_T=x_T))
    torch.testing.assert_close(run[2].x, x, rtol=1e-9, atol=1e-9)


def test_an_adaptive_run_obeys_its_tolerance() -> None:
    exact = None
    calls, errors = [], []
    for tol in (1e-7, 1e-4, 1e-2, 1e-1):
        path = grid(LINEAR, "2", "logsnr")
        *_, last = sample(OracleDenoiser(MIXTURE, LINEAR), path, Bosh3(tol=tol), Noise64(0, 5), MIXTURE.shape)
        exact = last.x if exact is None else exact
        calls.append(last.nfe)
        errors.append((last.x - exact).abs().max().item())
    assert calls == sorted(calls, reverse=True)
    assert errors == sorted(errors)
    assert errors[1] < 20e-4


def test_a_network_of_noise_does_not_stall_the_adaptive_solver() -> None:
    """Answers that no step length makes smooth: it takes its least step and comes to an end."""

    class Rough(OracleDenoiser):
        def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
            rough = torch.sin(1e9 * x)
            return Prediction(x, level, "eps", rough)

    path = grid(LINEAR, "2", "logsnr:from=7,to=7.01")
    x = generate(Rough(MIXTURE, LINEAR), path, Bosh3(tol=1e-9), Noise64(0, 2), MIXTURE.shape)
    assert bool(torch.isfinite(x).all())


def test_options_are_read_and_written() -> None:
    assert read_options("heun", "churn=30, s_max=50") == {"churn": 30.0, "s_max": 50.0}
    assert write_options("heun", read_options("heun", "s_max=50,churn=30,s_min=0")) == "churn=30.0,s_max=50.0"
    assert read_options("unipc", "order=2,variant=bh1") == {"order": 2, "variant": "bh1"}
    assert read_options("ddim", "") == {}
    for name in EVERY:
        assert read_options(name, write_options(name, SOLVERS[name].settings())) == {}
    for name, text, message in (
        ("heun", "chrun=3", "no option 'chrun'"),
        ("ddim", "churn=3", "it has: none"),
        ("heun", "churn=-1", "expected a number from 0"),
        ("heun", "churn=nan", "expected a number"),
        ("heun", "churn=inf", "expected a number"),
        ("unipc", "order=4", "from 1 to 3"),
        ("unipc", "order=2.5", "whole number"),
        ("unipc", "variant=bh3", "bh1 or bh2"),
    ):
        with pytest.raises(ValueError, match=message):
            read_options(name, text)
    with pytest.raises(ValueError, match="0 < s_min < s_max"):
        build_solver("restart", s_min=2.0, s_max=1.0)


def test_misuse_is_explained() -> None:
    with pytest.raises(ValueError, match="choose one of ddpm"):
        build_solver("heune")
    with pytest.raises(ValueError, match="no option 'churn'"):
        build_solver("unipc", churn=1.0)
    for make in (
        lambda: UniPC(order=4), lambda: DPMpp(order=1), lambda: DPMpp(eta=-1.0), lambda: AdamsBashforth(order=5),
        lambda: PNDM(warmup="x"), lambda: Bosh3(tol=0.0), lambda: build_solver("langevin-pc", correctors=0),
        lambda: build_solver("euler", s_min=2.0, s_max=1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="got"):
            make()
    denoiser, x = OracleDenoiser(MIXTURE, LINEAR), torch.zeros(2, 1, 2, 1, dtype=torch.float64)
    per_image = LINEAR.transition(torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="one noise level for the whole batch"):
        build_solver("heun").step(denoiser, x, per_image, 3, lambda number=0: torch.zeros_like(x))
