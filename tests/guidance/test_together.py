"""Kinds of guidance used together, down whole paths, against the same written down by hand in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from support.compatibility import (
    CLASSES,
    FRACTION,
    IMAGES,
    NULL,
    OPTIONS,
    SHAPE,
    TARGET,
    TOLERANCE,
    WEAK,
    Exact,
    Perfect,
    class_gradient,
    exact,
)
from undiffuse.denoiser import ChainDenoiser, Denoiser, ProcessConfig
from undiffuse.grids import NoisePath, grid
from undiffuse.guidance import (
    GUIDANCE_SCHEDULES,
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Interval,
    LossGuidance,
    product,
)
from undiffuse.noise_levels import DiscreteSchedule, Level, expand
from undiffuse.prediction import Prediction
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.solvers.registry import SOLVERS
from undiffuse.testing.oracles import Noise64

OTHERS = 1 - CLASSES  # what a second classifier draws to
COND = {"y": CLASSES, "z": OTHERS}
LOW, HIGH = -3.0, 4.0
WITHIN = product(Interval(LOW, HIGH), GUIDANCE_SCHEDULES["cosine"])
PROCESSES = {
    "chain": ProcessConfig(schedule="linear", steps=40, target="eps", variance="learned_range"),
    "flow": ProcessConfig(preconditioning="flow", steps=40, target="velocity", variance="fixed_small"),
    "edm": ProcessConfig(preconditioning="edm", steps=40, target="edm", variance="fixed_large"),
}
Model = Callable[..., ChainDenoiser]

BUILD: dict[str, Callable[[Model], Denoiser]] = {
    "two classifiers": lambda model: ClassifierGuidance(
        ClassifierGuidance(model(), class_gradient, 1.0), class_gradient, 0.4, condition="z"
    ),
    "classifier around cfg": lambda model: ClassifierGuidance(
        ClassifierFree(model(True), 2.0, {"y": NULL}), class_gradient, 0.5
    ),
    "classifier at x0 around cfg": lambda model: ClassifierGuidance(
        ClassifierFree(model(True), 2.0, {"y": NULL}), class_gradient, 0.5, "x0"
    ),
    "loss around classifier around cfg": lambda model: LossGuidance(
        ClassifierGuidance(ClassifierFree(model(True), 2.0, {"y": NULL}), class_gradient, 0.5), _loss, 0.7
    ),
    "cfg around a classifier of something else": lambda model: ClassifierFree(
        ClassifierGuidance(model(True), class_gradient, 0.5, condition="z"), 2.0, {"y": NULL}
    ),
    "autoguided, around a classifier": lambda model: Autoguidance(
        ClassifierGuidance(model(), class_gradient, 0.5), model(wider=WEAK), 1.5
    ),
    "autoguided cfg": lambda model: Autoguidance(
        ClassifierFree(model(True), 2.0, {"y": NULL}), model(wider=WEAK), 1.5
    ),
    "cfg in an interval, by a cosine": lambda model: ClassifierFree(model(True), 2.0, {"y": NULL}, schedule=WITHIN),
    "classifier around cfg, both in an interval, by a cosine": lambda model: ClassifierGuidance(
        ClassifierFree(model(True), 2.0, {"y": NULL}, schedule=WITHIN), class_gradient, 0.5, schedule=WITHIN
    ),
    "classifier in an interval, by a cosine, every 2nd call": lambda model: ClassifierGuidance(
        model(), class_gradient, 1.2, schedule=WITHIN, every=2
    ),
    "classifier every 3rd call around cfg every 2nd in an interval": lambda model: ClassifierGuidance(
        ClassifierFree(model(True), 2.0, {"y": NULL}, schedule=Interval(LOW, HIGH), every=2),
        class_gradient, 0.8, every=3,
    ),
}  # fmt: skip


def _loss(x0: Tensor) -> Tensor:
    return ((x0 - TARGET) ** 2).flatten(1).sum(1)


@dataclass
class ByHand:
    """The combination in closed form: `moments` of the comparisons, `pull` of the gradients. Counts its calls."""

    name: str
    chain: DiscreteSchedule
    conditions = frozenset(COND)

    def __post_init__(self) -> None:
        self.calls = 0  # those in the interval
        self.all_calls = 0
        self.kept: dict[str, Tensor] = {}

    def moments(self, x: Tensor, level: Level) -> Exact:
        """Of x0, with the variance that its slope follows, and of the noise."""
        main = exact(x, level)
        if "cfg" not in self.name:
            return _between(exact(x, level, wider=WEAK), main, 1.5) if "autoguided" in self.name else main
        told = exact(x, level, CLASSES)
        scale: Tensor | float = 2.0
        if "cosine" in self.name:
            scale = 1 + (2 - 1) * factor(level)
        if "cfg every 2nd" in self.name:
            inside = LOW <= float(level.logsnr) <= HIGH
            if not inside:
                return told
            if self.calls % 2 == 0:
                self.kept["cfg"] = told.eps - main.eps
            shift = self.kept["cfg"]
            ratio = expand(level.sigma / level.alpha, x)
            return Exact(told.mean - ratio * shift, told.variance, told.eps + shift)  # S - 1 = 1
        found = _between(main, told, scale)
        return _between(exact(x, level, wider=WEAK), found, 1.5) if "autoguided" in self.name else found

    def pull(self, x: Tensor, level: Level, found: Exact) -> Tensor:
        """What moves the score."""
        slope = expand(level.alpha / level.sigma**2, x) * found.variance  # d x0 / d x
        here = class_gradient(x, level, CLASSES)
        if self.name == "two classifiers":
            return here + 0.4 * class_gradient(x, level, OTHERS)
        if self.name.startswith("cfg around"):  # the gradient is the same in both passes
            return 0.5 * class_gradient(x, level, OTHERS)
        if self.name.startswith("autoguided, around"):  # and here in the main one only
            return 1.5 * 0.5 * here
        if self.name == "classifier around cfg":
            return 0.5 * here
        if self.name == "classifier at x0 around cfg":
            return 0.5 * slope * class_gradient(found.mean, Level.clean(), CLASSES)
        if self.name.startswith("loss"):
            return 0.5 * here - 0.7 * slope * 2 * (found.mean - TARGET)
        if self.name.startswith("classifier around cfg, both"):
            return 0.5 * factor(level) * here
        if "every" in self.name:
            second = "every 2nd call" in self.name
            count, each = (self.calls, 2) if second else (self.all_calls, 3)
            inside = LOW <= float(level.logsnr) <= HIGH
            if second and not inside:
                return torch.zeros_like(x)
            if count % each == 0:
                self.kept["pull"] = expand(level.sigma, x) * here
            return (1.2 * factor(level) if second else 0.8) * expand(1 / level.sigma, x) * self.kept["pull"]
        return torch.zeros_like(x)

    def asked(self, x: Tensor, level: Level) -> tuple[Exact, Tensor]:
        found = self.moments(x, level)
        pull = self.pull(x, level, found)
        self.calls += int((level.logsnr[0] >= LOW) & (level.logsnr[0] <= HIGH))
        self.all_calls += 1
        return found, pull

    def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        found, g = self.asked(x, level)
        ratio = torch.where(level.alpha > 0, level.sigma**2 / level.alpha.clamp(min=1e-300), 0.0)
        x0, eps = found.mean + expand(ratio, x) * g, found.eps - expand(level.sigma, x) * g
        return Prediction(x, level, "x0", x0, noise=eps)


def _between(low: Exact, high: Exact, scale: Tensor | float) -> Exact:
    pairs = zip((low.mean, low.variance, low.eps), (high.mean, high.variance, high.eps), strict=True)
    return Exact(*(a + scale * (b - a) for a, b in pairs))


def factor(level: Level) -> Tensor:
    """1 + cos(2 arctan(sigma / alpha)) in the interval: 2 alpha^2 where alpha^2 + sigma^2 = 1; [B, 1, 1, 1]."""
    inside = (level.logsnr >= LOW) & (level.logsnr <= HIGH)
    return torch.where(inside, 2 * level.alpha**2, 0.0).reshape(-1, 1, 1, 1)


def ancestral_by_hand(hand: ByHand, path: NoisePath, variance: str) -> Tensor:
    noise = Noise64(0, IMAGES)
    x = noise.normal(SHAPE, step=0, purpose="x_T")
    for index in range(path.steps):
        step = path.transition(path.steps - 1 - index)
        low, high, last = float(step.log_posterior_variance), float(step.log_beta), bool(step.last)
        log = {"learned_range": FRACTION * high + (1 - FRACTION) * low, "fixed_large": low if last else high}.get(
            variance, low
        )
        found, pull = hand.asked(x, step.source)
        shift = 0.0 if last and variance == "fixed_small" else math.exp(log)
        x = float(step.coef_x0) * found.mean + float(step.coef_xt) * x + shift * pull
        x = x + (0.0 if last else math.exp(log / 2)) * noise.normal(SHAPE, step=index)
    return x


def once(solver: str) -> bool:
    """Whether it makes one call a step, each at a cleaner level: the trajectories that reuse is written down for."""
    return solver in ("ddpm", "ddim", "euler", "dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m-sde", "unipc")


CASES = [
    (name, solver, list(PROCESSES)[k % 3], place)
    for k, (name, solver, place) in enumerate(
        (name, solver, place)
        for place in ("chain", "logsnr:from=-4,to=5")
        for name in BUILD
        for solver in SOLVERS
        if once(solver) or "every" not in name
    )
]


def outcome(name: str, solver: str, family: str, place: str) -> tuple[Tensor, Tensor]:
    """The project's images, and those by hand."""
    process = PROCESSES[family]

    def model(conditional: bool = False, wider: float = 1.0) -> ChainDenoiser:
        return ChainDenoiser(Perfect(process, conditional, wider), process, clip="none")

    guided = BUILD[name](model)
    cond = {key: value for key, value in COND.items() if key in guided.conditions}
    path = grid(guided.chain, "6", place)
    made = [build_solver(solver, **OPTIONS.get(solver, {})) for _ in range(2)]
    ours = generate(guided, path, made[0], Noise64(0, IMAGES), SHAPE, cond=cond)
    hand = ByHand(name, guided.chain)
    if solver == "ddpm":
        return ours, ancestral_by_hand(hand, path, process.variance)
    return ours, generate(hand, path, made[1], Noise64(0, IMAGES), SHAPE)


@pytest.mark.parametrize("name", BUILD)
def test_together_as_by_hand(name: str) -> None:
    """With every solver, on trained steps and between them; the families take turns."""
    for case in CASES:
        if case[0] == name:
            ours, hand = outcome(*case)
            assert (ours - hand).abs().max() < TOLERANCE, case


def test_every_solver_and_family_took_part() -> None:
    assert {case[1] for case in CASES} == set(SOLVERS)
    for name in BUILD:
        assert {case[2] for case in CASES if case[0] == name} == set(PROCESSES)


@pytest.mark.parametrize("name", BUILD)
def test_each_part_counts(name: str) -> None:
    """Each combination differs from the others by more than the tolerance, so that none stands for another."""
    ours, _ = outcome(name, "ddim", "chain", "chain")
    for other in BUILD:
        if other != name:
            assert (ours - outcome(other, "ddim", "chain", "chain")[0]).abs().max() > 2 * TOLERANCE, other
