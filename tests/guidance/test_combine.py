"""Classifier-free guidance and autoguidance: two predictions compared, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, LevelClassifier, LossGuidance
from undiffuse.guidance.classifier_free import jointly
from undiffuse.nets import UNetConfig
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.prediction import VarianceFraction
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM, DDPM
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser, OracleNet

FULL = named_schedule("linear", 1000)
MIXTURE = Mixture.random((1, 2, 2), components=6, seed=4, classes=3)
NULL = {"y": 3}
Y = torch.tensor([0, 2, 1, 0, 2])
X = Noise64(3, 5).normal(MIXTURE.shape)


def gaussian(mean: float, deviation: float) -> OracleDenoiser:
    return OracleDenoiser(Mixture.scalar([1.0], [mean], [deviation], labels=[0]), FULL)


def conditional(variance: str = "fixed_small") -> OracleDenoiser:
    return OracleDenoiser(MIXTURE, FULL, variance, conditional=True)


class ClassNet(nn.Module):
    """The perfect conditional network, row by row; class 3 is the whole mixture."""

    conditions = frozenset({"y"})

    def __init__(self, target: str, fraction: str | None = None) -> None:
        super().__init__()
        mixtures = [*(MIXTURE.of_class(k) for k in range(3)), MIXTURE]
        self.nets = nn.ModuleList(OracleNet(m, FULL, target, fraction) for m in mixtures)
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls.append(len(x))
        return torch.cat([self.nets[int(k)](x[i : i + 1], t[i : i + 1]) for i, k in enumerate(y)])


def network(target: str = "eps", clip: str = "none", variance: str = "fixed_small") -> ChainDenoiser:
    fraction = "optimal" if variance == "learned_range" else None
    return ChainDenoiser(ClassNet(target, fraction), ProcessConfig(target=target, variance=variance), clip)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("step", [50, 500, 950])
def test_gaussians_in_closed_form(scale: float, step: int) -> None:
    """Class N(m, s^2), class means N(0, tau^2): the guided score is that of a Gaussian of variance S2 / (1 + w - w r)
    and mean alpha m (1 + w) / (1 + w - w r), S2 = alpha^2 s^2 + sigma^2, r = S2 / (S2 + alpha^2 tau^2), w = S - 1."""
    m, s, tau = 0.7, 0.3, 0.9
    level = FULL.level(step)
    alpha, sigma = float(level.alpha), float(level.sigma)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    guided = Autoguidance(gaussian(m, s), gaussian(0.0, (s**2 + tau**2) ** 0.5), scale)
    w, s2 = scale - 1, alpha**2 * s**2 + sigma**2
    r = s2 / (s2 + alpha**2 * tau**2)
    variance, mean = s2 / (1 + w - w * r), alpha * m * (1 + w) / (1 + w - w * r)
    torch.testing.assert_close(guided(x, level).score, (mean - x) / variance)


def test_autoguidance_is_affine_in_the_scale() -> None:
    """D_ref + S (D - D_ref) in x0, noise and score; S = 1 is the model, and does not ask the reference."""
    main, blurred = gaussian(0.5, 0.3), gaussian(0.4, 0.6)
    level, x = FULL.level(400), X[:, :, :1, :1]
    a, b = main(x, level), blurred(x, level)
    got = Autoguidance(main, blurred, 2.5)(x, level)
    for name in ("x0", "eps", "score", "v"):
        ours, theirs = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(getattr(got, name), theirs + 2.5 * (ours - theirs))
    asked = len(blurred.calls)
    torch.testing.assert_close(Autoguidance(main, blurred, 1.0)(x, level).eps, a.eps, rtol=0, atol=0)
    assert len(blurred.calls) == asked
    torch.testing.assert_close(Autoguidance(main, blurred, 0.0)(x, level).eps, b.eps)


@pytest.mark.parametrize("clip", ["none", "static"])
def test_every_parametrisation_gives_the_same(clip: str) -> None:
    """Clipping comes after the combination, so it does not matter in what the network predicts."""
    level, x = FULL.level(300), 2.5 * X
    eps = ClassifierFree(network("eps", clip), 4.0, NULL)(x, level, {"y": Y})
    free = ClassifierFree(network("eps"), 4.0, NULL)(x, level, {"y": Y})
    one = network("eps")(x, level, {"y": Y}).x0
    assert (one.abs() > 1).any(), "the test needs a prediction that is clipped by itself"
    assert (free.x0.clamp(-1, 1) != free.x0).any()
    torch.testing.assert_close(eps.x0, free.x0.clamp(-1, 1) if clip == "static" else free.x0)
    for target in ("x0", "v", "previous_mean"):
        other = ClassifierFree(network(target, clip), 4.0, NULL)(x, level, {"y": Y})
        torch.testing.assert_close(other.x0, eps.x0)
        torch.testing.assert_close(other.eps, eps.eps)
        if clip == "none":
            torch.testing.assert_close(other.mean(FULL.transition(300)), eps.mean(FULL.transition(300)))
    mixed = Autoguidance(network("v", clip), network("x0", clip), 2.0)(x, level, {"y": Y})
    torch.testing.assert_close(mixed.x0, network("eps", clip)(x, level, {"y": Y}).x0)


def test_no_guidance_and_no_condition() -> None:
    level = FULL.level(200)
    inner = conditional()
    plain, alone = inner(X, level, {"y": Y}), OracleDenoiser(MIXTURE, FULL)(X, level)
    inner.calls.clear()
    torch.testing.assert_close(ClassifierFree(inner, 1.0, NULL)(X, level, {"y": Y}).eps, plain.eps, rtol=0, atol=0)
    torch.testing.assert_close(ClassifierFree(inner, 0.0, NULL)(X, level, {"y": Y}).eps, alone.eps)
    assert inner.calls == [5, 5]


@pytest.mark.parametrize("variance", ["learned_range", "fixed_small"])
@pytest.mark.parametrize("levels", ["shared", "own"])
def test_one_batch_or_two_passes(variance: str, levels: str) -> None:
    """Equal in all they say, the variance of the conditional pass included; one call of twice the batch against two."""
    level = FULL.level(300) if levels == "shared" else FULL.level(torch.tensor([300, 20, 700, 5, 999]))
    step = FULL.transition(300) if levels == "shared" else FULL.transition(torch.tensor([300, 20, 700, 5, 999]))
    inner = network("eps", "static", variance)
    one = ClassifierFree(inner, 3.0, NULL)(X, level, {"y": Y})
    two = ClassifierFree(inner, 3.0, NULL, together=False)(X, level, {"y": Y})
    assert inner.network.calls == [10, 5, 5]
    torch.testing.assert_close(one.eps, two.eps)
    torch.testing.assert_close(one.mean(step), two.mean(step))
    plain = inner(X, level, {"y": Y})
    for guided in (one, two):
        torch.testing.assert_close(guided.log_variance(step), plain.log_variance(step))


def test_directly_learned_variance_is_cut_with_its_step() -> None:
    """What it carries for strides, a transition for every row, is taken apart with it."""
    steps = torch.tensor([300, 20, 700, 5, 999])

    def raw(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([0.1 * x, torch.log(1e-4 + 1e-6 * t)[:, None, None, None].to(x) + 0 * x], dim=1)

    raw.conditions = frozenset({"y"})  # type: ignore[attr-defined]
    inner = ChainDenoiser(raw, ProcessConfig(variance="learned"), "none")
    strided = FULL.respaced([5, 20, 300, 700, 999]).transition(torch.tensor([2, 1, 3, 0, 4]))
    first, second = jointly(inner, X, FULL.level(steps), {"y": Y}, {"y": 0 * Y})
    for half in (first, second):
        torch.testing.assert_close(
            half.log_variance(strided), inner(X, FULL.level(steps), {"y": Y}).log_variance(strided)
        )


def test_rescaling_restores_the_contrast() -> None:
    """phi = 1 gives every image's noise the deviation of the conditional one, phi = 0.5 goes half the way."""
    level, cond = FULL.level(300), {"y": Y}
    inner = conditional()
    plain, full, half, none = (
        ClassifierFree(inner, s, NULL, rescale=phi)(X, level, cond).eps
        for s, phi in ((1.0, 0.0), (6.0, 1.0), (6.0, 0.5), (6.0, 0.0))
    )
    deviation = lambda v: v.flatten(1).std(dim=1)  # noqa: E731
    assert (deviation(none) / deviation(plain)).max() > 1.5
    torch.testing.assert_close(deviation(full), deviation(plain))
    torch.testing.assert_close(half, (full + none) / 2)
    for target in ("x0", "previous_mean"):  # in what the network predicts; a mean has no scale of its own, so in x0
        got = ClassifierFree(network(target), 6.0, NULL, rescale=1.0)(X, level, cond).x0
        torch.testing.assert_close(deviation(got), deviation(inner(X, level, cond).x0))


