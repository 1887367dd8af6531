"""Weightings and densities: equal gradients whatever is predicted, and draws that have the distribution they claim."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.training_runs import run, tiny_classifier, tiny_task
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.noise_levels import Level
from undiffuse.objectives import Objective, ObjectiveConfig, regression_target
from undiffuse.prediction import Prediction
from undiffuse.timesteps import log_ratios, make_timestep_sampler, parse_density
from undiffuse.training.density import bin_of, placement
from undiffuse.weightings import WEIGHTINGS, loss_factor, parse_weighting

STEPS, D = 50, 0.6
TARGETS = ("eps", "x0", "v", "velocity", "edm", "previous_mean")

# The factor on the error of the noise as the papers have it, from SNR; what the library must agree with.
ON_EPS: dict[str, Callable[[float], float]] = {
    "eps": lambda snr: 1.0,
    "x0": lambda snr: 1 / snr,
    "v": lambda snr: (snr + 1) / snr,
    "velocity": lambda snr: (1 + snr**-0.5) ** 2,
    "edm": lambda snr: (1 / snr) * (1 / snr + D**2) / (D / snr**0.5) ** 2,
    "truncated-snr": lambda snr: max(snr, 1) / snr,
    "min-snr": lambda snr: min(snr, 5) / snr,
    "min-snr:2": lambda snr: min(snr, 2) / snr,
    "soft-min-snr": lambda snr: 4 / (4 + snr),
    "p2": lambda snr: 1 / (1 + snr),
    "p2:0.5": lambda snr: 1 / (1 + snr) ** 0.5,
}


class Converted(nn.Module):
    """A small network that predicts noise, made to say the same thing as another prediction."""

    def __init__(self, process: ProcessConfig) -> None:
        super().__init__()
        self.process, self.chain = process, process.chain()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.05], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        w, time = self.weight, (t.double() / STEPS).reshape(-1, 1, 1, 1)
        eps = w[0] * x + w[1] * x.roll(1, -1) + w[2] * time + w[3] * x**2
        transition = self.chain.transition(t.long())
        x0 = Prediction(x, transition.source, "eps", eps).x0
        return regression_target(self.process.target, x0, x, eps, transition, self.process.sigma_data)


def gradients(target: str, weighting: str, family_process: ProcessConfig) -> tuple[Tensor, Tensor]:
    """(losses [B], gradient of their mean) of the same network in the words of `target`."""
    net = Converted(family_process)
    objective = Objective(ChainDenoiser(net, family_process), ObjectiveConfig(weighting=weighting))
    g = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn((12, 1, 2, 3), generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0, STEPS - 1, 12).long()
    loss = objective(x0, t, noise)["loss"]
    return loss.detach(), torch.autograd.grad(loss.mean(), net.weight)[0]


@pytest.mark.parametrize("weighting", ON_EPS)
def test_the_same_gradient_whatever_is_predicted(weighting: str) -> None:
    """A weighting converted to x0, v, u, F or the previous mean changes neither loss nor gradient."""
    make = lambda target: ProcessConfig(  # noqa: E731
        schedule="linear", steps=STEPS, target=target, variance="fixed_small", sigma_data=D
    )
    losses, gradient = gradients("eps", weighting, make("eps"))
    for target in TARGETS[1:]:
        other, other_gradient = gradients(target, weighting, make(target))
        torch.testing.assert_close(other, losses, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-8, atol=1e-12)
    # and it is the weighting of the papers
    plain, _ = gradients("eps", "native", make("eps"))
    snr = make("eps").chain().level(torch.linspace(0, STEPS - 1, 12).long()).logsnr.exp().tolist()
    torch.testing.assert_close(
        losses, plain * torch.tensor([ON_EPS[weighting](v) for v in snr], dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_every_weighting_is_tested_above() -> None:
    assert set(WEIGHTINGS) == {name.partition(":")[0] for name in ON_EPS} | {"native"}


@pytest.mark.parametrize("weighting", ON_EPS)
@pytest.mark.parametrize("target", ["x0", "v", "velocity", "edm"])
def test_weights_at_the_ends(weighting: str, target: str) -> None:
    """Pure noise divides nothing by zero; at the clean image only x0's own factor may grow without bound."""
    ends = Level(torch.tensor([0.0, 1e-9]).double(), torch.tensor([1.0, 1.0]).double())
    assert bool(loss_factor(weighting, target, ends, sigma_data=D).isfinite().all())
    if target != "x0":
        clean = Level(torch.tensor([1.0]).double(), torch.tensor([0.0]).double())
        assert bool(loss_factor(weighting, target, clean, sigma_data=D).isfinite().all())


