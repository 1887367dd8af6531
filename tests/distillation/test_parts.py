"""The parts of the methods: schedules of levels, segments, DDIM steps and their inverse, the posterior, settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

from support.distilling import oracle
from undiffuse.denoiser import ProcessConfig
from undiffuse.distillation import (
    METHODS,
    Batch,
    Discretisation,
    MomentMatching,
    Networks,
    Segments,
    build_method,
    read_settings,
)
from undiffuse.distillation.base import ddim_x0, moved
from undiffuse.distillation.moment_matching import posterior_sample
from undiffuse.grids import grid
from undiffuse.noise_levels import Level, diffuse, expand
from undiffuse.prediction import Prediction
from undiffuse.training.distillation import student_process

PROCESS = ProcessConfig(schedule="cosine", steps=64, target="v", variance="fixed_small")
LEVELS = PROCESS.build_preconditioning()


def test_the_improved_number_of_levels_doubles() -> None:
    """Song & Dhariwal 2024: from s0 + 1 = 11 to s1 + 1 = 1281 in eight stages of equal length."""
    curve = Discretisation("improved", 10, 1280)
    stages = [curve.count((stage + 0.5) / 8) for stage in range(8)]
    assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert (curve.count(0.0), curve.count(1.0)) == (11, 1281)


def test_the_original_number_of_levels_grows_with_the_root() -> None:
    """Song et al. 2023, appendix C: s0 = 2, s1 = 150; after k of K updates ceil(sqrt(k/K (151^2 - 4) + 4) - 1) + 1."""
    curve = Discretisation("original", 2, 150)
    assert [curve.count(share) for share in (0.0, 0.25, 1.0)] == [2, math.ceil(math.sqrt(22797 / 4 + 4) - 1) + 1, 151]
    assert Discretisation("fixed", 2, 18).count(0.3) == 18


def test_the_improved_pairs_follow_a_log_normal_distribution() -> None:
    """p(sigma_i) ~ erf((ln sigma_{i+1} + 1.1) / (2 sqrt 2)) - erf((ln sigma_i + 1.1) / (2 sqrt 2))."""
    sigmas = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    found = torch.bincount(Discretisation("improved").pairs(sigmas, u), minlength=3) / 100_000
    edges = [math.erf((math.log(s) + 1.1) / (2 * math.sqrt(2))) for s in sigmas.tolist()]
    expected = torch.tensor([b - a for a, b in zip(edges[:-1], edges[1:], strict=True)])
    torch.testing.assert_close(found.double(), (expected / expected.sum()).double(), atol=1e-4, rtol=0)
    weights = Discretisation("improved").weight(sigmas[1:], sigmas[:-1])
    torch.testing.assert_close(weights, 1 / (sigmas[1:] - sigmas[:-1]))
    even = torch.bincount(Discretisation("fixed").pairs(sigmas, u), minlength=3)
    assert even.tolist() == [33333, 33334, 33333]


class _Constant:
    """A denoiser that gives one value for every pixel, plus an error that follows the noise of the image."""

    conditions: frozenset[str] = frozenset()

    def __init__(self, value: float, error: float = 0.0, clip: bool = False) -> None:
        self.value = torch.tensor(value, requires_grad=True)
        self.error, self.clip, self.exact = error, clip, oracle()
        self.chain = self.exact.chain

    def __call__(self, x: torch.Tensor, level: Level, cond: object = None) -> Prediction:
        found = self.exact(x, level)
        noise = (x - expand(level.alpha, x) * -1.0) / expand(level.sigma, x)  # of an image that is -1
        x0 = self.value + self.error * torch.sin(3 * noise)
        return found.with_x0(x0.clamp(-1, 1) if self.clip else x0)


@pytest.mark.parametrize(("clip", "black"), [("static", True), ("none", False)])
def test_moment_matching_leaves_black_pixels_black(clip: str, black: bool) -> None:
    """Errors go to both sides of -1, and clipping raises the teacher's mean; so the auxiliary is clipped as well."""
    method = MomentMatching(PROCESS.build_preconditioning(), 2, clip=clip)
    student, auxiliary, teacher = _Constant(-0.9), _Constant(-0.9, error=0.2), _Constant(-1.0, error=0.2, clip=True)
    networks = Networks(student=student, auxiliary=auxiliary, teacher=teacher)
    optimizer = torch.optim.Adam([student.value, auxiliary.value], lr=0.01, betas=(0.0, 0.99))
    for number in range(400):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - number / 400)
        optimizer.zero_grad()
        batch = Batch(
            x0=torch.full((32, 1, 2, 2), -1.0),
            u=(torch.arange(32, dtype=torch.float64) + 0.5) / 32,
            progress=number / 400,
            draw=lambda purpose, n=number: torch.randn(
                32, 1, 2, 2, generator=torch.Generator().manual_seed(2 * n + (purpose == "step"))
            ),
        )
        method.losses(networks, batch)["loss"].mean().backward()
        optimizer.step()
    assert (float(student.value.detach()) < -0.99) == black


