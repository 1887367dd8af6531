"""Samplers on distributions whose denoiser is known: marginals, distances, orders, and exact equivalences."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.prediction import Prediction
from undiffuse.sampling import encode, generate, sample, slerp
from undiffuse.solvers import DDIM, DDPM
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser, OracleNet, wasserstein1

SCALAR = Mixture.scalar([0.2, 0.5, 0.3], [-1, 0.1, 0.8], [0.02, 0.25, 0.05])
LINEAR, COSINE = named_schedule("linear", 1000), named_schedule("cosine", 1000)


def ks_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Two-sample Kolmogorov-Smirnov distance of two equally large sets of numbers."""
    both = torch.cat([a, b])
    ranks = [torch.searchsorted(s.sort().values, both, right=True) / len(s) for s in (a, b)]
    return (ranks[0] - ranks[1]).abs().max().item()


@pytest.mark.parametrize(
    ("schedule", "steps", "spec"), [("cosine", 150, ""), ("linear", 1000, "60"), ("cosine", 1000, "20,15,15")]
)
def test_ancestral_marginals_are_the_data(schedule: str, steps: int, spec: str) -> None:
    """With a perfect learned-range network, full and strided chains sample the mixture within Monte-Carlo error."""
    mixture = Mixture.random((2, 1, 1), components=3, seed=4)
    process = ProcessConfig(schedule=schedule, steps=steps)
    chain = process.chain().respaced(spec)
    denoiser = ChainDenoiser(OracleNet(mixture, chain, "eps", fraction="optimal"), process, clip="none")
    n = 6000
    x = generate(denoiser, chain, DDPM(), Noise64(3, n), mixture.shape).flatten(1)
    mean, covariance = mixture.moments()
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    # The variance's own error: excess kurtosis of a mixture is below one, so 2 + 1 bounds its variance.
    assert ((x.var(0) / covariance.diagonal() - 1).abs() < 4 * math.sqrt(3 / n)).all()
    truth = mixture.sample(n, seed=9).flatten(1)
    for axis in range(2):
        assert ks_distance(x[:, axis], truth[:, axis]) < 1.95 * math.sqrt(2 / n)


# Known from an independent implementation (40 000 draws, exact scores): DDIM, fixed small, fixed large, optimal.
DISTANCES = {
    ("linear", 10): (0.116, 0.154, 0.133, 0.090),
    ("linear", 25): (0.042, 0.070, 0.066, 0.026),
    ("cosine", 25): (0.021, 0.040, 0.035, 0.011),
}


@pytest.mark.parametrize(("schedule", "steps"), DISTANCES)
def test_distances_at_few_steps(schedule: str, steps: int) -> None:
    """W1 to the data in the four published columns; the optimal variance is best, then DDIM."""
    full, n = named_schedule(schedule, 1000), 20_000
    truth = SCALAR.sample(n, seed=0)
    methods = [(DDIM(), "fixed_small"), (DDPM(), "fixed_small"), (DDPM(), "fixed_large"), (DDPM(), "optimal")]
    got = []
    for solver, variance in methods:
        denoiser = OracleDenoiser(SCALAR, full, variance)
        got.append(wasserstein1(generate(denoiser, full.respaced(str(steps)), solver, Noise64(1, n), (1, 1, 1)), truth))
    assert got == pytest.approx(DISTANCES[schedule, steps], abs=0.007, rel=0.05)
    assert got[3] < got[0] < min(got[1:3])


def test_ddim_with_eta_one_is_ancestral_with_posterior_variance() -> None:
    """Same noise, same path, on the full chain and on any stride."""
    mixture = Mixture.random((1, 2, 2), components=2, seed=1)
    full = named_schedule("linear", 100)
    denoiser = OracleDenoiser(mixture, full, "fixed_small")
    for chain in (full, full.respaced("12"), full.respaced("ddim10"), full.respaced([5, 50])):
        paths = [list(sample(denoiser, chain, solver, Noise64(2, 5), mixture.shape)) for solver in (DDIM(1.0), DDPM())]
        for a, b in zip(*paths, strict=True):
            torch.testing.assert_close(a.x, b.x, rtol=1e-8, atol=1e-8)


