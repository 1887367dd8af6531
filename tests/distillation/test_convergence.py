"""On a mixture of Gaussians every method converges to what it should; with a planted fault it does not.

The exact average velocity over a segment and the exact consistency function come from a fine integration of the
probability flow (`support.distilling.trajectory`), the data itself from the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.distilling import (
    MIXTURE,
    PROCESS,
    SmallNet,
    denoiser,
    distil,
    jump_error,
    oracle,
    regression_start,
    samples,
    trajectory,
)
from undiffuse.distillation import (  # the modules, to plant faults in
    ConsistencyDistillation,
    ConsistencyTraining,
    Discretisation,
    MomentMatching,
    Progressive,
    Segments,
    consistency,
    moment_matching,
    progressive,
)
from undiffuse.grids import grid
from undiffuse.noise_levels import Level
from undiffuse.testing.oracles import wasserstein1

LEVELS = PROCESS.build_preconditioning()


@pytest.fixture(scope="module")
def start() -> SmallNet:
    """A network that predicts the denoised image, from which students start."""
    torch.set_num_threads(1)
    return regression_start(updates=400)


def segments(count: int) -> list[tuple[Level, Level]]:
    found = Segments(LEVELS, grid(PROCESS.chain(), count, "trailing"))
    numbers = [torch.tensor([n]) for n in range(count)]
    return [(found.start(n), found.end(n)) for n in numbers]


def worst_jump(net: SmallNet, count: int) -> float:
    """The largest error of the student's jumps over `count` segments."""
    return max(jump_error(net, source, end) for source, end in segments(count))


def consistency_error(net: SmallNet) -> float:
    """The largest error of the student's image from four levels of the chain."""
    return max(jump_error(net, PROCESS.chain().level(k), Level.clean()) for k in (63, 48, 32, 16))


def test_the_reference_trajectory_is_exact_for_a_single_gaussian() -> None:
    """For N(m, c^2) the flow keeps (x / alpha - m) / sqrt(c^2 + s^2), s = sigma / alpha."""
    mean, deviation = 0.3, 0.2
    single = replace(
        MIXTURE, weights=torch.ones(1, dtype=torch.float64), means=torch.tensor([[mean]], dtype=torch.float64),
        variances=torch.tensor([[deviation**2]], dtype=torch.float64), labels=(),
    )  # fmt: skip
    level = PROCESS.chain().level(50)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    s = float(level.sigma / level.alpha)
    expected = mean + (x / float(level.alpha) - mean) * deviation / (deviation**2 + s**2) ** 0.5
    found = trajectory(x, level, Level.clean(), mixture=single)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# Progressive distillation


def run_progressive(start: SmallNet) -> float:
    return worst_jump(distil(Progressive(LEVELS, 2, factor=8), start, updates=300), 2)


def test_progressive_distillation_converges_to_the_average_velocity(start: SmallNet) -> None:
    before = worst_jump(start, 2)
    assert before > 0.25
    assert run_progressive(start) < 0.3 * before


def _image_at_the_end(x: Tensor, end: Tensor, source: Level, target: Level) -> Tensor:
    return end


def _stays(prediction: Any, source: Level, target: Level) -> Tensor:
    return prediction.x