def test_the_discriminator_gives_the_student_the_gradient_of_its_score() -> None:
    """Where teacher and auxiliary agree, the student's gradient is that of weight softplus(-D(z_s)) alone."""
    method, weight, slope, count = MomentMatching(LEVELS, 2, adversarial=0.5), 0.5, 0.7, 16
    student, auxiliary, teacher = _Constant(0.2), _Constant(0.1), _Constant(0.1)
    seen: list[tuple[torch.Tensor, Level]] = []

    def critic(x: torch.Tensor, level: Level, cond: object = None) -> torch.Tensor:
        seen.append((x, level))
        return slope * x.flatten(1).sum(1)

    def draw(purpose: str) -> torch.Tensor:
        g = torch.Generator().manual_seed(len(purpose))
        return torch.randn(count, 1, 2, 2, generator=g, dtype=torch.float64)

    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    batch = Batch(x0=torch.full((count, 1, 2, 2), -0.4, dtype=torch.float64), u=u, progress=0.0, draw=draw)
    networks = Networks(student=student, auxiliary=auxiliary, teacher=teacher, discriminator=critic)
    terms = method.losses(networks, batch)
    (found,) = torch.autograd.grad(terms["loss"].sum(), student.value)

    segments = Segments(LEVELS, grid(PROCESS.chain(), 2, "trailing"))
    source, (made, level), (real, _) = segments.start(segments.choose(u)[0]), *seen
    value = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    x = diffuse(batch.x0, source, draw("train"))
    z = posterior_sample(x, value.expand(batch.x0.shape), source, level, draw("step"))
    torch.testing.assert_close(z.detach(), made.detach())
    score = slope * z.flatten(1).sum(1)
    (expected,) = torch.autograd.grad(weight * softplus(-score).sum(), value)
    assert float(expected) != 0
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(real, diffuse(batch.x0, level, draw("real")))
    judged = softplus(score.detach()) + softplus(-slope * real.flatten(1).sum(1))
    torch.testing.assert_close(terms["discriminator"], judged)


def test_the_student_waits_and_is_trained_at_every_nth_update() -> None:
    method = MomentMatching(LEVELS, 2, every=3, wait=4)
    trained = []
    for update in range(10):
        student, auxiliary, teacher = _Constant(0.2), _Constant(0.1), _Constant(-0.5)
        batch = Batch(
            x0=torch.zeros(4, 1, 2, 2), u=(torch.arange(4, dtype=torch.float64) + 0.5) / 4, progress=0.0,
            draw=lambda purpose: torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(1)), update=update,
        )  # fmt: skip
        networks = Networks(student=student, auxiliary=auxiliary, teacher=teacher)
        method.losses(networks, batch)["loss"].sum().backward()
        assert auxiliary.value.grad is not None
        if student.value.grad is not None:
            trained.append(update)
    assert trained == [6, 9]


@pytest.mark.parametrize(("top", "noisiest"), [(1.0, 63), (0.5, 31.5)])
def test_the_noisiest_levels_can_be_left_out(top: float, noisiest: float) -> None:
    method = MomentMatching(LEVELS, 1, top=top)
    segments = Segments(LEVELS, grid(PROCESS.chain(), 1, "trailing"))
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    positions = LEVELS.position(method._target(segments, *segments.choose(u))).double()
    assert noisiest - 1 <= float(positions.max()) <= noisiest + 0.5
    assert float(positions.min()) == 0


