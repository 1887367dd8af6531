"""Classifier guidance with exact classifiers: at scale 1 it is Bayes' rule, in both of the paper's forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import ClassifierGuidance, LevelClassifier
from undiffuse.nets import ClassifierConfig
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.sampling import encode, generate
from undiffuse.solvers import DDIM, DDPM
from undiffuse.testing.oracles import Mixture, Noise64, OracleClassifier, OracleDenoiser, OracleNet

FULL = named_schedule("linear", 1000)
# Two overlapping halves: class 0 on the left is N(-0.5, 0.4^2).
HALVES = Mixture.scalar([0.5, 0.5], [-0.5, 0.5], [0.4, 0.4], labels=[0, 1])

Gradient = Callable[[torch.Tensor, Level, torch.Tensor], torch.Tensor]


def exact_gradient(mixture: Mixture) -> Gradient:
    """The gradient of log p(y | x_t) at any level; one class for the whole batch."""
    return lambda x, level, y: mixture.class_gradient(x, int(y[0]), level.alpha, level.sigma)


def guided(mixture: Mixture, scale: float, at: str = "x_t", variance: str = "fixed_small") -> ClassifierGuidance:
    return ClassifierGuidance(OracleDenoiser(mixture, FULL, variance), exact_gradient(mixture), scale, at)


def left(count: int) -> dict[str, torch.Tensor]:
    return {"y": torch.zeros(count, dtype=torch.int64)}


def moments(denoiser: ClassifierGuidance, solver: DDPM | DDIM, steps: int, count: int = 10_000) -> tuple[float, float]:
    x = generate(denoiser, FULL.respaced(str(steps)), solver, Noise64(5, count), (1, 1, 1), cond=left(count))
    return x.mean().item(), x.std().item()


# Mean and deviation from an independent implementation (standard error .004); the class itself has -.500 and .400.
@pytest.mark.parametrize(
    ("form", "steps", "mean", "deviation"),
    [
        ("x_t", 250, -0.481, 0.404),
        ("mean", 250, -0.483, 0.398),
        ("x_t", 25, -0.320, 0.432),
        ("mean", 25, -0.397, 0.389),
        ("score", 25, -0.498, 0.312),
    ],
)
def test_scale_one_on_two_gaussians(form: str, steps: int, mean: float, deviation: float) -> None:
    """Indistinguishable from the class at 250 steps; at 25 each form errs in its own known way.

    "score" is the second form with the posterior variance: DDIM at eta = 1.
    """
    solver = DDIM(1.0) if form == "score" else DDPM()
    got = moments(guided(HALVES, 1.0, "x_t" if form == "score" else form), solver, steps)
    assert got == pytest.approx((mean, deviation), abs=0.017)


def test_guided_score_at_scale_one_is_the_class_conditional_score() -> None:
    """grad log p(x) + grad log p(y|x) = grad log p(x|y): DDIM guided is DDIM of the class, image by image."""
    mixture = Mixture.random((1, 2, 2), components=4, seed=8, classes=2)
    chain, conditional = FULL.respaced("20"), OracleDenoiser(mixture, FULL, conditional=True)
    for y in (0, 1):
        cond = {"y": torch.full((6,), y)}
        paths = [
            generate(d, chain, DDIM(), Noise64(0, 6), mixture.shape, cond=cond)
            for d in (guided(mixture, 1.0), conditional)
        ]
        torch.testing.assert_close(paths[0], paths[1], rtol=1e-6, atol=1e-6)
        x0 = mixture.of_class(y).sample(6, seed=1)
        codes = [encode(d, chain, x0, cond=cond) for d in (guided(mixture, 1.0), conditional)]
        torch.testing.assert_close(codes[0], codes[1], rtol=1e-6, atol=1e-6)


def test_larger_scales_follow_the_guided_flow() -> None:
    """At scale 3 the flow of p_t(x) p_t(y|x)^3 ends at mean -.907, deviation .253; p_0 p_0(y|x)^3 has -.634, .328."""
    assert moments(guided(HALVES, 3.0), DDIM(), 250) == pytest.approx((-0.907, 0.253), abs=0.02)
    assert moments(guided(HALVES, 3.0), DDPM(), 250) == pytest.approx((-0.768, 0.309), abs=0.02)


def test_class_probability_rises_with_the_scale() -> None:
    count, clean = 2000, Level.clean()
    for solver in (DDPM(), DDIM()):
        probabilities = []
        for scale in (-1.0, 0.0, 0.5, 1.0, 3.0):
            x = generate(
                guided(HALVES, scale), FULL.respaced("40"), solver, Noise64(2, count), (1, 1, 1), cond=left(count)
            )
            probabilities.append(HALVES.class_log_posterior(x, clean.alpha, clean.sigma)[:, 0].exp().mean().item())
        assert all(b > a + 0.02 for a, b in pairwise(probabilities)), probabilities
        assert probabilities[1] == pytest.approx(0.5, abs=0.03)


def test_scale_zero_is_no_guidance() -> None:
    for solver in (DDPM(), DDIM()):
        plain = generate(OracleDenoiser(HALVES, FULL), FULL.respaced("9"), solver, Noise64(1, 4), (1, 1, 1))
        zero = generate(guided(HALVES, 0.0), FULL.respaced("9"), solver, Noise64(1, 4), (1, 1, 1), cond=left(4))
        torch.testing.assert_close(zero, plain, rtol=0, atol=0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "optimal"])
@pytest.mark.parametrize("at", ["x_t", "mean"])
def test_ancestral_shift_is_the_variance_times_the_gradient(variance: str, at: str) -> None:
    """mean + s Sigma g with g taken at x_t and its level, or at the unguided mean and the level below it."""
    asked: list[tuple[torch.Tensor, Level]] = []

    def gradient(x: torch.Tensor, level: Level, y: torch.Tensor) -> torch.Tensor:
        asked.append((x, level))
        return torch.full_like(x, 0.7)

    denoiser = OracleDenoiser(HALVES, FULL, variance)
    t = FULL.transition(400)
    x = Noise64(0, 3).normal((1, 1, 1))
    guide = ClassifierGuidance(denoiser, gradient, scale=2.0, at=at)
    base = DDPM().step(denoiser, x, t, None, lambda: torch.zeros_like(x))[0]
    moved = DDPM().step(lambda a, b: guide(a, b, left(3)), x, t, None, lambda: torch.zeros_like(x))[0]
    torch.testing.assert_close(moved - base, (1.4 * denoiser(x, t.source).step_variance(t)).expand_as(x))
    where, level = asked[0]
    torch.testing.assert_close(where, x if at == "x_t" else base)
    torch.testing.assert_close(level.sigma, t.source.sigma if at == "x_t" else t.target.sigma)


def test_score_form_shifts_noise_image_and_mean() -> None:
    """eps - s sigma g; x0 + s sigma^2 / alpha g; and the ancestral mean moves by s beta / sqrt(1 - beta) g."""
    k, g = 300, 0.3
    t, beta = FULL.transition(k), FULL.betas[k]
    x = Noise64(0, 2).normal((1, 1, 1))
    plain = OracleDenoiser(HALVES, FULL)(x, t.source)
    guide = ClassifierGuidance(OracleDenoiser(HALVES, FULL), lambda x, level, y: torch.full_like(x, g), scale=2.0)
    moved = guide(x, t.source, left(2)).guided_score()
    torch.testing.assert_close(moved.eps, plain.eps - 2 * t.source.sigma * g)
    torch.testing.assert_close(moved.x0, plain.x0 + 2 * t.source.sigma**2 / t.source.alpha * g)
    torch.testing.assert_close(moved.mean(t), plain.mean(t) + 2 * beta / math.sqrt(1 - beta) * g)


def test_guided_image_is_not_clipped_again() -> None:
    """As in the original: x0 is clipped before the guidance shift and not after it."""
    process = ProcessConfig(variance="fixed_large")
    guide = ClassifierGuidance(
        ChainDenoiser(OracleNet(HALVES, FULL), process, clip="static"),
        lambda x, level, y: torch.full_like(x, 5.0),
        scale=3.0,
    )
    x = torch.full((1, 1, 1, 1), 1.0, dtype=torch.float64)
    prediction = guide(x, FULL.level(500), left(1))
    assert prediction.x0.abs().max() <= 1
    assert prediction.guided_score().x0.max() > 1.5


def test_classifier_network_is_asked_for_the_log_posterior() -> None:
    """Through log-softmax and autograd, at the original step number, image by image."""
    mixture = Mixture.random((1, 1, 3), components=4, seed=3, classes=2)
    net = OracleClassifier(mixture, FULL)
    classifier = LevelClassifier(net, ProcessConfig())
    level, x = FULL.level(torch.tensor([10, 500, 500])), Noise64(0, 3).normal(mixture.shape)
    got = classifier.gradient(x, level, torch.tensor([0, 1, 0]))
    for i, y in enumerate([0, 1, 0]):
        exact = mixture.class_gradient(x[i : i + 1], y, level.alpha[i : i + 1], level.sigma[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], exact, rtol=1e-5, atol=1e-6)
    assert net.times[0].tolist() == [10, 500, 500]
    rescaled = OracleClassifier(mixture, named_schedule("linear", 4000), scale=0.25)
    LevelClassifier(rescaled, ProcessConfig(steps=4000, rescale_timesteps=True)).gradient(
        x, named_schedule("linear", 4000).respaced("ddim8").level(3), torch.tensor([0, 1, 0])
    )
    assert rescaled.times[0].tolist() == [375.0] * 3  # step 1500 of 4000


def test_classifier_weights_get_no_gradients() -> None:
    config = ClassifierConfig(
        image_size=8,
        in_channels=1,
        out_channels=2,
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        num_head_channels=8,
    )
    net = config.build()
    classifier = LevelClassifier(net, ProcessConfig())
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gradient = classifier.gradient(x, FULL.level(100), torch.tensor([0, 1]))
    assert gradient.abs().max() > 0
    assert not gradient.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert not net.training


def test_misuse_is_explained() -> None:
    with pytest.raises(ValueError, match="x_t, mean"):
        guided(HALVES, 1.0, at="x_0")
    with pytest.raises(ValueError, match="pass cond"):
        guided(HALVES, 1.0)(torch.zeros(1, 1, 1, 1), FULL.level(3))
    with pytest.raises(ValueError, match="requires ancestral sampling"):
        moments(guided(HALVES, 1.0, at="mean"), DDIM(), 5, count=2)