@pytest.mark.parametrize("together", [True, False])
def test_guides_inside_are_combined_as_scores(together: bool) -> None:
    """CFG of a guided denoiser: its score is s_u + S (s_c - s_u) of the guided scores."""
    level = FULL.level(400)
    inside = LossGuidance(conditional(), lambda x0: (x0 - 0.3).square().flatten(1).sum(1), 0.5)
    got = ClassifierFree(inside, 3.0, NULL, together=together)(X, level, {"y": Y}).guided_score()
    c, u = (inside(X, level, {"y": y}).guided_score() for y in (Y, torch.full_like(Y, 3)))
    torch.testing.assert_close(got.eps, u.eps + 3 * (c.eps - u.eps))
    torch.testing.assert_close(got.x0, u.x0 + 3 * (c.x0 - u.x0))
    auto = Autoguidance(inside, OracleDenoiser(MIXTURE, FULL), 3.0)(X, level, {"y": Y}).guided_score()
    u = OracleDenoiser(MIXTURE, FULL)(X, level)
    torch.testing.assert_close(auto.eps, u.eps + 3 * (c.eps - u.eps))


def test_classifier_around_classifier_free() -> None:
    """Bayes' rule on top: an unconditional pass, S = 0, with an exact classifier at 1 is the conditional model; and a
    classifier and CFG of total strength S give the same as CFG of S."""
    exact = MIXTURE.class_gradients
    inner, cond, chain = conditional(), {"y": Y}, FULL.respaced("8")
    run = lambda d: generate(d, chain, DDIM(), Noise64(0, 5), MIXTURE.shape, cond=cond)  # noqa: E731
    torch.testing.assert_close(run(ClassifierGuidance(ClassifierFree(inner, 0.0, NULL), exact, 1.0)), run(inner))
    both = ClassifierGuidance(ClassifierFree(inner, 1.5, NULL), exact, 0.5)
    torch.testing.assert_close(run(both), run(ClassifierFree(inner, 2.0, NULL)))