def test_segments_partition_the_levels() -> None:
    levels = PROCESS.build_preconditioning()
    segments = Segments(levels, grid(PROCESS.chain(), 4, "trailing"))
    n = torch.arange(4)
    assert segments.positions.tolist() == [63.0, 47.0, 31.0, 15.0, -1.0]
    torch.testing.assert_close(segments.end(n[:3]).alpha, segments.start(n[1:]).alpha)
    assert float(segments.end(n[3:]).sigma) == 0
    ends = segments.inside(n, torch.zeros(4, dtype=torch.float64))
    starts = segments.inside(n, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(ends.sigma, segments.end(n).sigma)
    torch.testing.assert_close(starts.sigma, segments.start(n).sigma)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    which, share = segments.choose(u)
    assert torch.bincount(which).tolist() == [250] * 4
    assert which[0] == 3  # small u: little noise
    assert 0 <= float(share.min()) < 0.01
    assert 0.99 < float(share.max()) <= 1


@pytest.mark.parametrize("target", [12, 0, None])
def test_ddim_x0_inverts_a_step(target: int | None) -> None:
    chain, g = PROCESS.chain(), torch.Generator().manual_seed(0)
    x, x0 = (torch.randn(3, 1, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    source = chain.level(torch.tensor([63, 40, 20]))
    end = Level.clean() if target is None else chain.level(target)
    prediction = Prediction(x, source, "x0", x0)
    torch.testing.assert_close(ddim_x0(x, moved(prediction, source, end), source, end), x0)


def test_the_posterior_has_the_moments_of_the_chain() -> None:
    chain, count = PROCESS.chain(), 200_000
    transition = chain.transition(20)
    g = torch.Generator().manual_seed(0)
    x0 = torch.full((count, 1, 1, 1), 0.4, dtype=torch.float64)
    x = torch.full_like(x0, -0.3)
    noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    found = posterior_sample(x, x0, transition.source, transition.target, noise)
    expected = float(transition.coef_x0) * 0.4 + float(transition.coef_xt) * -0.3
    assert abs(float(found.mean()) - expected) < 1e-3
    assert abs(float(found.var()) / float(transition.posterior_variance) - 1) < 0.02


def test_a_noisy_image_and_its_posterior_have_the_level_of_the_target() -> None:
    """x_t from x_0, then x_s from q(x_s | x_t, x_0): the same distribution as x_s from x_0."""
    chain, g = PROCESS.chain(), torch.Generator().manual_seed(1)
    source, target = chain.level(50), chain.level(11)
    x0 = torch.full((200_000, 1, 1, 1), 0.7, dtype=torch.float64)
    first, second = (torch.randn(x0.shape, generator=g, dtype=torch.float64) for _ in range(2))
    found = posterior_sample(diffuse(x0, source, first), x0, source, target, second)
    assert abs(float(found.mean()) - 0.7 * float(target.alpha)) < 3e-3
    assert abs(float(found.std()) / float(target.sigma) - 1) < 0.01


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_made_from_its_settings(name: str) -> None:
    method = build_method(name, PROCESS.build_preconditioning(), 2, {})
    assert method.name == name
    path = grid(PROCESS.chain(), 2, method.sampling_grid())
    assert path.steps == 2
    assert set(read_settings(name, {})) == set(METHODS[name].settings)


@pytest.mark.parametrize(
    ("process", "method", "target"),
    [
        (ProcessConfig(), "progressive", "v"),
        (ProcessConfig(target="x0", variance="fixed_large"), "progressive", "x0"),
        (ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small"), "progressive", "velocity"),
        (ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small"), "moment-matching", "edm"),
        (ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small"), "consistency-training",
         "consistency"),
        (ProcessConfig(preconditioning="edm", target="eps", variance="fixed_small"), "progressive", "edm"),
    ],
)  # fmt: skip
def test_students_predict_what_is_defined_at_pure_noise(process: ProcessConfig, method: str, target: str) -> None:
    student = student_process(process, method)
    assert (student.target, student.variance, student.preconditioning) == (
        target, "fixed_small", process.preconditioning,
    )  # fmt: skip
