"""Later processes against what is known of them: schedules, families of levels, targets, and the same model in three
families."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.noise_levels import Level, diffuse, named_schedule
from undiffuse.objectives import Objective, ObjectiveConfig, regression_target
from undiffuse.prediction import Prediction
from undiffuse.solvers import ddim_move
from undiffuse.testing.oracles import Mixture

EDM = ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small")
FLOW = ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small")
SDES = {
    "ve": ProcessConfig(preconditioning="ve", target="score", variance="fixed_small", sigma_min=0.02, sigma_max=100.0),
    **{name: ProcessConfig(preconditioning=name, target="eps", variance="fixed_small") for name in ("vp", "subvp")},
}
KINDS = ("eps", "x0", "v", "velocity", "edm", "score")


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- schedules


def test_zero_terminal_snr() -> None:
    plain, zero = named_schedule("linear", 1000), named_schedule("linear+zero-terminal", 1000)
    assert zero.alphas_cumprod[0] == plain.alphas_cumprod[0]
    assert zero.betas[0] == pytest.approx(1e-4, rel=1e-9)
    assert zero.alphas_cumprod[-1] == 0
    assert zero.betas[-1] == 1
    assert zero.ends_in_noise
    assert not plain.ends_in_noise
    assert zero.alphas_cumprod[499] == pytest.approx(0.0760287505, abs=1e-10)  # by extended precision
    assert (np.diff(zero.alphas_cumprod) < 0).all()
    np.testing.assert_allclose(np.cumprod(1 - zero.betas), zero.alphas_cumprod, rtol=1e-9, atol=1e-15)
    with pytest.raises(ValueError, match="predict 'v'"):
        ChainDenoiser(None, ProcessConfig(schedule="linear+zero-terminal"))


def test_shift_moves_log_snr_by_the_resolution() -> None:
    """2 ln(64 / 256) at every level, and ln s of sigma / alpha moves by the opposite of half of it."""
    every = torch.arange(100)
    base, moved = (named_schedule(s, 100).level(every).logsnr for s in ("cosine", "cosine+shift:64/256"))
    torch.testing.assert_close(moved - base, torch.full((100,), 2 * math.log(64 / 256), dtype=torch.float64))
    same = named_schedule("cosine+shift:0.25", 100)
    assert np.array_equal(same.alphas_cumprod, named_schedule("cosine+shift:64/256", 100).alphas_cumprod)
    both = named_schedule("cosine+shift:2+zero-terminal", 100)
    assert both.ends_in_noise
    assert both.alphas_cumprod[0] == named_schedule("cosine+shift:2", 100).alphas_cumprod[0]


def test_sigmoid_schedule_is_symmetric() -> None:
    abar = named_schedule("sigmoid", 1000).alphas_cumprod
    assert abar[499] == pytest.approx(0.5, abs=1e-12)
    np.testing.assert_allclose(abar[:998] + abar[998::-1][:998], 1, atol=1e-9)  # the last beta is clipped


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("quadratic", "unknown schedule 'quadratic'"),
        ("linear+zero", "unknown modifier 'zero'"),
        ("linear+zero-terminal:1", "unknown modifier"),
        ("linear+shift", "cannot read the shift"),
        ("linear+shift:0", "shift:64/256"),
        ("linear+shift:1/0", "shift:64/256"),
    ],
)
def test_schedules_that_do_not_exist(schedule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessConfig(schedule=schedule).chain()


# --- families


def test_edm_levels_are_karras_grid() -> None:
    """The 18-step grid of the paper, 80 to 0.002, as strides and as positions."""
    golden = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817, 0.585348]
    golden += [0.296442, 0.139516, 0.0599473, 0.0229345, 0.00752802, 0.002]
    chain = ProcessConfig(preconditioning="edm", steps=18, target="edm", variance="fixed_small").chain()
    level = chain.level(torch.arange(17, -1, -1))
    torch.testing.assert_close(level.sigma / level.alpha, torch.tensor(golden).double(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("process", [EDM, FLOW, *SDES.values()])
def test_positions_and_levels(process: ProcessConfig) -> None:
    preconditioning = process.build_preconditioning()
    where = torch.tensor([0.0, 0.5, 17.25, 500.0, 998.7], dtype=torch.float64)
    level = preconditioning.level(where)
    torch.testing.assert_close(preconditioning.position(level), where, rtol=0, atol=1e-9)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(5, dtype=torch.float64))
    whole = preconditioning.chain.level(torch.tensor([0, 500, 999]))
    again = preconditioning.level(torch.tensor([0, 500, 999]))
    torch.testing.assert_close(whole.sigma, again.sigma, rtol=1e-9, atol=1e-12)
    assert (np.diff(preconditioning.chain.alphas_cumprod) < 0).all()


def test_what_networks_are_shown_and_told() -> None:
    """EDM: input of unit variance and ln(s) / 4; flow: x at (1 - t, t) and 1000 t."""
    like = torch.zeros(3, 1)
    s = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    level = Level(1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt())
    edm, flow = EDM.build_preconditioning(), FLOW.build_preconditioning()
    scale = edm.scale(level)
    assert scale is not None
    torch.testing.assert_close(scale**2 * (0.25 * level.alpha**2 + level.sigma**2), torch.ones(3).double())
    torch.testing.assert_close(edm.time(level, like).double(), s.log() / 4, rtol=1e-6, atol=1e-7)
    t = s / (1 + s)
    torch.testing.assert_close(flow.time(level, like).double(), 1000 * t, rtol=1e-6, atol=0)
    scale = flow.scale(level)
    assert scale is not None
    torch.testing.assert_close(scale * level.alpha, 1 - t)
    torch.testing.assert_close(scale * level.sigma, t)
    # nothing is infinite at the ends, where the network hears the last thing it knows
    ends = Level(torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 0.0]).double())
    assert edm.time(ends, like[:2]).tolist() == pytest.approx([math.log(80) / 4, math.log(0.0002) / 4], rel=1e-6)
    assert flow.time(ends, like[:2]).tolist() == [1000, 0]


def test_what_networks_of_the_sdes_receive() -> None:
    """The marginals of Song et al. 2021 (eq. 29 and appendix C): x = mean x0 + std noise at t, and the time in each."""
    t = torch.tensor([0.01, 0.4, 1.0], dtype=torch.float64)
    like, mean = torch.zeros(3, 1), (-(t**2) * 19.9 / 4 - t * 0.1 / 2).exp()
    for name, std in (("vp", (1 - mean**2).sqrt()), ("subvp", 1 - mean**2)):
        made = SDES[name].build_preconditioning()
        level = made.level(t * 1000 - 1)
        scale = made.scale(level)
        assert scale is not None
        torch.testing.assert_close((scale * level.alpha, scale * level.sigma), (mean, std))
        torch.testing.assert_close(made.time(level, like), (999 * t).float())
    made = SDES["ve"].build_preconditioning()
    level = made.level(torch.tensor([0, 500, 999]))
    sigma = 0.01 * (50 / 0.01) ** (torch.tensor([0, 500, 999]).double() / 999)  # on images in [0, 1]
    scale = made.scale(level)
    assert scale is not None
    torch.testing.assert_close((scale * level.alpha, scale * level.sigma), (torch.ones(3).double(), 2 * sigma))
    torch.testing.assert_close(made.time(level, like), sigma.float())
    with pytest.raises(ValueError, match="beta_min and beta_max must be positive"):
        ProcessConfig(beta_min=3.0, beta_max=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preconditioning": "edm", "target": "edm"}, "variance='learned_range' is learned from the bound"),
        ({"preconditioning": "flow", "target": "eps", "variance": "fixed_large"}, "choose target='velocity'"),
        ({"preconditioning": "edm", "target": "previous_mean", "variance": "fixed_large"}, "choose target='edm'"),
        (
            {"preconditioning": "flow", "target": "velocity", "variance": "fixed_large", "betas": (0.1, 0.2)},
            "belong to chains",
        ),
        (
            {"preconditioning": "flow", "target": "velocity", "variance": "fixed_large", "rescale_timesteps": True},
            "belong to chains",
        ),
        ({"preconditioning": "wave"}, "choose one of chain, edm, flow"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "the first below the second"),
        ({"sigma_data": 0.0}, "must be positive"),
        ({"preconditioning": "edm", "target": "edm", "variance": "fixed_large", "steps": 1}, "at least 2"),
    ],
)
def test_processes_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessConfig(**settings)


# --- targets and predictions


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_gives_image_and_noise_back(kind: str) -> None:
    x0, noise = draws(0, 5, 1, 2, 2), draws(1, 5, 1, 2, 2)
    level = Level.from_alpha_bar(torch.tensor([0.999999, 0.9, 0.5, 0.02, 1e-4], dtype=torch.float64))
    x = diffuse(x0, level, noise)
    target = regression_target(kind, x0, x, noise, level, sigma_data=0.5)
    prediction = Prediction(x, level, kind, target, sigma_data=0.5)
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(prediction.eps, noise, rtol=0, atol=1e-9)
    torch.testing.assert_close(prediction.v, regression_target("v", x0, x, noise, level), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["velocity", "edm"])
def test_u_and_f_hold_on_any_path(kind: str) -> None:
    """Also where alpha^2 + sigma^2 is not 1, and at pure noise and the clean image."""
    x0, noise = draws(0, 4, 1, 2, 2), draws(1, 4, 1, 2, 2)
    level = Level(torch.tensor([1.0, 0.3, 0.0, 1.0]).double(), torch.tensor([7.0, 0.7, 1.0, 0.0]).double())
    x = diffuse(x0, level, noise)
    value = regression_target(kind, x0, x, noise, level, sigma_data=0.7)
    prediction = Prediction(x, level, kind, value, sigma_data=0.7)
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(prediction.eps, noise, rtol=0, atol=1e-12)


def test_f_is_edms_preconditioning_and_minus_v() -> None:
    """D = c_skip x + c_out F at alpha = 1 (Karras et al. 2022, table 1), and F = -v for data of unit variance."""
    x0, noise, d = draws(0, 3, 1, 1, 1), draws(1, 3, 1, 1, 1), 0.5
    s = torch.tensor([0.01, 0.6, 30.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    level = Level(torch.ones(3, dtype=torch.float64), s.flatten())
    x = x0 + s * noise
    f = regression_target("edm", x0, x, noise, level, sigma_data=d)
    skip, out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    torch.testing.assert_close(skip * x + out * f, x0, rtol=0, atol=1e-12)
    vp = Level.from_alpha_bar(torch.tensor([0.9, 0.5, 0.1]))
    v = regression_target("v", x0, x, noise, vp)
    torch.testing.assert_close(regression_target("edm", x0, x, noise, vp, sigma_data=1.0), -v)


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimiser_of_every_loss_is_the_denoiser(kind: str) -> None:
    """Regression of the target on x: for x0 ~ N(0, c) the best linear map is the best of all."""
    c, alpha_bar, count = 0.25, 0.3, 200_000
    level = Level.from_alpha_bar(alpha_bar)
    x0, noise = math.sqrt(c) * draws(2, count, 1, 1, 1), draws(3, count, 1, 1, 1)
    x = diffuse(x0, level, noise)
    target = regression_target(kind, x0, x, noise, level, sigma_data=0.5)
    slope = float((target * x).mean() / (x * x).mean())
    found = Prediction(x[:5], level, kind, slope * x[:5], sigma_data=0.5).x0 / x[:5]
    best = math.sqrt(alpha_bar) * c / (alpha_bar * c + 1 - alpha_bar)
    assert found.flatten().tolist() == pytest.approx([best] * 5, abs=4e-3)


# --- one model in three families


class Perfect(nn.Module):
    """The perfect network of a family: undoes what it is shown and told, and answers for a mixture."""

    def __init__(self, mixture: Mixture, process: ProcessConfig) -> None:
        super().__init__()
        self.mixture, self.process, self.chain = mixture, process, process.chain()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        if self.process.preconditioning == "edm":
            s = (4 * t).exp()
            factor = (s**2 + self.process.sigma_data**2).sqrt()  # the input is x / factor, of x0 + s eps
            level = Level(torch.ones_like(s), s)
        elif self.process.preconditioning == "flow":
            level = Level(1 - t / 1000, t / 1000)
            factor = torch.ones_like(t)
        else:
            whole = t.round().long()
            level, factor = self.chain.level(whole), torch.ones_like(t)
        seen = x * factor.reshape(-1, 1, 1, 1)
        x0 = self.mixture.denoised(seen, level.alpha, level.sigma)
        eps = self.mixture.eps(seen, level.alpha, level.sigma)
        return regression_target(self.process.target, x0, seen, eps, level, self.process.sigma_data)


def test_edm_flow_and_chain_walk_the_same_way() -> None:
    """Deterministic trajectories of three perfect networks, on any of their paths, are one: x / alpha agrees."""
    mixture = Mixture.random((1, 2, 2), 3, seed=4)
    vp = ProcessConfig(schedule="cosine", steps=1000, target="v", variance="fixed_small")
    chosen = vp.chain().level(torch.tensor([940, 800, 640, 420, 200, 60, 5]))
    s = chosen.sigma / chosen.alpha
    paths = {
        "chain": Level(chosen.alpha, chosen.sigma),
        "edm": Level(torch.ones_like(s), s),
        "flow": Level(1 / (1 + s), s / (1 + s)),
    }
    start = draws(5, 6, 1, 2, 2) * float(s[0])
    walks = {}
    for process in (vp, EDM, FLOW):
        denoiser = ChainDenoiser(Perfect(mixture, process), process, "none")
        for name, path in paths.items():  # every network on every path: 9 walks
            levels = [Level(path.alpha[k : k + 1], path.sigma[k : k + 1]) for k in range(len(s))] + [Level.clean()]
            x, seen = start * float(levels[0].alpha), []
            for here, there in zip(levels[:-1], levels[1:], strict=True):
                x = ddim_move(denoiser(x, here), there)
                seen.append(x / float(there.alpha))
            walks[process.preconditioning, name] = torch.stack(seen)
    reference = walks["chain", "chain"]
    for walk in walks.values():  # what is told is float32: about 1e-7 of ln s
        torch.testing.assert_close(walk, reference, rtol=0, atol=2e-5)
    assert (reference[-1] - reference[0]).abs().max() > 1, "the images moved"


def test_other_levels_than_the_trained_ones_clip_alike() -> None:
    """A chain's network asked at alpha = 1 answers as at the variance-preserving level of the same log-SNR."""
    process = ProcessConfig(schedule="cosine", target="v", variance="fixed_small")
    denoiser = ChainDenoiser(Perfect(Mixture.random((1, 2, 2), 2, seed=1), process), process, "static")
    level = process.chain().level(300)
    x = 3 * draws(6, 4, 1, 2, 2)
    ours = denoiser(x, level)
    theirs = denoiser(x / float(level.alpha), Level(level.alpha / level.alpha, level.sigma / level.alpha))
    assert (ours.x0.abs() == 1).any()
    torch.testing.assert_close(theirs.x0, ours.x0)
    torch.testing.assert_close(theirs.eps, ours.eps)


@pytest.mark.parametrize("process", [EDM, FLOW])
def test_objectives_of_continuous_levels(process: ProcessConfig) -> None:
    """A perfect network's error is what no network can know; the bound and learned variances are refused."""
    mixture = Mixture.scalar([1.0], [0.2], [0.5])
    objective = Objective(ChainDenoiser(Perfect(mixture, process), process), ObjectiveConfig())
    count = 20_000
    t = torch.full((count,), 400.3, dtype=torch.float64)
    terms = objective(mixture.sample(count, 0), t, draws(7, count, 1, 1, 1))
    level = process.build_preconditioning().level(t[:1])
    a, b = float(level.alpha), float(level.sigma)
    unknown = b**2 * 0.25 / (a**2 * 0.25 + b**2)  # Var(x0 | x)
    ratio = {"edm": (b * 0.5) ** 2 / (b**2 + 0.25 * a**2), "flow": (b / (a + b)) ** 2}[process.preconditioning]
    assert float(terms["mse"].mean()) == pytest.approx(unknown / ratio, rel=0.05)
    assert torch.equal(terms["loss"], terms["mse"])
    with pytest.raises(ValueError, match="sum over the steps of a chain"):
        Objective(objective.denoiser, ObjectiveConfig(loss="vlb"))
