"""Likelihood: the discretised decoder, the bound's terms, and the bound against the known log-probability."""

from __future__ import annotations

import math

import pytest
import torch

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.likelihood import bits_per_dim, mean_and_error, prior_bits
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import diffuse, named_schedule
from undiffuse.objectives import bound_term, discretized_log_likelihood, normal_kl
from undiffuse.prediction import FixedVariance, Prediction
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser, OracleNet

LINEAR = named_schedule("linear", 1000)
BINS = torch.arange(256, dtype=torch.float64) / 127.5 - 1  # pixel values on the 8-bit grid
MIXTURE = Mixture.scalar([0.3, 0.4, 0.3], [-0.6, 0.0, 0.5], [0.06, 0.1, 0.15])


def decoder(
    values: torch.Tensor, mean: float, std: float, kind: str = "exact", dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    m, s = torch.tensor(mean, dtype=dtype), torch.tensor(math.log(std), dtype=dtype)
    return discretized_log_likelihood(values.to(dtype), m, s, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [1e-3, 7e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("mean", [-1.7, -1.0, -0.31, 0.0, 0.9999, 1.2])
def test_decoder_sums_to_one_over_all_bins(mean: float, std: float, dtype: torch.dtype) -> None:
    total = decoder(BINS, mean, std, dtype=dtype).double().exp().sum().item()
    assert total == pytest.approx(1, abs=2e-5 if dtype == torch.float32 else 1e-12)


def exact_log_mass(low: float, high: float) -> float:
    """log(Phi(high) - Phi(low)) by the complementary error function on the side where it keeps its digits."""
    if low > 0:
        low, high = -high, -low
    return math.log(0.5 * (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2))))


@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.05), (0.2, 0.02), (-0.9, 0.5), (0.99, 0.01), (0.0, 3.0)])
def test_decoder_is_the_exact_gaussian_integral(mean: float, std: float) -> None:
    """In float64 to 1e-9 wherever double precision can tell the two sides of a bin apart; the outer bins are open."""
    got = decoder(BINS, mean, std)
    for x, value in zip(BINS.tolist(), got.tolist(), strict=True):
        low = -math.inf if x == -1 else (x - 1 / 255 - mean) / std
        high = math.inf if x == 1 else (x + 1 / 255 - mean) / std
        if max(abs(low) if high < 0 else 0, abs(high) if low > 0 else 0) < 30:
            assert value == pytest.approx(exact_log_mass(low, high), rel=1e-9, abs=1e-10)


def test_decoder_far_from_the_mean_keeps_value_and_gradient() -> None:
    """A hundred deviations away, in float32: log p is about -z^2 / 2 and its slope in the mean z / std, not 0."""
    mean, std = torch.tensor([0.9, -0.9, 0.3], requires_grad=True), 1.6e-2
    x0 = BINS[[38, 217, 0]].float()
    log_p = discretized_log_likelihood(x0, mean, torch.tensor(math.log(std)))
    z = ((mean.detach() - x0).abs() - 1 / 255) / std
    torch.testing.assert_close(log_p, -0.5 * z**2 - (z * math.sqrt(2 * math.pi)).log(), rtol=1e-4, atol=0)
    slope = torch.autograd.grad(log_p.sum(), mean)[0]
    torch.testing.assert_close(slope.abs(), z / std, rtol=2e-3, atol=0)
    assert slope.sign().tolist() == [-1, 1, -1]


def test_original_approximation_is_near_and_floored() -> None:
    """Its distribution function errs by at most 1.8e-4, by a factor in the tails, and it never goes below 1e-12."""
    exact, approximate = (decoder(BINS, 0.1, 0.2, kind).exp() for kind in ("exact", "tanh"))
    assert 1e-6 < (exact - approximate).abs().max() < 3.6e-4
    assert decoder(BINS, 0.1, 1e-3, "tanh").min().item() == pytest.approx(math.log(1e-12))
    assert decoder(BINS, 0.1, 1e-3).min().item() < -1e5


# Bits of an interior and of an outer bin for a perfect mean: no chain codes 8-bit images below these.
@pytest.mark.parametrize(
    ("schedule", "steps", "interior", "edge"),
    [
        ("linear", 1000, 1.305, 0.510),
        ("linear", 4000, 0.460, 0.212),
        ("cosine", 1000, 0.739, 0.323),
        ("cosine", 4000, 0.120, 0.059),
    ],
)
def test_decoder_floor_of_a_chain(schedule: str, steps: int, interior: float, edge: float) -> None:
    std = math.exp(0.5 * named_schedule(schedule, steps).posterior_log_variance_clipped[0])
    bits = [-decoder(BINS[i : i + 1], BINS[i].item(), std).item() / math.log(2) for i in (0, 100, 255)]
    assert bits == pytest.approx([edge, interior, edge], abs=6e-4)