def test_the_own_error_is_the_papers_weighting() -> None:
    """Plain losses on v, u and F are the v, flow and EDM weightings."""
    level = Level.from_alpha_bar(torch.tensor([0.999, 0.6, 0.01]))
    for weighting, target in (("v", "v"), ("velocity", "velocity"), ("edm", "edm"), ("x0", "x0"), ("eps", "eps")):
        torch.testing.assert_close(
            loss_factor(weighting, target, level, sigma_data=D), torch.ones(3, dtype=torch.float64)
        )


@pytest.mark.parametrize(
    ("spec", "message"),
    [("min", "unknown weighting"), ("eps:1", "takes no number"), ("p2:x", "must be positive"), ("p2:0", "positive")],
)
def test_weightings_that_do_not_exist(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(weighting=spec)
    assert parse_weighting("min-snr") == ("min-snr", 5.0)


def test_what_weightings_go_with() -> None:
    with pytest.raises(ValueError, match="the bound fixes the weights of the noise levels"):
        ObjectiveConfig(loss="vlb", weighting="p2")
    task = tiny_task(dropout=0.0)
    x0 = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).repeat(3, 1, 1, 1)
    noise, t, y = torch.ones_like(x0), torch.tensor([1, 8, 18]), {"y": torch.tensor([0, 1, 2])}
    denoiser = ChainDenoiser(task.net, task.process)
    plain = Objective(denoiser, ObjectiveConfig(loss="hybrid"))(x0, t, noise, y)
    weighted = Objective(denoiser, ObjectiveConfig(loss="hybrid", weighting="min-snr:1"))(x0, t, noise, y)
    snr = task.process.chain().level(t).logsnr.exp()
    factor = (snr.clamp(max=1) / snr).float()
    assert torch.equal(plain["mse"], weighted["mse"])
    assert torch.equal(plain["vb"], weighted["vb"]), "the variance's part is not weighted"
    torch.testing.assert_close(weighted["loss"] - plain["loss"], (factor - 1) * plain["mse"])


# --- densities

EVEN = (np.arange(4000) + 0.5) / 4000


@pytest.mark.parametrize(("spec", "mean", "deviation"), [("lognormal", -1.2, 1.2), ("logitnormal:0.5,0.8", 0.5, 0.8)])
def test_normal_densities(spec: str, mean: float, deviation: float) -> None:
    drawn = log_ratios(spec, EVEN, (-1, 1))
    assert drawn.mean() == pytest.approx(mean, abs=1e-6)
    assert drawn.std() == pytest.approx(deviation, rel=2e-3)
    assert (np.diff(drawn) > 0).all()
    assert np.isfinite(log_ratios(spec, np.array([0.0, 1.0]), (-1, 1))).all()