def test_ddim_is_euler_in_sigma_over_alpha() -> None:
    """d(x / alpha) = eps d(sigma / alpha), step by step."""
    mixture, chain = Mixture.random((1, 1, 3), components=3, seed=5), COSINE.respaced("40")
    denoiser = OracleDenoiser(mixture, COSINE)
    x = x_T = Noise64(8, 4).normal(mixture.shape)
    for k in reversed(range(chain.steps)):
        a, b = chain.level(k), chain.level(k - 1) if k else Level.clean()
        slope = mixture.eps(x, a.alpha, a.sigma)
        x = (x / a.alpha + (b.sigma / b.alpha - a.sigma / a.alpha) * slope) * b.alpha
    got = generate(denoiser, chain, DDIM(), Noise64(8, 4), mixture.shape, x_T=x_T)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)  # x / alpha is 2e4 at the cosine chain's end


def test_ddim_on_a_gaussian_converges_to_the_exact_flow() -> None:
    """x0 = m + sqrt(c / (alpha^2 c + sigma^2)) (x_T - alpha m); the error is first order in 1 / steps."""
    c, m = 0.09, 0.4
    gaussian = Mixture.scalar([1.0], [m], [math.sqrt(c)])
    x_T = Noise64(0, 64).normal((1, 1, 1))
    errors = []
    for steps in (25, 50, 100, 200):
        chain = LINEAR.respaced(str(steps))
        end = chain.level(steps - 1)
        exact = m + (c / (end.alpha**2 * c + end.sigma**2)).sqrt() * (x_T - end.alpha * m)
        # The chain ends at its first level and then takes x0 there: that last jump shrinks with the flow to sigma = 0.
        got = generate(OracleDenoiser(gaussian, LINEAR), chain, DDIM(), Noise64(0, 64), (1, 1, 1), x_T=x_T)
        errors.append((got - exact).abs().max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.85 < order < 1.2 for order in orders), (errors, orders)


# Mean squared error on the scale of [0, 1] images, from an independent implementation.
@pytest.mark.parametrize(("steps", "expected"), [(10, 0.017), (20, 0.0046), (50, 0.0007), (100, 0.00025)])
def test_encoding_and_decoding_error(steps: int, expected: float) -> None:
    x0, chain = SCALAR.sample(4000, seed=3), LINEAR.respaced(str(steps))
    denoiser = OracleDenoiser(SCALAR, LINEAR)
    latent = encode(denoiser, chain, x0)
    back = generate(denoiser, chain, DDIM(), Noise64(0, 4000), (1, 1, 1), x_T=latent)
    assert ((back - x0) / 2).square().mean().item() == pytest.approx(expected, rel=0.3)


def test_encoding_error_is_first_order() -> None:
    mixture = Mixture.random((1, 1, 2), components=2, seed=6)
    denoiser, x0, errors = OracleDenoiser(mixture, LINEAR), mixture.sample(200, seed=1), []
    for steps in (32, 64, 128):
        chain = LINEAR.respaced(str(steps))
        latent = encode(denoiser, chain, x0)
        assert latent.std() == pytest.approx(1, abs=0.15)  # codes look like noise
        back = generate(denoiser, chain, DDIM(), Noise64(0, 200), mixture.shape, x_T=latent)
        errors.append((back - x0).square().mean().sqrt().item())
    assert all(0.8 < math.log2(a / b) < 1.4 for a, b in pairwise(errors)), errors


