"""Predictions: conversions, their stability at both ends of the path, and the exact oracle's consistency."""

from __future__ import annotations

import math

import pytest
import torch

from undiffuse.denoiser import ChainDenoiser, ProcessConfig, clip_dynamic, clip_static
from undiffuse.noise_levels import DiscreteSchedule, Level, diffuse, named_schedule
from undiffuse.prediction import FixedVariance, LearnedLogVariance, Prediction, VarianceFraction
from undiffuse.testing.oracles import Mixture, OracleNet

CHAIN = named_schedule("cosine", 1000)
KINDS = ("x0", "eps", "v", "previous_mean")


def truth(
    k: torch.Tensor | int, dtype: torch.dtype, chain: DiscreteSchedule = CHAIN
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """x_t and all its true predictions for random x0 in [-1, 1] and noise, computed in float64."""
    g = torch.Generator().manual_seed(3)
    batch = k.numel() if isinstance(k, torch.Tensor) else 2
    x0 = torch.rand(batch, 3, 5, 5, generator=g, dtype=torch.float64) * 2 - 1
    eps = torch.randn(batch, 3, 5, 5, generator=g, dtype=torch.float64)
    t = chain.transition(k)
    x = diffuse(x0, t.source, eps)
    alpha, sigma, c0, ct = (v.reshape(-1, 1, 1, 1) for v in (t.source.alpha, t.source.sigma, t.coef_x0, t.coef_xt))
    values = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "previous_mean": c0 * x0 + ct * x}
    return x.to(dtype), {name: value.to(dtype) for name, value in values.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversions_round_trip(kind: str, dtype: torch.dtype) -> None:
    """From any of the four all others follow, wherever the conversion is well conditioned."""
    k = torch.tensor([20, 300, 700, 950])
    x, values = truth(k, dtype)
    prediction = Prediction(x, CHAIN.level(k), kind, values[kind], trained=CHAIN.transition(k))
    # "mean" holds x0 with the small weight coef_x0, so rounding grows by 1 / coef_x0 (100 at these steps).
    tolerance = (2e-4 if kind == "previous_mean" else 1e-5) if dtype == torch.float32 else 1e-10
    for name in ("x0", "eps", "v"):
        torch.testing.assert_close(getattr(prediction, name), values[name], rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(
        prediction.mean(CHAIN.transition(k)), values["previous_mean"], rtol=tolerance, atol=tolerance
    )
    sigma = CHAIN.level(k).sigma.reshape(-1, 1, 1, 1).to(dtype)
    torch.testing.assert_close(prediction.score, -values["eps"] / sigma, rtol=tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
@pytest.mark.parametrize("k", [0, 999])
def test_conversions_are_stable_at_both_ends(kind: str, k: int) -> None:
    """In float32 an error appears only where the quantity asked for is barely in the one given, and v never fails."""
    x, values = truth(k, torch.float32)
    level = CHAIN.level(k)
    alpha, sigma = level.alpha.item(), level.sigma.item()
    prediction = Prediction(x, level, kind, values[kind])
    amplification = {
        "x0": {"x0": 0.0, "eps": 1 / sigma, "v": 1 / sigma},
        "eps": {"x0": 1 / alpha, "eps": 0.0, "v": 1 / alpha},
        "v": {"x0": 1.0, "eps": 1.0, "v": 0.0},
    }[kind]
    for name, factor in amplification.items():
        error = (getattr(prediction, name) - values[name]).abs().max().item()
        assert error <= 1e-6 * factor, (name, error, factor)


@pytest.mark.parametrize("level", [Level.clean(), Level.noise()])
def test_v_and_own_kind_at_the_very_ends(level: Level) -> None:
    """sigma = 0 or alpha = 0: v gives everything finite, and what was predicted is returned untouched."""
    g = torch.Generator().manual_seed(5)
    x, value = torch.randn(2, 2, 1, 4, 4, generator=g)
    v = Prediction(x, level, "v", value)
    clean = level.sigma.item() == 0
    torch.testing.assert_close(v.x0, x if clean else -value)
    torch.testing.assert_close(v.eps, value if clean else x)
    assert Prediction(x, level, "eps", value).eps is value
    assert Prediction(x, level, "x0", value).x0 is value


def test_oracle_obeys_tweedie_and_all_conversions() -> None:
    """E[x0|x] = (x + sigma^2 score) / alpha for the mixture, and the four kinds of perfect network agree."""
    mixture = Mixture.random((2, 1, 2), components=3, seed=0)
    chain = named_schedule("linear", 100)
    k = torch.tensor([0, 10, 60, 99])
    x = torch.randn(4, 2, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    level = chain.level(k)
    exact = mixture.denoised(x, level.alpha, level.sigma)
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    score = mixture.score(x, level.alpha, level.sigma)
    torch.testing.assert_close((x + sigma**2 * score) / alpha, exact, rtol=1e-9, atol=1e-10)
    for kind in KINDS:
        process = ProcessConfig(steps=100, target=kind, variance="learned_range")
        denoiser = ChainDenoiser(OracleNet(mixture, chain, kind, fraction=0.5), process, clip="none")
        prediction = denoiser(x, level)
        torch.testing.assert_close(prediction.x0, exact, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(prediction.score, score, rtol=1e-6, atol=1e-5)


def test_oracle_formulas_by_differentiation_and_sampling() -> None:
    """The oracle itself: score and class gradient by autograd, the conditional moments by weighted draws."""
    mixture = Mixture.random((1, 1, 2), components=4, seed=2, classes=2)
    alpha, sigma = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64).reshape(1, 1, 1, 2).requires_grad_()
    score = torch.autograd.grad(mixture.log_prob(x, alpha, sigma).sum(), x)[0]
    torch.testing.assert_close(mixture.score(x, alpha, sigma), score)
    for y in (0, 1):
        posterior = mixture.class_log_posterior(x, alpha, sigma)
        gradient = torch.autograd.grad(posterior[:, y].sum(), x)[0]
        torch.testing.assert_close(mixture.class_gradient(x, y, alpha, sigma), gradient)
    draws = mixture.sample(400_000, seed=3)
    weights = (-((x.detach() - alpha * draws) ** 2).sum((1, 2, 3)) / (2 * sigma**2)).softmax(0)
    mean = (weights.reshape(-1, 1, 1, 1) * draws).sum(0, keepdim=True)
    variance = (weights.reshape(-1, 1, 1, 1) * (draws - mean) ** 2).sum(0, keepdim=True)
    torch.testing.assert_close(mixture.denoised(x, alpha, sigma), mean, rtol=0, atol=6e-3)
    torch.testing.assert_close(mixture.variance(x, alpha, sigma), variance, rtol=0.03, atol=0)
    total_mean, total_covariance = mixture.moments()
    torch.testing.assert_close(draws.flatten(1).mean(0), total_mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(draws.flatten(1).T.cov(), total_covariance, rtol=0, atol=6e-3)


def test_variance_fraction_spans_the_bounds_of_any_stride() -> None:
    """v = 1 is beta and v = 0 is beta~ of whichever step is taken; between, the logarithm is interpolated."""
    full = named_schedule("cosine", 1000)
    for chain in (full, full.respaced("25")):
        t = chain.transition(chain.steps // 2)
        like = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
        beta = FixedVariance("fixed_large").log_variance(t, like)
        posterior = FixedVariance("fixed_small").log_variance(t, like)
        assert beta.item() == pytest.approx(math.log(chain.betas[chain.steps // 2]))
        assert posterior.item() == pytest.approx(math.log(chain.posterior_variance[chain.steps // 2]))
        for v, expected in ((1.0, beta), (0.0, posterior), (1.5, 1.5 * beta - 0.5 * posterior)):
            got = VarianceFraction(torch.full_like(like, v)).log_variance(t, like)
            torch.testing.assert_close(got, expected.expand_as(like))


def test_fixed_variance_of_the_last_step() -> None:
    """Onto the clean image both fixed variances take beta~ of the step before, for a usable decoder."""
    like = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    t = CHAIN.transition(torch.tensor([0, 1]))
    for kind in ("fixed_large", "fixed_small"):
        assert FixedVariance(kind).log_variance(t, like)[0].item() == pytest.approx(
            math.log(CHAIN.posterior_variance[1])
        )


def test_directly_learned_variance_is_exact_on_strided_chains() -> None:
    """A network that learned the exact variance of every full step yields the exact variance of a strided one."""
    c, full = 0.3, named_schedule("linear", 1000)
    sub = full.respaced("50")
    for position in (3, 20, 49):
        trained, taken = full.transition(int(sub.indices[position])), sub.transition(position)
        alpha2, sigma2 = taken.source.alpha**2, taken.source.sigma**2
        data = c * sigma2 / (c * alpha2 + sigma2)
        exact = [
            (t.log_posterior_variance.exp() + t.coef_x0**2 * data).log().reshape(1, 1, 1, 1) for t in (trained, taken)
        ]
        learned = LearnedLogVariance(exact[0], trained)
        torch.testing.assert_close(learned.log_variance(trained, exact[0]), exact[0])
        torch.testing.assert_close(learned.log_variance(taken, exact[0]), exact[1], rtol=1e-6, atol=1e-6)


def test_clipping() -> None:
    """Static clamps; dynamic clamps at the quantile and divides by it, and leaves images within [-1, 1] alone."""
    x = torch.linspace(-3, 3, 2000).reshape(1, 1, 40, 50)
    assert clip_static(x).abs().max() == 1
    s = torch.quantile(x.abs().flatten(), 0.995)
    torch.testing.assert_close(clip_dynamic(x), x.clamp(-s, s) / s)
    torch.testing.assert_close(clip_dynamic(x / 4), x / 4)
    both = torch.cat([x, x / 4])
    torch.testing.assert_close(clip_dynamic(both), torch.cat([clip_dynamic(x), x / 4]))


def test_clipped_denoised_image_moves_noise_and_mean() -> None:
    """After clipping, eps and the reverse mean are those of the clipped image."""
    chain = named_schedule("linear", 100)
    x = torch.full((1, 1, 2, 2), 3.0, dtype=torch.float64)
    denoiser = ChainDenoiser(
        lambda x, t: torch.zeros_like(x), ProcessConfig(steps=100, variance="fixed_large"), clip="static"
    )
    prediction, t = denoiser(x, chain.level(30)), chain.transition(30)
    assert (prediction.x0 == 1).all()
    torch.testing.assert_close(prediction.eps, (x - t.source.alpha) / t.source.sigma)
    torch.testing.assert_close(prediction.mean(t), t.coef_x0 + t.coef_xt * x)


def test_wrong_channel_count_names_the_process() -> None:
    denoiser = ChainDenoiser(lambda x, t: x, ProcessConfig(variance="learned_range"))
    with pytest.raises(ValueError, match="variance='learned_range' it must return 6"):
        denoiser(torch.zeros(1, 3, 4, 4), CHAIN.level(5))