def test_densities_on_continuous_levels() -> None:
    edm = ProcessConfig(preconditioning="edm", target="edm", variance="fixed_large")
    flow = ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_large")
    for process in (edm, flow):
        place = placement(process, "lognormal:-0.4,1", whole=False)
        assert place is not None
        level = process.build_preconditioning().level(torch.from_numpy(place(EVEN)))
        ratio = (level.sigma / level.alpha).log()
        assert float(ratio.mean()) == pytest.approx(-0.4, abs=1e-6)
        assert float(ratio.std()) == pytest.approx(1, rel=2e-3)
    place = placement(flow, "uniform", whole=False)
    assert place is not None
    level = flow.build_preconditioning().level(torch.from_numpy(place(EVEN)))
    np.testing.assert_allclose((level.sigma / (level.alpha + level.sigma)).numpy(), EVEN, atol=1e-12)
    with pytest.raises(ValueError, match="uniform-logsnr:-10,10"):
        placement(flow, "uniform-logsnr", whole=False)
    place = placement(flow, "uniform-logsnr:-6,8", whole=False)
    assert place is not None
    logsnr = flow.build_preconditioning().level(torch.from_numpy(place(EVEN))).logsnr.numpy()
    np.testing.assert_allclose(logsnr, 8 - 14 * EVEN, atol=1e-9)


def test_densities_on_a_chain_are_its_steps() -> None:
    """Step k is drawn as often as the density has mass nearest to it; the ends take what lies beyond them."""
    process = ProcessConfig(schedule="cosine", steps=40)
    place = placement(process, "lognormal:0,1", whole=True)
    assert place is not None
    t = place(EVEN)
    assert t.dtype == np.int64
    assert t.min() >= 0
    assert t.max() == 38  # 39 is at sigma = 20,000 alpha, ten deviations away
    chain = process.chain()
    halves = -0.5 * chain.level(torch.arange(40)).logsnr.numpy()
    normal = NormalDist(0, 1)
    for k in (12, 20, 28):  # index_of is linear in log-SNR between steps
        edges = (halves[k - 1] + halves[k]) / 2, (halves[k] + halves[k + 1]) / 2
        assert (t == k).mean() == pytest.approx(normal.cdf(edges[1]) - normal.cdf(edges[0]), abs=1e-3)
    assert placement(process, "uniform", whole=True) is None


def test_couplings_keep_the_density() -> None:
    flow = ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_large")
    place = placement(flow, "logitnormal", whole=False)
    u = np.random.default_rng(0).random(400)
    for name in ("uniform", "antithetic", "stratified"):
        t, weights = make_timestep_sampler(name, 1000, place).sample(u)
        assert (weights == 1).all()
        assert np.mean(t + 1) == pytest.approx(500, abs=40 if name == "uniform" else 15)
    t, _ = make_timestep_sampler("antithetic", 1000, place).sample(u)
    np.testing.assert_allclose(t[0::2] + t[1::2] + 2, 1000, atol=1e-6)
    with pytest.raises(ValueError, match="accepts neither a density"):
        make_timestep_sampler("loss-second-moment", 1000, place)


@pytest.mark.parametrize("spec", ["lognorm", "lognormal:1", "lognormal:0,0", "uniform:1,2", "uniform-logsnr:3,1", "x"])
def test_densities_that_do_not_exist(spec: str) -> None:
    with pytest.raises(ValueError, match="density"):
        parse_density(spec)


def test_bins_take_positions_beyond_the_ends() -> None:
    assert bin_of(torch.tensor([-0.9, 0.0, 24.9, 25.0, 99.5, 130.0]), 100, 4).tolist() == [0, 0, 0, 1, 3, 3]
    assert bin_of(torch.tensor([0, 24, 25, 99]), 100, 4).tolist() == [0, 0, 1, 3]


def test_a_classifier_learns_the_chain_of_a_continuous_process(tmp_path: object) -> None:
    """Its steps are the discrete view's, so that it can guide any model of that process."""
    from pathlib import Path

    from undiffuse.training import ClassifierTask

    process = ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small", steps=20)
    task = ClassifierTask(tiny_classifier().net, process)
    outcome = run(Path(str(tmp_path)), task, images=8, density="lognormal")
    assert outcome.complete
    assert math.isfinite(outcome.images)
