"""Guidance by gradients: classifiers (temperature, size, where, several at once) and losses of the denoised image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import ClassifierFree, ClassifierGuidance, LevelClassifier, LossGuidance
from undiffuse.nets import UNetConfig
from undiffuse.noise_levels import Level, expand, named_schedule
from undiffuse.prediction import Prediction
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM, DDPM
from undiffuse.testing.oracles import Mixture, Noise64, OracleClassifier, OracleDenoiser

FULL = named_schedule("linear", 1000)
MIXTURE = Mixture.random((1, 1, 3), components=4, seed=3, classes=2)
LEVEL = FULL.level(300)
X = Noise64(0, 4).normal(MIXTURE.shape)
Y = torch.tensor([0, 1, 1, 0])


def shift(guided: Callable[..., Prediction], **cond: Tensor) -> Tensor:
    """What guidance adds to the score at X [B, C, H, W]."""
    prediction = guided(X, LEVEL, cond)
    return (prediction.eps - prediction.guided_score().eps) / float(LEVEL.sigma)


def numerical(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a function [B, C, H, W] -> [B] by central differences."""
    columns = []
    for k in range(x[0].numel()):
        e = torch.zeros_like(x).flatten(1)
        e[:, k] = step
        columns.append((function(x + e.reshape(x.shape)) - function(x - e.reshape(x.shape))) / (2 * step))
    return torch.stack(columns, dim=1).reshape(x.shape)