@pytest.mark.parametrize("solver", [DDIM(), DDPM()])
def test_samples_of_gaussians_at_scale_two(solver: DDIM | DDPM) -> None:
    """Guided sampling runs through either sampler and sharpens: less variance, more than the mean."""
    guided = Autoguidance(gaussian(0.5, 0.3), gaussian(0.0, 0.8), 2.0)
    x = generate(guided, FULL.respaced("100"), solver, Noise64(1, 2000), (1, 1, 1))
    assert x.mean() > 0.55
    assert x.std() < 0.28


def unet(**changes: object) -> UNetConfig:
    base = {"image_size": 8, "in_channels": 1, "out_channels": 2, "model_channels": 8, "channel_mult": (1, 2),
            "num_res_blocks": 1, "attention_resolutions": (), "num_classes": 3, "null_class": True}  # fmt: skip
    return UNetConfig(**{**base, **changes})  # type: ignore[arg-type]


def test_a_real_network_with_a_null_class() -> None:
    """Guided in one batch it says what its two passes say; the null class is its last row, which y = None means too."""
    torch.manual_seed(0)
    net = unet().build().eval().requires_grad_(False)
    for parameter in net.parameters():  # the output layer begins at zero
        parameter.add_(0.05 * torch.randn_like(parameter))
    inner, level = ChainDenoiser(net, ProcessConfig()), FULL.level(500)
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    c, u = inner(x, level, {"y": y}), inner(x, level)
    torch.testing.assert_close(inner(x, level, {"y": torch.full((3,), 3)}).eps, u.eps, rtol=0, atol=0)
    got = ClassifierFree(inner, 3.0, NULL)(x, level, {"y": y})
    assert c.raw is not None
    assert u.raw is not None
    assert (c.raw.eps - u.raw.eps).abs().max() > 1e-3
    assert got.raw is not None
    torch.testing.assert_close(got.raw.eps, u.raw.eps + 3 * (c.raw.eps - u.raw.eps), rtol=1e-4, atol=1e-4)
    assert isinstance(got.variance, VarianceFraction)
    assert isinstance(c.variance, VarianceFraction)
    torch.testing.assert_close(got.variance.fraction, c.variance.fraction, rtol=1e-4, atol=1e-5)


def test_misuse_is_explained() -> None:
    inner, level, cond = conditional(), FULL.level(3), {"y": Y}
    with pytest.raises(ValueError, match="pass cond={'y'"):
        ClassifierFree(inner, 2.0, NULL)(X, level)
    with pytest.raises(ValueError, match="no conditions"):
        ClassifierFree(OracleDenoiser(MIXTURE, FULL), 2.0, NULL)
    with pytest.raises(ValueError, match="null must name conditions"):
        ClassifierFree(inner, 2.0, {})
    with pytest.raises(ValueError, match="from 0"):
        ClassifierFree(inner, 2.0, NULL, rescale=1.5)
    with pytest.raises(ValueError, match="finite"):
        Autoguidance(inner, inner, float("nan"))
    classifier = LevelClassifier(lambda x, t: x.flatten(1)[:, :3], ProcessConfig())
    wrong = ClassifierFree(ClassifierGuidance(inner, classifier, 1.0), 2.0, NULL)
    with pytest.raises(ValueError, match=r"nest it outside: ClassifierGuidance\(ClassifierFree"):
        wrong(X, level, cond).guided_score()


def test_levels_off_the_variance_preserving_path() -> None:
    """At alpha = 1 the same x0 and noise as at the level of equal log-SNR, clipped after the combination there too."""
    sigma = torch.tensor([1.7], dtype=torch.float64)
    norm = (1 + sigma**2).sqrt()
    guided = ClassifierFree(network("v", "static"), 4.0, NULL)
    level = FULL.level(int(FULL.index_of(Level(1 / norm, sigma / norm)).round()))
    ratio = level.sigma / level.alpha
    wide = guided(X / level.alpha, Level(torch.ones(1, dtype=torch.float64), ratio), {"y": Y})
    torch.testing.assert_close(wide.x0, guided(X, level, {"y": Y}).x0)
