"""The ends of the chain and the edges of the arguments, where formulas divide by almost nothing."""

from __future__ import annotations

import pytest
import torch

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import ClassifierGuidance, LevelClassifier
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import DiscreteSchedule, Level, ddim_spec
from undiffuse.objectives import Objective, ObjectiveConfig, discretized_log_likelihood, log_normal_cdf
from undiffuse.sampling import generate, slerp
from undiffuse.solvers import DDIM, DDPM

SHAPE = (1, 4, 4)


def guided(process: ProcessConfig, gradient: float) -> ClassifierGuidance:
    """A network that answers zero, guided by the same small gradient everywhere."""
    denoiser = ChainDenoiser(lambda x, t: torch.zeros_like(x), process)
    return ClassifierGuidance(denoiser, lambda x, level, y: torch.full_like(x, gradient), scale=1.0)


def test_guidance_from_the_noisiest_cosine_level_needs_the_second_clip() -> None:
    """A gradient of 0.02 everywhere: the first of 25 steps moves x by 1326 of it, unless x0 is clipped again."""
    denoiser = guided(ProcessConfig(schedule="cosine", target="x0", variance="fixed_small"), 0.02)
    chain, noise, y = denoiser.chain.respaced("25"), NoiseSource(0, range(2)), torch.tensor([0, 0])

    def first(solver: DDIM) -> float:
        x_T = noise.normal(SHAPE, purpose="x_T")
        x, _, _ = solver.step(
            lambda x, level: denoiser(x, level, {"y": y}), x_T, chain.transition(chain.steps - 1), None, lambda: x_T
        )
        return float((x - x_T).abs().mean())

    assert first(DDIM()) == pytest.approx(0.02 * 1326, rel=0.05)
    assert first(DDIM(clip_after_guidance=True)) < 0.2
    images = generate(denoiser, chain, DDIM(clip_after_guidance=True), noise, SHAPE, cond={"y": y})
    assert images.abs().max() <= 1


def test_guidance_with_no_gradient_changes_nothing() -> None:
    process = ProcessConfig(schedule="cosine", target="eps", variance="fixed_small")
    plain = ChainDenoiser(lambda x, t: 0.3 * x, process)
    null = ClassifierGuidance(plain, lambda x, level, y: torch.zeros_like(x), scale=3.0)
    chain, noise, y = plain.chain.respaced("10"), NoiseSource(1, range(2)), torch.tensor([0, 0])
    for solver in (DDIM(), DDIM(clip_after_guidance=True), DDPM()):
        with_null = generate(null, chain, solver, noise, SHAPE, cond={"y": y})
        assert torch.allclose(with_null, generate(plain, chain, solver, noise, SHAPE), atol=1e-6)


@pytest.mark.parametrize("target", ["v", "x0"])
@pytest.mark.parametrize("solver", [DDIM(), DDIM(clip_after_guidance=True), DDIM(eta=1.0), DDPM()])
def test_a_chain_that_ends_in_pure_noise_is_sampled(target: str, solver: DDIM | DDPM) -> None:
    process = ProcessConfig(betas=(0.1, 0.2, 1.0), target=target, variance="fixed_small")
    denoiser = guided(process, 0.01)
    x = generate(denoiser, denoiser.chain, solver, NoiseSource(0, [0]), SHAPE, cond={"y": torch.tensor([0])})
    assert torch.isfinite(x).all()


def test_noise_prediction_on_a_chain_that_ends_in_pure_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="predict 'v', 'x0', 'velocity', 'edm' or 'previous_mean'"):
        ChainDenoiser(lambda x, t: x, ProcessConfig(betas=(0.1, 1.0), variance="fixed_small"))


@pytest.mark.parametrize("betas", [(0.1, 1.0, 0.5), (1.0, 1.0), (0.1, 0.0), (1e-17, 0.2), (0.1, 1.1), (float("nan"),)])
def test_impossible_betas_are_refused(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="beta"):
        DiscreteSchedule(betas)


def test_levels_outside_the_chain_are_refused() -> None:
    chain = DiscreteSchedule([0.1, 0.2])
    for k in (-1, 2):
        with pytest.raises(ValueError, match="this chain has the steps 0 to 1"):
            chain.level(k)


@pytest.mark.parametrize("target", ["previous_mean", "eps"])
def test_an_image_does_not_depend_on_its_neighbours_steps(target: str) -> None:
    """One batch holds an adjacent and a strided step; each image's reverse step is that of a batch of one."""
    process = ProcessConfig(schedule="cosine", steps=50, target=target, variance="learned")
    denoiser = ChainDenoiser(lambda x, t: torch.cat([0.5 * x, -3 + 0 * x], dim=1), process, clip="static")
    chain = denoiser.chain.respaced("at:10,11,40")
    x = NoiseSource(0, range(2)).normal(SHAPE)
    k = torch.tensor([1, 2])  # 11 -> 10 is adjacent, 40 -> 11 is not
    both = denoiser(x, chain.level(k))
    step = chain.transition(k)
    for i in range(2):
        alone = denoiser(x[i : i + 1], chain.level(k[i : i + 1]))
        single = chain.transition(k[i : i + 1])
        assert torch.allclose(both.mean(step)[i], alone.mean(single)[0], atol=1e-6)
        assert torch.allclose(both.log_variance(step)[i], alone.log_variance(single)[0], atol=1e-6)


