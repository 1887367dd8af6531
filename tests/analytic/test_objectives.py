"""Training objectives: what they regress, who gets which gradient, and that the perfect network reaches the minimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import diffuse, named_schedule
from undiffuse.objectives import Objective, ObjectiveConfig, bound_term, regression_target
from undiffuse.testing.oracles import Mixture, Noise64, OracleNet
from undiffuse.timesteps import LossSecondMoment

STEPS = 1000
T = torch.tensor([0, 1, 250, 999])


class Leaf(torch.nn.Module):
    """A network whose output is a free tensor, to see which of its numbers get a gradient."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        draw = torch.randn(4, channels, 3, 3, generator=torch.Generator().manual_seed(channels), dtype=torch.float64)
        self.output = torch.nn.Parameter(0.5 * draw)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.output


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels on the 8-bit grid, and noise; [4, 2, 3, 3]."""
    g = torch.Generator().manual_seed(1)
    x0 = torch.randint(0, 256, (4, 2, 3, 3), generator=g).double() / 127.5 - 1
    return x0, torch.randn(4, 2, 3, 3, generator=g, dtype=torch.float64)


def gradients(target: str, variance: str, term: str, loss: str = "hybrid") -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of a term's sum with respect to the predicted target and the variance output, [4, 2, 3, 3] each."""
    net = Leaf(4)
    process = ProcessConfig(steps=STEPS, target=target, variance=variance)
    terms = Objective(ChainDenoiser(net, process), ObjectiveConfig(loss=loss))(images()[0], T, images()[1])
    gradient = torch.autograd.grad(terms[term].sum(), net.output, allow_unused=True)[0]
    gradient = torch.zeros_like(net.output) if gradient is None else gradient
    return gradient.split(2, dim=1)


@pytest.mark.parametrize("target", ["eps", "x0", "previous_mean", "v"])
@pytest.mark.parametrize("variance", ["learned_range", "learned"])
def test_bound_in_the_hybrid_loss_trains_the_variance_only(target: str, variance: str) -> None:
    """d vb / d prediction = 0 exactly and d vb / d v != 0 in every image; the squared error does the opposite."""
    prediction, spread = gradients(target, variance, "vb")
    assert (prediction == 0).all()
    assert (spread.flatten(1).abs().amax(1) > 0).all()
    prediction, spread = gradients(target, variance, "mse")
    assert (spread == 0).all()
    assert (prediction.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("target", ["eps", "x0", "previous_mean", "v"])
def test_the_bound_itself_trains_both(target: str) -> None:
    for part in gradients(target, "learned_range", "vb", loss="vlb"):
        assert (part.flatten(1).abs().amax(1) > 0).all()


def test_detaching_does_not_change_the_bound() -> None:
    net, (x0, noise) = Leaf(4), images()
    denoiser = ChainDenoiser(net, ProcessConfig())
    terms = [Objective(denoiser, ObjectiveConfig(loss=loss))(x0, T, noise)["vb"] for loss in ("hybrid", "vlb")]
    torch.testing.assert_close(*terms, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_how_terms_make_the_loss(steps: int) -> None:
    """Hybrid: mse + lambda T vb, or mse + vb; bound: T vb, or vb; and mse is of the noise by default."""
    net, (x0, noise) = Leaf(4), images()
    t = T.clamp(max=steps - 1)
    denoiser = ChainDenoiser(net, ProcessConfig(steps=steps))
    run = lambda **kw: Objective(denoiser, ObjectiveConfig(**kw))(x0, t, noise)  # noqa: E731
    hybrid = run(loss="hybrid")
    torch.testing.assert_close(hybrid["mse"], (noise - net.output[:, :2]).square().flatten(1).mean(1))
    for config, factor in (({}, steps / 1000), ({"rescale": False}, 1), ({"vb_weight": 0.01}, steps / 100)):
        terms = run(loss="hybrid", **config)
        torch.testing.assert_close(terms["loss"], hybrid["mse"] + factor * hybrid["vb"])
    torch.testing.assert_close(run(loss="vlb")["loss"], steps * hybrid["vb"])
    torch.testing.assert_close(run(loss="vlb", rescale=False)["loss"], hybrid["vb"])


def test_errors_of_the_targets_are_related_by_the_snr() -> None:
    """|eps error|^2 = SNR |x0 error|^2 = SNR / (SNR + 1) |v error|^2 for one and the same prediction."""
    (x0, noise), chain = images(), named_schedule("linear", STEPS)
    t = torch.tensor([5, 100, 250, 700])
    transition = chain.transition(t)
    level, x_t = transition.source, diffuse(x0, transition.source, noise)
    guess = 0.3 * torch.randn_like(x0)
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    guesses = {"x0": guess, "eps": (x_t - alpha * guess) / sigma, "v": (alpha * x_t - guess) / sigma}
    error = {}
    for target, value in guesses.items():
        denoiser = ChainDenoiser(lambda x, t, value=value: value, ProcessConfig(target=target, variance="fixed_large"))
        error[target] = Objective(denoiser, ObjectiveConfig())(x0, t, noise)["mse"]
    snr = (level.alpha / level.sigma) ** 2
    torch.testing.assert_close(error["eps"], snr * error["x0"])
    torch.testing.assert_close(error["eps"], snr / (snr + 1) * error["v"])


@pytest.mark.parametrize(("t", "expected"), [(1, 0.9996), (250, 0.215873), (500, 0.0208773), (1000, 1.009e-5)])
def test_least_error_on_gaussian_data(t: int, expected: float) -> None:
    """The perfect noise prediction errs by c abar / (c abar + 1 - abar), here for data of variance c = 1/4."""
    gaussian, chain, n = Mixture.scalar([1.0], [0.0], [0.5]), named_schedule("linear", STEPS), 20_000
    denoiser = ChainDenoiser(OracleNet(gaussian, chain), ProcessConfig(variance="fixed_small"))
    terms = Objective(denoiser, ObjectiveConfig())(
        gaussian.sample(n, seed=t), torch.full((n,), t - 1), Noise64(t, n).normal((1, 1, 1))
    )
    assert terms["loss"].mean().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / n))