def test_divergence_of_gaussians() -> None:
    """Against numerical integration; zero for equal arguments."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    m1, v1, m2, v2 = 0.3, 0.5, -0.4, 1.7
    log_p, log_q = (-0.5 * (z - m) ** 2 / v - 0.5 * math.log(2 * math.pi * v) for m, v in ((m1, v1), (m2, v2)))
    integral = torch.trapezoid(log_p.exp() * (log_p - log_q), z).item()
    one = lambda v: torch.tensor([v], dtype=torch.float64)  # noqa: E731
    assert normal_kl(one(m1), one(math.log(v1)), one(m2), one(math.log(v2))).item() == pytest.approx(integral, rel=1e-8)
    assert normal_kl(one(m1), one(-3.0), one(m1), one(-3.0)).item() == 0


@pytest.mark.parametrize(("t", "bits"), [(2, 0.175), (10, 0.0087), (100, 1.2e-4)])
def test_price_of_the_wrong_fixed_variance(t: int, bits: float) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    step = LINEAR.transition(t - 1)
    price = normal_kl(zero, step.log_posterior_variance, zero, step.log_beta).item() / math.log(2)
    assert price == pytest.approx(bits, rel=0.02)


@pytest.mark.parametrize(
    ("variance", "total", "first_nine"), [("fixed_large", 6.6438, 0.32), ("fixed_small", 7.3145, 0.37)]
)
def test_exact_bound_of_standard_normal_data(variance: str, total: float, first_nine: float) -> None:
    """Sum of L_1..L_{T-1} in bits for data N(0, 1), the perfect mean, and a fixed variance; T = 1000, linear.

    At x_t = 0 the denoised image is 0 and x0 has variance 1 - abar, so x0 = sqrt(1 - abar) makes each term its mean.
    """
    gaussian = Mixture.scalar([1.0], [0.0], [1.0])
    k = torch.arange(1, 1000)
    steps = LINEAR.transition(k)
    level = steps.source
    x0 = level.sigma.reshape(-1, 1, 1, 1)
    x_t = diffuse(x0, level, -(level.alpha / level.sigma).reshape(-1, 1, 1, 1) * x0)
    assert x_t.abs().max() < 1e-12
    process = ProcessConfig(variance=variance)
    prediction = ChainDenoiser(OracleNet(gaussian, LINEAR), process, clip="none")(x_t, level)
    bits = bound_term(prediction, x0, steps)
    assert bits.sum().item() == pytest.approx(total, abs=6e-5)
    assert (bits[:9].sum() / bits.sum()).item() == pytest.approx(first_nine, abs=0.005)


def test_bound_with_the_exact_reverse_chain_is_the_entropy() -> None:
    """For Gaussian data the reverse chain with the optimal variance is exact at any stride, so nothing is lost."""
    gaussian, n = Mixture.scalar([1.0], [0.0], [0.3]), 20_000
    x0 = on_grid(gaussian.sample(n, seed=1))
    for spec in ("80", "20"):
        bound = bits_per_dim(OracleDenoiser(gaussian, LINEAR, "optimal"), LINEAR.respaced(spec), x0, Noise64(3, n))
        gap, error = mean_and_error(bound.total - true_bits(gaussian, x0))
        assert error < 0.015
        assert abs(gap) < 4 * error


def on_grid(x: torch.Tensor) -> torch.Tensor:
    """Nearest pixel values."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def true_bits(mixture: Mixture, x0: torch.Tensor) -> torch.Tensor:
    """-log2 of the probability of each one-number image's bin under the data distribution [B]."""
    x = x0.reshape(-1, 1)
    std = mixture.variances[:, 0].sqrt()
    edges = [torch.special.ndtr((x + d / 255 - mixture.means[:, 0]) / std) for d in (-1, 1)]
    low = torch.where(x < -0.999, torch.zeros_like(edges[0]), edges[0])
    high = torch.where(x > 0.999, torch.ones_like(edges[1]), edges[1])
    return -((high - low) @ mixture.weights).log2()


def gap_of(steps: int, variance: str, n: int = 4000) -> tuple[float, float]:
    """Mean excess of a chain's bound over the true -log2 p of the mixture, and its standard error."""
    x0 = on_grid(MIXTURE.sample(n, seed=2))
    chain = LINEAR.respaced(str(steps))
    bound = bits_per_dim(OracleDenoiser(MIXTURE, LINEAR, variance), chain, x0, Noise64(4, n))
    return mean_and_error(bound.total - true_bits(MIXTURE, x0))


def test_the_bound_holds_and_tightens_with_the_number_of_steps() -> None:
    """E[bound] >= -log p for every variance and stride, closer with more steps, closest with the optimal variance."""
    gaps = {
        variance: [gap_of(steps, variance) for steps in (13, 25, 100)]
        for variance in ("fixed_large", "fixed_small", "optimal")
    }
    for values in gaps.values():
        assert all(gap > -3 * error for gap, error in values), gaps
        assert values[0][0] > 1.2 * values[1][0] > 1.2 * 1.8 * values[2][0], gaps
    assert all(
        gaps["optimal"][i][0] < 0.8 * min(gaps[v][i][0] for v in ("fixed_large", "fixed_small")) for i in range(3)
    ), gaps
    assert gaps["optimal"][2][0] < 0.15  # bits; the first-order error of 13 steps is half a bit