def test_full_respacing_samples_the_original_chain() -> None:
    mixture, full = Mixture.random((1, 2, 1), components=2, seed=2), named_schedule("cosine", 60)
    denoiser = OracleDenoiser(mixture, full, "fixed_large")
    for solver in (DDPM(), DDIM(), DDIM(0.5)):
        runs = [
            generate(denoiser, c, solver, Noise64(1, 3), mixture.shape)
            for c in (full, full.respaced("60"), full.respaced("ddim60"))
        ]
        for other in runs[1:]:
            torch.testing.assert_close(other, runs[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [DDPM(), DDIM(), DDIM(1.0)])
def test_one_step_chains_return_the_denoised_image(solver: DDPM | DDIM) -> None:
    """From x_T directly to E[x0 | x_T], without noise; the original crashes."""
    for chain in (named_schedule("cosine", 1), COSINE.respaced([999]), LINEAR.respaced("1")):
        full = chain if chain.parent_steps == 1 else (COSINE if chain.indices[0] else LINEAR)
        x_T = Noise64(0, 6).normal((1, 1, 1))
        level = chain.level(0)
        got = generate(OracleDenoiser(SCALAR, full), chain, solver, Noise64(0, 6), (1, 1, 1), x_T=x_T)
        torch.testing.assert_close(got, SCALAR.denoised(x_T, level.alpha, level.sigma), rtol=1e-7, atol=1e-7)


def small_model(seed: int = 0) -> ChainDenoiser:
    """A class-conditional U-Net with random weights (its zero-initialised layers too)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UNetConfig(
            image_size=8, in_channels=2, out_channels=4, model_channels=16, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(2,), num_heads=2, num_classes=3, use_scale_shift_norm=True, resblock_updown=True,
        ).build().eval()  # fmt: skip
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    return ChainDenoiser(net, ProcessConfig(schedule="cosine", steps=100))


@pytest.mark.parametrize("solver", [DDPM(), DDIM(), DDIM(0.7)])
def test_an_image_does_not_depend_on_its_batch(solver: DDPM | DDIM) -> None:
    """Image i of seed s is the same alone, in another order and in a larger batch (up to float32 sums)."""
    denoiser, labels = small_model(), torch.tensor([0, 1, 2, 0, 1, 2])
    chain = denoiser.chain.respaced("8")

    def images(numbers: list[int]) -> torch.Tensor:
        return generate(denoiser, chain, solver, NoiseSource(4, numbers), (2, 8, 8), cond={"y": labels[numbers]})

    whole = images([0, 1, 2, 3, 4, 5])
    for part in ([0], [5, 2], [4, 0, 3]):
        torch.testing.assert_close(images(part), whole[part], rtol=1e-4, atol=1e-4)
    assert (whole[0] - whole[3]).abs().max() > 0.1  # same class, other number: another image


def test_every_step_is_yielded_with_its_prediction() -> None:
    denoiser = small_model()
    chain, cond = denoiser.chain.respaced("5"), {"y": torch.tensor([1, 2])}
    steps = list(sample(denoiser, chain, DDIM(), NoiseSource(0, [0, 1]), (2, 8, 8), cond=cond))
    assert [(s.index, s.total) for s in steps] == [(i, 5) for i in range(5)]
    torch.testing.assert_close(steps[-1].x, steps[-1].prediction.x0)  # the last step returns the denoised image
    again = generate(denoiser, chain, DDIM(), NoiseSource(0, [0, 1]), (2, 8, 8), cond=cond)
    torch.testing.assert_close(again, steps[-1].x, rtol=0, atol=0)


def test_the_loop_leaves_gradients_as_the_caller_had_them() -> None:
    denoiser = small_model()
    run = sample(
        denoiser,
        denoiser.chain.respaced("3"),
        DDPM(),
        NoiseSource(0, [0]),
        (2, 8, 8),
        cond={"y": torch.tensor([0])},
    )
    for step in run:
        assert torch.is_grad_enabled()
        assert not step.x.requires_grad


def test_misuse_of_the_loop_is_explained() -> None:
    denoiser = small_model()
    noise, cond = NoiseSource(0, [0, 1]), {"y": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="trained on 100"):
        generate(denoiser, LINEAR.respaced("5"), DDIM(), noise, (2, 8, 8), cond=cond)
    with pytest.raises(ValueError, match="x_T has shape"):
        generate(denoiser, denoiser.chain, DDIM(), noise, (2, 8, 8), cond=cond, x_T=torch.zeros(3, 2, 8, 8))
    with pytest.raises(ValueError, match="low_res"):
        generate(denoiser, denoiser.chain, DDIM(), noise, (2, 8, 8), cond={**cond, "low_res": torch.zeros(2, 2, 4, 4)})
    with pytest.raises(ValueError, match="give y"):
        generate(denoiser, denoiser.chain, DDIM(), noise, (2, 8, 8))


def test_the_last_step_adds_no_noise() -> None:
    chain = named_schedule("linear", 30)
    x = torch.full((2, 1, 1, 1), 0.3)
    for solver in (DDPM(), DDIM(1.0)):

        def denoise(x: torch.Tensor, level: Level) -> Prediction:
            return Prediction(x, level, "x0", torch.full_like(x, 0.25))

        for last, k in ((True, 0), (False, 1)):
            moved, _, _ = solver.step(denoise, x, chain.transition(k), None, lambda: torch.full_like(x, 1e3))
            assert ((moved - 0.25).abs().max() < 1e-6) == last


def test_slerp_keeps_the_norm_and_meets_the_ends() -> None:
    a, b = Noise64(1, 2).normal((3, 16, 16)), Noise64(2, 2).normal((3, 16, 16))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    for weight in (0.25, 0.5, 0.9):
        norm = slerp(a, b, weight).flatten(1).norm(dim=1)
        assert (norm / math.sqrt(768) - 1).abs().max() < 0.1
    # Of two orthogonal unit vectors it is the point on the arc.
    e, f = torch.eye(2).reshape(2, 1, 1, 1, 2)
    torch.testing.assert_close(
        slerp(e, f, 1 / 3).flatten(), torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    )
    torch.testing.assert_close(slerp(a, a, 0.5), a)