def test_the_perfect_network_is_a_minimum_of_every_loss() -> None:
    """Scaling or shifting the exact prediction, or moving its variance, raises the expected loss."""
    mixture, chain, n = Mixture.scalar([0.5, 0.5], [-0.5, 0.4], [0.1, 0.2]), named_schedule("cosine", 100), 4000
    x0, noise = mixture.sample(n, seed=0), Noise64(1, n).normal((1, 1, 1))
    t = torch.arange(n) % 99 + 1  # not the decoder, whose pixels would have to be on the 8-bit grid

    class Moved(torch.nn.Module):
        def __init__(self, shift: float, spread: float) -> None:
            super().__init__()
            self.net, self.shift, self.spread = OracleNet(mixture, chain, "eps", fraction="optimal"), shift, spread

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            value, raw = self.net(x, t).chunk(2, dim=1)
            return torch.cat([value + self.shift, raw + self.spread], dim=1)

    for loss in ("hybrid", "vlb"):

        def mean_loss(shift: float, spread: float, loss: str = loss) -> float:
            denoiser = ChainDenoiser(Moved(shift, spread), ProcessConfig(schedule="cosine", steps=100))
            return Objective(denoiser, ObjectiveConfig(loss=loss))(x0, t, noise)["loss"].mean().item()

        best = mean_loss(0, 0)
        for shift, spread in ((0.1, 0), (-0.1, 0), (0, 0.4), (0, -0.4)):
            assert mean_loss(shift, spread) > best, (loss, shift, spread)