def test_temperature_divides_the_scores() -> None:
    """p(y|x) ~ exp(score / T): at T = 1/s a probability to the power s, normalised over the classes anew."""
    net = OracleClassifier(MIXTURE, FULL)
    for temperature in (0.5, 1.0, 4.0):
        classifier = LevelClassifier(net, ProcessConfig(), temperature)
        log_p = MIXTURE.class_log_posterior(X, LEVEL.alpha, LEVEL.sigma) / temperature
        expected = (log_p - log_p.logsumexp(1, keepdim=True)).gather(1, Y[:, None])[:, 0]
        torch.testing.assert_close(classifier.log_prob(X, LEVEL, Y), expected.float())

        def of(x: Tensor, t: float = temperature) -> Tensor:
            scores = MIXTURE.class_log_posterior(x, LEVEL.alpha, LEVEL.sigma) / t
            return torch.log_softmax(scores, 1).gather(1, Y[:, None])[:, 0]

        torch.testing.assert_close(classifier.gradient(X, LEVEL, Y), numerical(of, X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="above 0"):
        LevelClassifier(net, ProcessConfig(), 0.0)


def test_normalised_gradients_move_the_noise_by_the_scale() -> None:
    """Every image's noise moves by root mean square s, whatever the classifier's gradient; nowhere if it has none."""

    def gradient(x: Tensor, level: Level, y: Tensor) -> Tensor:
        return MIXTURE.class_gradients(x, level, y) * torch.tensor([1.0, 1e-6, 1e3, 0.0]).reshape(-1, 1, 1, 1)

    plain = shift(ClassifierGuidance(OracleDenoiser(MIXTURE, FULL), gradient), y=Y)
    unit = shift(ClassifierGuidance(OracleDenoiser(MIXTURE, FULL), gradient, 0.3, normalize=True), y=Y)
    size = (unit * float(LEVEL.sigma)).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(size, torch.tensor([0.3, 0.3, 0.3, 0.0], dtype=torch.float64))
    cosines = torch.nn.functional.cosine_similarity(plain[:3].flatten(1), unit[:3].flatten(1))
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    mean = ClassifierGuidance(OracleDenoiser(MIXTURE, FULL), gradient, 0.3, "mean", normalize=True)
    x = generate(mean, FULL.respaced("4"), DDPM(), Noise64(0, 4), MIXTURE.shape, cond={"y": Y})
    assert x.isfinite().all(), "at the mean of the last step there is no noise to measure by"


def test_two_classifiers_of_two_features() -> None:
    """Independent features, a classifier each, both at scale 1: exactly the model of both classes together."""
    one, two = (Mixture.scalar([0.6, 0.4], [-0.6, 0.5], [0.2, 0.3], labels=[0, 1]) for _ in range(2))
    pairs = [(i, j) for i in (0, 1) for j in (0, 1)]
    weights = torch.tensor([0.6 * 0.6, 0.6 * 0.4, 0.4 * 0.6, 0.4 * 0.4], dtype=torch.float64)
    means = torch.stack([torch.cat([one.means[i], two.means[j]]) for i, j in pairs])
    variances = torch.stack([torch.cat([one.variances[i], two.variances[j]]) for i, j in pairs])
    by = [Mixture((1, 1, 2), weights, means, variances, None, labels) for labels in ((0, 0, 1, 1), (0, 1, 0, 1))]
    joint = Mixture((1, 1, 2), weights, means, variances, None, (0, 1, 2, 3))
    inner = OracleDenoiser(joint, FULL)
    guided = ClassifierGuidance(
        ClassifierGuidance(inner, by[0].class_gradients, condition="side"), by[1].class_gradients, condition="height"
    )
    assert guided.conditions == {"side", "height"}
    cond = {"side": torch.tensor([0, 1, 1, 0]), "height": torch.tensor([1, 1, 0, 0])}
    both = OracleDenoiser(joint, FULL, conditional=True)
    run = lambda d, c: generate(d, FULL.respaced("12"), DDIM(), Noise64(0, 4), (1, 1, 2), cond=c)  # noqa: E731
    expected = run(both, {"y": 2 * cond["side"] + cond["height"]})
    torch.testing.assert_close(run(guided, cond), expected, rtol=1e-6, atol=1e-6)


def test_each_of_several_has_its_own_scale() -> None:
    inner = OracleDenoiser(MIXTURE, FULL)
    ones, twos = (lambda x, level, y, c=c: torch.full_like(x, c) for c in (1.0, 10.0))
    both = ClassifierGuidance(ClassifierGuidance(inner, ones, 2.0), twos, 0.5)
    torch.testing.assert_close(shift(both, y=Y), torch.full_like(X, 2.0 + 5.0))


def test_classifier_at_the_denoised_image() -> None:
    """grad_{x_t} log p(y | x0(x_t)) by the chain rule through the denoiser, the classifier asked at a clean image."""
    inner, clean = OracleDenoiser(MIXTURE, FULL), Level.clean()
    asked: list[Level] = []

    def gradient(x: Tensor, level: Level, y: Tensor) -> Tensor:
        asked.append(level)
        return MIXTURE.class_gradients(x, level, y)

    def of(x: Tensor) -> Tensor:
        x0 = MIXTURE.denoised(x, LEVEL.alpha, LEVEL.sigma)
        return MIXTURE.class_log_posterior(x0, clean.alpha, clean.sigma).gather(1, Y[:, None])[:, 0]

    guided = ClassifierGuidance(inner, gradient, 2.0, at="x0")
    torch.testing.assert_close(shift(guided, y=Y), 2 * numerical(of, X), rtol=1e-6, atol=1e-6)
    assert float(asked[0].sigma) == 0
    with torch.inference_mode():  # and within an ancestral step, whose mean it shifts by the variance
        t = FULL.transition(300)
        prediction = guided(X, LEVEL, {"y": Y})
        x = DDPM().step(lambda a, b: prediction, X, t, None, lambda number=0: torch.zeros_like(X))[0]
        moved = x - inner(X, LEVEL).mean(t)
        torch.testing.assert_close(moved, prediction.step_variance(t) * 2 * numerical(of, X), rtol=1e-6, atol=1e-9)


def test_linear_loss_of_a_gaussian_is_exact() -> None:
    """p(x) exp(a.x) of N(m, C) is N(m + C a, C), at every level: the guided score is that Gaussian's."""
    g = Mixture.random((1, 1, 3), components=1, seed=5)
    a = torch.tensor([0.4, -1.0, 0.7], dtype=torch.float64)
    assert g.rotations is not None
    covariance = g.rotations[0] @ torch.diag(g.variances[0]) @ g.rotations[0].T
    moved = Mixture(g.shape, g.weights, g.means + covariance @ a, g.variances, g.rotations, g.labels)
    for step in (5, 300, 900):
        level = FULL.level(step)
        guided = LossGuidance(OracleDenoiser(g, FULL), lambda x0: -(x0.flatten(1) @ a))(X, level).guided_score()
        torch.testing.assert_close(guided.score, moved.score(X, level.alpha, level.sigma))


@pytest.mark.parametrize("reduce", ["images", "sum"])
def test_losses_with_conditions(reduce: str) -> None:
    """-s grad of loss(x0(x_t), target): by finite differences; a loss may give a number an image or their sum."""
    target = torch.tensor([0.1, -0.2, 0.5, 0.0], dtype=torch.float64)

    def each(x0: Tensor, target: Tensor) -> Tensor:
        return (x0.flatten(1).mean(1) - target).square()

    loss = each if reduce == "images" else lambda x0, target: each(x0, target).sum()
    guided = LossGuidance(OracleDenoiser(MIXTURE, FULL), loss, 5.0, conditions=["target"])
    of = lambda x: each(MIXTURE.denoised(x, LEVEL.alpha, LEVEL.sigma), target)  # noqa: E731
    torch.testing.assert_close(shift(guided, target=target), -5 * numerical(of, X), rtol=1e-6, atol=1e-7)
    assert guided.conditions == {"target"}
    with pytest.raises(ValueError, match="pass cond={'target'"):
        guided(X, LEVEL)


def test_losses_nest_and_leave_no_graph() -> None:
    """Two gradients through one network, inside each other: their sum; a classifier-free pass between them is passed
    through. What comes out holds no graph, whether or not the caller has gradients off."""
    inner = OracleDenoiser(MIXTURE, FULL, conditional=True)
    one, two = (lambda x0, c=c: c * x0.flatten(1).pow(3).sum(1) for c in (0.2, -0.3))
    cond = {"y": Y}
    free = lambda d: ClassifierFree(d, 2.0, {"y": 2})  # noqa: E731
    both = LossGuidance(LossGuidance(free(inner), one), two)
    alone = [shift(LossGuidance(free(inner), loss), **cond) for loss in (one, two)]
    torch.testing.assert_close(shift(both, **cond), alone[0] + alone[1])
    between = LossGuidance(free(LossGuidance(inner, one)), two)(X, LEVEL, cond)
    for prediction in (both(X, LEVEL, cond), between):
        moved = prediction.guided_score()
        for tensor in (prediction.x0, moved.x0, moved.eps, moved.score):
            assert not tensor.requires_grad
    with torch.inference_mode():
        again = both(X.clone(), LEVEL, {"y": Y.clone()}).guided_score().eps
    torch.testing.assert_close(again.clone(), both(X, LEVEL, cond).guided_score().eps)


def test_through_a_real_network() -> None:
    """The gradient through a U-Net with attention and checkpointing; the weights get none; a clipped pixel has none."""
    config = UNetConfig(
        image_size=8, in_channels=1, out_channels=2, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(2,), num_head_channels=8, use_checkpoint=True,
    )  # fmt: skip
    torch.manual_seed(0)
    net = config.build().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    x = Noise64(2, 2).normal((1, 8, 8)).float()
    inner = ChainDenoiser(net, ProcessConfig(), "none")
    weights = Noise64(3, 1).normal((1, 8, 8)).float()
    loss = lambda x0: (weights * x0).flatten(1).sum(1)  # noqa: E731
    with torch.no_grad():
        got = LossGuidance(inner, loss)(x, LEVEL)
    shifted = (got.eps - got.guided_score().eps) / float(LEVEL.sigma)
    direction, step = Noise64(4, 2).normal((1, 8, 8)).float(), 1e-2
    up, down = (loss(inner(x + s * step * direction, LEVEL).x0) for s in (1, -1))
    slope = -(up - down) / (2 * step)
    torch.testing.assert_close((shifted * direction).flatten(1).sum(1), slope, rtol=2e-3, atol=1e-3)
    assert all(p.grad is None for p in net.parameters())

    clipped = LossGuidance(inner.clipping(lambda x0: x0.clamp(-0.1, 0.1)), lambda x0: x0.sum())
    assert clipped(x, LEVEL).x0.abs().max() <= 0.1


def test_misuse_is_explained() -> None:
    inner = OracleDenoiser(MIXTURE, FULL)
    with pytest.raises(ValueError, match="one differentiable"):
        LossGuidance(inner, lambda x0: x0.detach().sum())(X, LEVEL)
    with pytest.raises(ValueError, match=r"got shape \[4, 1, 1, 3\]"):
        LossGuidance(inner, lambda x0: x0)(X, LEVEL)
    with pytest.raises(ValueError, match="got float"):
        LossGuidance(inner, lambda x0: 1.0)(X, LEVEL)  # type: ignore[arg-type, return-value]

    class Blind:
        chain, conditions = FULL, frozenset[str]()

        def __call__(self, x: Tensor, level: Level, cond: object = None) -> Prediction:
            return Prediction(x.detach(), level, "x0", torch.zeros_like(x))

    with pytest.raises(ValueError, match="not differentiable with respect to x"):
        LossGuidance(Blind(), lambda x0: x0.sum())(X, LEVEL)


def test_guided_step_by_hand() -> None:
    """DDIM with an unnormalised loss at scale s: x0 + s sigma^2 / alpha g, then the usual move."""
    inner = OracleDenoiser(MIXTURE, FULL)
    guided = LossGuidance(inner, lambda x0: x0.square().flatten(1).sum(1), 3.0)
    t = FULL.respaced("10").transition(5)
    level = t.source
    of = lambda x: -MIXTURE.denoised(x, level.alpha, level.sigma).square().flatten(1).sum(1)  # noqa: E731
    g = 3 * numerical(of, X)
    plain = inner(X, level)
    x0 = plain.x0 + expand(level.sigma**2 / level.alpha, X) * g
    eps = plain.eps - float(level.sigma) * g
    expected = float(t.target.alpha) * x0 + float(t.target.sigma) * eps
    got = DDIM().step(lambda a, b: guided(a, b), X, t, None, lambda number=0: torch.zeros_like(X))[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