def test_parts_add_up_and_are_in_order() -> None:
    """total = sum of terms + prior, entry 0 the decoder; errors of image and noise are related by the SNR."""
    n, chain = 16, LINEAR.respaced("30")
    x0 = on_grid(MIXTURE.sample(n, seed=5))
    bound = bits_per_dim(OracleDenoiser(MIXTURE, LINEAR, "optimal"), chain, x0, Noise64(6, n))
    torch.testing.assert_close(bound.total, bound.vb.sum(1) + bound.prior)
    assert bound.steps == chain.indices.tolist()
    level = chain.level(torch.arange(30))
    torch.testing.assert_close(bound.mse, (level.alpha / level.sigma) ** 2 * bound.xstart_mse)
    torch.testing.assert_close(bound.prior, prior_bits(x0, chain))
    eps = Noise64(6, n).normal((1, 1, 1), step=29)  # the cleanest level draws the last step's noise
    prediction = OracleDenoiser(MIXTURE, LINEAR, "optimal")(diffuse(x0, chain.level(0), eps), chain.level(0))
    torch.testing.assert_close(bound.vb[:, 0], bound_term(prediction, x0, chain.transition(0)))


def test_prior_term() -> None:
    """KL(N(alpha x0, sigma^2) || N(0, 1)) = (alpha^2 x0^2 + sigma^2 - 1 - log sigma^2) / 2, in bits."""
    x0 = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    abar = LINEAR.alphas_cumprod[-1]
    exact = 0.5 * (abar * 0.25 + (1 - abar) - 1 - math.log1p(-abar)) / math.log(2)
    assert prior_bits(x0, LINEAR).tolist() == pytest.approx([exact] * 2, rel=1e-6)
    assert exact == pytest.approx(7.28e-6, rel=1e-3)


def test_estimate_from_some_terms_is_unbiased() -> None:
    """The same images by all 50 terms and by 8 of them, drawn for each image: equal within the error of the means."""
    n, chain, noise = 8000, LINEAR.respaced("50"), NoiseSource(8, range(8000))
    x0 = on_grid(MIXTURE.sample(n, seed=7))
    denoiser = OracleDenoiser(MIXTURE, LINEAR, "fixed_large")
    full, part = (bits_per_dim(denoiser, chain, x0, noise, terms=terms) for terms in (None, 8))
    gap, error = mean_and_error(part.total - full.total)
    assert abs(gap) < 4 * error
    assert error < 0.05
    drawn = ~part.vb.isnan()
    assert (drawn.sum(1) == 8).all()
    assert drawn[:, 0].all()
    assert drawn.any(0).all()  # every level has its chance
    again = bits_per_dim(denoiser, chain, x0[[5, 2]], NoiseSource(8, [5, 2]), terms=8)
    torch.testing.assert_close(again.total, part.total[[5, 2]])
    torch.testing.assert_close(bits_per_dim(denoiser, chain, x0, noise, terms=50).total, full.total)


def test_impossible_estimates_are_explained() -> None:
    x0, denoiser = on_grid(MIXTURE.sample(2, seed=7)), OracleDenoiser(MIXTURE, LINEAR)
    with pytest.raises(ValueError, match="at least 2"):
        bits_per_dim(denoiser, LINEAR, x0, NoiseSource(8, [0, 1]), terms=1)
    with pytest.raises(ValueError, match="NoiseSource"):
        bits_per_dim(denoiser, LINEAR, x0, Noise64(8, 2), terms=3)


def test_bits_of_an_image_do_not_depend_on_its_batch() -> None:
    x0, chain = on_grid(MIXTURE.sample(5, seed=1)).float(), LINEAR.respaced("7")
    whole = bits_per_dim(OracleDenoiser(MIXTURE, LINEAR), chain, x0, NoiseSource(1, range(5)))
    part = bits_per_dim(OracleDenoiser(MIXTURE, LINEAR), chain, x0[[3, 1]], NoiseSource(1, [3, 1]))
    torch.testing.assert_close(part.total, whole.total[[3, 1]])


def test_the_step_onto_the_image_mixes_with_others_in_a_batch() -> None:
    """A batch may hold decoder terms and divergences side by side; each image gets its own."""
    k = torch.tensor([0, 1, 0, 500])
    x0 = on_grid(MIXTURE.sample(4, seed=2))
    steps = LINEAR.transition(k)
    x_t = diffuse(x0, steps.source, Noise64(0, 4).normal((1, 1, 1)))
    together = bound_term(Prediction(x_t, steps.source, "x0", 0.9 * x0, FixedVariance("fixed_large")), x0, steps)
    for i in range(4):
        step = LINEAR.transition(int(k[i]))
        alone = Prediction(x_t[i : i + 1], step.source, "x0", 0.9 * x0[i : i + 1], FixedVariance("fixed_large"))
        torch.testing.assert_close(bound_term(alone, x0[i : i + 1], step), together[i : i + 1])


def test_mean_and_standard_error() -> None:
    assert mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    assert math.isnan(mean_and_error(torch.tensor([1.0]))[1])