def test_guidance_wants_one_class_an_image() -> None:
    classifier = LevelClassifier(lambda x, t: x.flatten(1)[:, :3], ProcessConfig(schedule="cosine"))
    with pytest.raises(ValueError, match="one class index for each of the 2 images"):
        classifier.gradient(torch.zeros(2, 1, 4, 4), Level.from_alpha_bar(0.5), torch.tensor([0]))


def test_guidance_works_inside_inference_mode() -> None:
    classifier = LevelClassifier(lambda x, t: x.flatten(1)[:, :3], ProcessConfig(schedule="cosine"))
    with torch.inference_mode():
        gradient = classifier.gradient(torch.zeros(1, 1, 4, 4), Level.from_alpha_bar(0.5), torch.tensor([0]))
    assert gradient.flatten()[0] == pytest.approx(2 / 3)


def test_log_normal_cdf_and_its_gradient_in_the_tails() -> None:
    """d/dz log Phi(z) -> -z + ... far left: phi(z) / Phi(z) = -z (1 + 1/z^2 + ...)^-1 asymptotically."""
    z = torch.tensor([-1e4, -1e3, -100.0, -10.0, -1.0, 0.0, 3.0, 50.0], requires_grad=True)
    value = log_normal_cdf(z)
    value.sum().backward()
    truth = torch.special.log_ndtr(z.detach().double())
    assert torch.allclose(value.detach().double(), truth, rtol=1e-5, atol=1e-7)
    w = z.detach().double()
    mills = torch.exp(-0.5 * w**2 - 0.5 * torch.log(torch.tensor(2 * torch.pi)).double() - truth)
    far = w < -50
    mills = torch.where(far, -w + (-1 / w) * (1 - 2 / w**2), mills)  # asymptotic series where exp underflows
    assert z.grad is not None
    assert torch.allclose(z.grad.double(), mills, rtol=1e-5, atol=1e-30)


def test_one_absurd_prediction_does_not_poison_the_gradient_of_others() -> None:
    """Outputs of 1e5 in the row of step 0 and elsewhere: losses and gradients stay finite."""
    scale = torch.ones(3, requires_grad=True)
    process = ProcessConfig(schedule="linear", steps=100, target="x0", variance="learned_range")

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([scale[:, None, None, None] * 1e5 * torch.ones_like(x), torch.zeros_like(x)], dim=1)

    objective = Objective(ChainDenoiser(net, process), ObjectiveConfig(loss="vlb", rescale=False))
    loss = objective(torch.zeros(3, *SHAPE), torch.tensor([0, 1, 99]), torch.zeros(3, *SHAPE))["loss"]
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert scale.grad is not None
    assert torch.isfinite(scale.grad).all()


def test_the_decoder_is_a_distribution_also_when_it_is_narrow() -> None:
    bins = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None, None, None]
    for std in (1e-3, 5e-3, 0.05, 1.0):
        log_p = discretized_log_likelihood(bins, torch.full_like(bins, 0.123), torch.tensor(std).log().double())
        assert log_p.exp().sum() == pytest.approx(1, abs=1e-9)


def test_there_is_no_arc_between_opposite_latents() -> None:
    a = torch.ones(1, *SHAPE)
    with pytest.raises(ValueError, match="opposite"):
        slerp(a, -a, 0.5)
    with pytest.raises(ValueError, match="zero"):
        slerp(a, 0 * a, 0.5)


@pytest.mark.parametrize("steps", [2, 10, 26, 64, 100, 512, 1000])
def test_the_suggested_ddim_grid_always_exists(steps: int) -> None:
    chain = ProcessConfig(schedule="cosine", steps=steps).chain()
    for count in (1, 2, 25, 50, 60, 2000):
        assert 1 <= chain.respaced(ddim_spec(steps, count)).steps <= steps


def test_eta_beyond_one_takes_at_most_the_noise_the_level_holds() -> None:
    """With eta = 1000 every step keeps alpha x0 and draws all its noise afresh."""
    denoiser = ChainDenoiser(lambda x, t: 0.3 * x, ProcessConfig(schedule="linear", variance="fixed_small"))
    transition = denoiser.chain.transition(500)
    x, z = (NoiseSource(0, [0]).normal(SHAPE, step=k) for k in range(2))
    moved, _, prediction = DDIM(eta=1000).step(denoiser, x, transition, None, lambda: z)
    expected = float(transition.target.alpha) * prediction.x0 + float(transition.target.sigma) * z
    assert torch.allclose(moved, expected, atol=1e-6)