def test_a_fresh_network_starts_at_one() -> None:
    """Its output is exactly zero, so the simple loss is the mean square of the noise."""
    net = UNetConfig(
        image_size=16, model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), num_heads=1
    ).build()
    noise = NoiseSource(0, range(8)).normal((3, 16, 16))
    terms = Objective(ChainDenoiser(net, ProcessConfig(variance="fixed_large")), ObjectiveConfig())(
        torch.rand(8, 3, 16, 16) * 2 - 1, torch.arange(8) * 100, noise
    )
    torch.testing.assert_close(terms["loss"], noise.square().flatten(1).mean(1))
    assert terms["loss"].mean().item() == pytest.approx(1, abs=0.05)


def test_importance_sampling_of_the_bound_is_unbiased_and_better() -> None:
    """Weighted draws estimate the sum of the bound's terms with less spread than uniform draws."""
    mixture, steps = Mixture.scalar([1.0], [0.0], [0.5]), 100
    chain, process = named_schedule("cosine", steps), ProcessConfig(schedule="cosine", steps=steps)
    objective = Objective(ChainDenoiser(OracleNet(mixture, chain, fraction=1.0), process), ObjectiveConfig(loss="vlb"))
    n = 40_000

    def draw(t: np.ndarray, seed: int) -> torch.Tensor:
        x0 = (((mixture.sample(len(t), seed).clamp(-1, 1) + 1) * 127.5).round() / 127.5) - 1
        return objective(x0, torch.from_numpy(t), Noise64(seed, len(t)).normal((1, 1, 1)))["loss"]

    sampler, u = LossSecondMoment(steps), NoiseSource(9, range(n)).uniform().numpy()
    every = np.repeat(np.arange(steps), 10)
    sampler.update(every, draw(every, seed=1).numpy())
    uniform = draw(np.minimum((u * steps).astype(np.int64), steps - 1), seed=2)
    t, weights = sampler.sample(u)
    weighted = torch.from_numpy(weights) * draw(t, seed=3)
    error = math.hypot(uniform.std() / math.sqrt(n), weighted.std() / math.sqrt(n))
    assert abs(uniform.mean() - weighted.mean()) < 4 * error
    assert weighted.std() < 0.6 * uniform.std()


def test_denoised_image_is_not_clipped_in_training() -> None:
    """With x0 estimates far outside [-1, 1] the bound term is that of the unclipped prediction."""
    x0, noise = images()
    net = Leaf(2)
    denoiser = ChainDenoiser(net, ProcessConfig(variance="fixed_large"), clip="static")
    t = torch.tensor([700, 800, 900, 999])
    transition = denoiser.chain.transition(t)
    terms = Objective(denoiser, ObjectiveConfig(loss="vlb", rescale=False))(x0, t, noise)
    x_t = diffuse(x0, transition.source, noise)
    free = bound_term(denoiser.clipping("none")(x_t, transition.source), x0, transition)
    torch.testing.assert_close(terms["vb"], free)
    assert ((bound_term(denoiser(x_t, transition.source), x0, transition) - free).abs() > 1e-6).all()


def test_regression_targets() -> None:
    x0, noise = images()
    transition = named_schedule("linear", STEPS).transition(T)
    x_t = diffuse(x0, transition.source, noise)
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (transition.source.alpha, transition.source.sigma))
    torch.testing.assert_close(regression_target("v", x0, x_t, noise, transition), alpha * noise - sigma * x0)
    mean = regression_target("previous_mean", x0, x_t, noise, transition)
    torch.testing.assert_close(mean[0], x0[0])  # the step onto the clean image is that image
    assert regression_target("eps", x0, x_t, noise, transition) is noise
    assert regression_target("x0", x0, x_t, noise, transition) is x0


@pytest.mark.parametrize(
    ("config", "variance", "message"),
    [
        ({"loss": "hybrid"}, "fixed_large", "variance='learned_range'"),
        ({"loss": "simple"}, "learned_range", "loss='hybrid'"),
        ({"loss": "perceptual"}, "fixed_large", "simple, hybrid, vlb"),
        ({"decoder": "logistic"}, "fixed_large", "exact, tanh"),
    ],
)
def test_impossible_objectives_are_explained(config: dict[str, str], variance: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(ChainDenoiser(Leaf(4), ProcessConfig(variance=variance)), ObjectiveConfig(**config))