@pytest.mark.parametrize("fault", [("ddim_x0", _image_at_the_end), ("moved", _stays)], ids=["no inversion", "no step"])
def test_progressive_distillation_with_a_fault_does_not(
    start: SmallNet, fault: tuple[str, Callable[..., Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progressive, *fault)
    assert run_progressive(start) > 0.3 * worst_jump(start, 2)


def test_progressive_distillation_needs_no_data(start: SmallNet) -> None:
    made = distil(Progressive(LEVELS, 2, factor=8, inputs="own"), start, updates=300, blank=True)
    assert worst_jump(made, 2) < 0.3 * worst_jump(start, 2)


def test_progressive_distillation_without_data_needs_the_teachers_steps(
    start: SmallNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them the student sees noise where it should see the ends of the teacher's first steps."""
    monkeypatch.setattr(Progressive, "_made_inputs", _only_noise)
    made = distil(Progressive(LEVELS, 2, factor=8, inputs="own"), start, updates=300, blank=True)
    assert worst_jump(made, 2) > 0.3 * worst_jump(start, 2)


def _only_noise(self: Any, network: Any, batch: Any, *_: Any) -> Tensor:
    return batch.draw("train") * 3


def _nothing(self: Any, networks: Any, batch: Any, *_: Any) -> Tensor:
    return torch.zeros_like(batch.x0)


# Consistency distillation and training


def run_consistency(start: SmallNet, kind: Any, **settings: Any) -> float:
    method = kind(LEVELS, 1, distance="l2", target_decay=0.9, **settings)
    return consistency_error(distil(method, start, updates=500, lr=3e-3))


DISTILLATION = {"levels": Discretisation("fixed", 10, 18)}
TRAINING = {"levels": Discretisation("original", 4, 40)}


@pytest.mark.parametrize(
    ("kind", "settings"), [(ConsistencyDistillation, DISTILLATION), (ConsistencyTraining, TRAINING)]
)
def test_consistency_models_converge_to_the_consistency_function(
    start: SmallNet, kind: Any, settings: dict[str, Any]
) -> None:
    before = consistency_error(start)
    assert before > 0.5
    assert run_consistency(start, kind, **settings) < 0.35 * before


def _wrong_way(teacher: Any, cond: Any = None, order: int = 2) -> Callable[..., Tensor]:
    right = consistency_heun(teacher, cond, order)
    return lambda x, source, target: 2 * x - right(x, source, target)


def _no_noise(x0: Tensor) -> Callable[..., Tensor]:
    return lambda x, source, target: float(target.alpha[0]) * x0


consistency_heun = consistency.heun_teacher


@pytest.mark.parametrize(
    ("kind", "settings", "fault"),
    [
        (ConsistencyDistillation, DISTILLATION, ("heun_teacher", _wrong_way)),
        (ConsistencyTraining, TRAINING, ("straight_teacher", _no_noise)),
    ],
    ids=["the teacher's step reversed", "a neighbour without noise"],
)
def test_consistency_models_with_a_fault_do_not(
    start: SmallNet, kind: Any, settings: dict[str, Any], fault: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency, *fault)
    assert run_consistency(start, kind, **settings) > 0.35 * consistency_error(start)


def run_multistep(start: SmallNet, kind: Any) -> float:
    method = kind(LEVELS, 2, segments=2, levels=Discretisation("fixed", 10, 24), distance="l2")
    return worst_jump(distil(method, start, updates=500), 2)


@pytest.mark.parametrize(("kind", "share"), [(ConsistencyDistillation, 0.5), (ConsistencyTraining, 0.7)])
def test_multistep_consistency_models_converge_to_the_average_velocity(
    start: SmallNet, kind: Any, share: float
) -> None:
    """Training has noisy aims, so it gets less far in as many updates."""
    assert run_multistep(start, kind) < share * worst_jump(start, 2)


def test_multistep_consistency_without_the_jump_to_the_segments_end_does_not(
    start: SmallNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency, "ddim_x0", _image_at_the_end)
    assert run_multistep(start, ConsistencyDistillation) > 0.5 * worst_jump(start, 2)


# Moment matching


def run_moment_matching(start: SmallNet, settings: Any = None, **more: Any) -> float:
    auxiliary = SmallNet(0)
    auxiliary.load_state_dict(start.state_dict())
    student = distil(
        MomentMatching(LEVELS, 2, **(settings or {})), start, updates=600, lr=1.5e-3, betas=(0.0, 0.99),
        auxiliary=auxiliary, **more,
    )  # fmt: skip
    return wasserstein1(samples(student, 2), MIXTURE.sample(4000, 77))


def test_moment_matching_converges_to_the_data(start: SmallNet) -> None:
    before = wasserstein1(samples(start, 2), MIXTURE.sample(4000, 77))
    assert before > 0.25
    assert run_moment_matching(start) < 0.5 * before


class _Shifted:
    """A teacher that is wrong by a constant: the student must follow it, not the data."""

    conditions: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.exact = oracle()
        self.chain = self.exact.chain

    def __call__(self, x: Tensor, level: Level, cond: Any = None) -> Any:
        found = self.exact(x, level, cond)
        return found.with_x0(found.x0 + 0.3)


def test_moment_matching_follows_its_teacher(start: SmallNet) -> None:
    assert run_moment_matching(start, teacher=_Shifted()) > 0.5 * wasserstein1(
        samples(start, 2), MIXTURE.sample(4000, 77)
    )


def _noise_free(x: Tensor, x0: Tensor, source: Level, target: Level, noise: Tensor) -> Tensor:
    return x0


def test_moment_matching_with_a_fault_does_not(start: SmallNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment_matching, "posterior_sample", _noise_free)
    assert run_moment_matching(start) > 0.5 * wasserstein1(samples(start, 2), MIXTURE.sample(4000, 77))


def test_moment_matching_needs_no_data(start: SmallNet) -> None:
    before = wasserstein1(samples(start, 2), MIXTURE.sample(4000, 77))
    assert run_moment_matching(start, {"inputs": "own"}, blank=True) < 0.5 * before


def test_moment_matching_without_data_needs_the_students_own_calls(
    start: SmallNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MomentMatching, "_made_inputs", _nothing)
    before = wasserstein1(samples(start, 2), MIXTURE.sample(4000, 77))
    assert run_moment_matching(start, {"inputs": "own"}, blank=True) > 0.5 * before


class Critic(torch.nn.Module):
    """A small discriminator of noisy numbers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
                torch.nn.Linear(64, 1),
            )  # fmt: skip

    def forward(self, x: Tensor, level: Level, cond: Any = None) -> Tensor:
        noise = torch.log(level.sigma / level.alpha).float().expand(len(x))
        flat = x.flatten(1)
        return self.layers(torch.cat([flat, flat**2, noise[:, None] / 3], dim=1))[:, 0]


ADVERSARIAL = {"adversarial": 2.0}


@pytest.fixture(scope="module")
def misguided(start: SmallNet) -> float:
    """How far from the data a student of a wrong teacher ends without a discriminator."""
    return run_moment_matching(start, teacher=_Shifted())


@pytest.mark.slow
def test_the_discriminator_draws_the_student_from_a_wrong_teacher_to_the_data(
    start: SmallNet, misguided: float
) -> None:
    helped = run_moment_matching(start, ADVERSARIAL, teacher=_Shifted(), discriminator=Critic())
    assert helped < 0.85 * misguided


@pytest.mark.slow
def test_a_discriminator_that_is_misled_does_not(
    start: SmallNet, misguided: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = moment_matching.adversarial_loss

    def reversed_loss(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        loss, towards = right(*arguments, **named)
        return loss, -towards

    monkeypatch.setattr(moment_matching, "adversarial_loss", reversed_loss)
    assert run_moment_matching(start, ADVERSARIAL, teacher=_Shifted(), discriminator=Critic()) > 0.85 * misguided


def test_the_denoiser_that_students_start_from_is_exact(start: SmallNet) -> None:
    level = PROCESS.chain().level(30)
    x = torch.linspace(-1.5, 1.5, 50).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        difference = denoiser(start)(x, level).x0 - oracle()(x, level).x0
    assert float(difference.abs().mean()) < 0.05
