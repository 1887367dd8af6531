"""Every prediction x variance x solver x guidance on a problem with a known answer: what runs, and what is refused.

A cell is run through the project (network -> `ChainDenoiser` -> guidance -> solver) and compared with the same noise's
images by exact formulas: for solvers other than `ddpm` the solver itself on the guided denoiser written down by
hand (its own order is certified elsewhere), for `ddpm` a loop written here. The data is a mixture of two Gaussians
over images of one number, one component a class.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.denoiser import VARIANCES, ChainDenoiser, Denoiser, ProcessConfig
from undiffuse.grids import NoisePath, grid
from undiffuse.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, LossGuidance
from undiffuse.noise_levels import DiscreteSchedule, Level, expand
from undiffuse.preconditioning import PRECONDITIONINGS
from undiffuse.prediction import KINDS as ALL_KINDS
from undiffuse.prediction import Prediction
from undiffuse.sampling import generate
from undiffuse.solvers import Solver, build_solver
from undiffuse.solvers.registry import SOLVERS
from undiffuse.testing.oracles import Noise64

WEIGHTS, MEANS, DEVIATIONS = (0.4, 0.6), (-0.5, 0.4), (0.3, 0.25)
WEAK = 1.5  # the weaker model's deviations are larger by this
SCALE, NULL, TARGET = 2.0, 2, 0.3  # of comparisons, the null class, and what the loss draws to
FRACTION = 0.3  # between the bounds of the reverse variance
IMAGES = 4
OPTIONS: dict[str, dict[str, Any]] = {"restart": {"restarts": 1, "inner": 1}, "bosh3": {"tol": 0.5}}
GUIDANCE = ("none", "classifier", "classifier at the mean", "classifier at x0", "cfg", "autoguidance", "loss")
PLACES = {"trained": "chain", "between": "logsnr:from=-4,to=5"}
TOLERANCE = 2e-3  # networks are told the time in float32
SHAPE = (1, 1, 1)
CLASSES = torch.tensor([0, 1, 1, 0])


@dataclass(frozen=True)
class Cell:
    """One combination; variance "none" is a denoiser of one's own that says nothing of it."""

    preconditioning: str
    kind: str
    variance: str
    solver: str
    guidance: str
    place: str


def cells() -> Iterator[Cell]:
    """All of them."""
    for preconditioning, kind, variance in itertools.product(PRECONDITIONINGS, KINDS, (*VARIANCES, "none")):
        for solver, guidance, place in itertools.product(SOLVERS, GUIDANCE, PLACES):
            yield Cell(preconditioning, kind, variance, solver, guidance, place)


@dataclass(frozen=True)
class Exact:
    """Moments of p(x0 | x) [B, 1, 1, 1] at a level, of a mixture in which every row has its own weights [B, 2]."""

    mean: Tensor
    variance: Tensor
    eps: Tensor


def exact(x: Tensor, level: Level, y: Tensor | None = None, wider: float = 1.0) -> Exact:
    """The posterior of x0; `y` [B] the class, a number beyond them both; `wider` multiplies the deviations."""
    alpha, sigma = (v.reshape(-1, 1) for v in (level.alpha, level.sigma))
    c2 = (wider * torch.tensor(DEVIATIONS, dtype=torch.float64)) ** 2
    m = torch.tensor(MEANS, dtype=torch.float64)
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], WEIGHTS], dtype=torch.float64)
    w = table[torch.full((len(x),), NULL) if y is None else y]
    v = alpha**2 * c2 + sigma**2
    flat = x.reshape(-1, 1)
    r = (w.log() - 0.5 * ((flat - alpha * m) ** 2 / v + v.log())).softmax(1)
    mu = m + alpha * c2 / v * (flat - alpha * m)
    mean = (r * mu).sum(1, keepdim=True)
    variance = (r * (c2 * sigma**2 / v + mu**2)).sum(1, keepdim=True) - mean**2
    eps = (r * (flat - alpha * m) / v).sum(1, keepdim=True) * sigma
    return Exact(*(part.reshape(-1, 1, 1, 1) for part in (mean, variance, eps)))


def class_gradient(x: Tensor, level: Level, y: Tensor) -> Tensor:
    """grad log p(y | x) = score of the class - score of all, without dividing by sigma."""
    alpha, sigma = (v.reshape(-1, 1) for v in (level.alpha, level.sigma))
    c2, m = torch.tensor(DEVIATIONS, dtype=torch.float64) ** 2, torch.tensor(MEANS, dtype=torch.float64)
    v = alpha**2 * c2 + sigma**2
    flat = x.reshape(-1, 1)
    scores = -(flat - alpha * m) / v
    r = (torch.tensor(WEIGHTS, dtype=torch.float64).log() - 0.5 * ((flat - alpha * m) ** 2 / v + v.log())).softmax(1)
    return (scores.gather(1, y[:, None]) - (r * scores).sum(1, keepdim=True)).reshape(x.shape)


# Consistency models return their input at sigma_min whatever the network says, which no exact denoiser does; they are
# held to the original's numbers instead (test_golden_consistency.py).
KINDS = tuple(kind for kind in ALL_KINDS if kind != "consistency")


class Perfect:
    """The network that a process asks for: (what it is shown, what it is told, y) -> what it shall predict."""

    def __init__(self, process: ProcessConfig, conditional: bool = False, wider: float = 1.0) -> None:
        self.process, self.wider, self.chain = process, wider, process.chain()
        self.conditions = frozenset({"y"}) if conditional else frozenset()
        self.logsnr = self.chain.level(torch.arange(self.chain.steps)).logsnr.numpy()

    def __call__(self, seen: Tensor, told: Tensor, y: Tensor | None = None) -> Tensor:
        process, t = self.process, told.double()
        d = process.sigma_data
        if process.preconditioning == "edm":
            level = Level.from_logsnr(-2 * 4 * t)
            x = seen * (level.sigma**2 + d**2 * level.alpha**2).sqrt().reshape(-1, 1, 1, 1)
        elif process.preconditioning == "flow":
            t = t / 1000
            norm = ((1 - t) ** 2 + t**2).sqrt()
            level = Level((1 - t) / norm, t / norm)
            x = seen / norm.reshape(-1, 1, 1, 1)
        elif process.preconditioning == "ve":
            level = Level.from_logsnr(-2 * (2 * t).log())
            x = seen * level.alpha.reshape(-1, 1, 1, 1)
        elif process.preconditioning in ("vp", "subvp"):
            t = t / 999
            squared = (-(process.beta_max - process.beta_min) * t**2 / 2 - process.beta_min * t).exp()
            sigma = 1 - squared if process.preconditioning == "subvp" else (1 - squared).sqrt()
            norm = (squared + sigma**2).sqrt()
            level, x = Level(squared.sqrt() / norm, sigma / norm), seen / norm.reshape(-1, 1, 1, 1)
        else:
            level, x = Level.from_logsnr(np.interp(t.numpy(), np.arange(len(self.logsnr)), self.logsnr)), seen
        found = exact(x, level, y, self.wider)
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
        k = t.round().long().clamp(0, self.chain.steps - 1)
        c0, ct = (
            torch.from_numpy(table)[k].reshape(-1, 1, 1, 1)
            for table in (self.chain.posterior_mean_coef1, self.chain.posterior_mean_coef2)
        )
        x0, eps = found.mean, found.eps
        values = {
            "x0": x0,
            "eps": eps,
            "score": -eps,
            "v": alpha * eps - sigma * x0,
            "velocity": eps - x0,
            "edm": (sigma * x0 - d**2 * alpha * eps) / (d * (sigma**2 + d**2 * alpha**2).sqrt()),
            "previous_mean": c0 * x0 + ct * x,
        }
        out = values[process.target]
        if process.variance == "learned_range":
            return torch.cat([out, torch.full_like(out, 2 * FRACTION - 1)], dim=1)
        if process.variance == "learned":
            low = torch.from_numpy(self.chain.posterior_log_variance_clipped)[k].exp().reshape(-1, 1, 1, 1)
            return torch.cat([out, (low + c0**2 * found.variance).log()], dim=1)
        return out


class Unsaid:
    """A denoiser whose predictions say nothing of the variance."""

    def __init__(self, denoiser: ChainDenoiser) -> None:
        self.denoiser, self.chain = denoiser, denoiser.chain

    @property
    def conditions(self) -> frozenset[str]:
        return self.denoiser.conditions

    def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        return replace(self.denoiser(x, level, cond), variance=None)


def process_of(cell: Cell) -> ProcessConfig:
    """ValueError where there is no such process."""
    variance = "fixed_small" if cell.variance == "none" else cell.variance
    return ProcessConfig(
        preconditioning=cell.preconditioning, schedule="linear", steps=40, target=cell.kind, variance=variance
    )


def _loss(x0: Tensor) -> Tensor:
    return ((x0 - TARGET) ** 2).flatten(1).sum(1)


def guided(cell: Cell) -> Denoiser:
    """The cell's denoiser as the project makes it."""
    process = process_of(cell)

    def model(conditional: bool = False, wider: float = 1.0) -> Any:
        made = ChainDenoiser(Perfect(process, conditional, wider), process, clip="none")
        return Unsaid(made) if cell.variance == "none" else made

    if cell.guidance == "none":
        return model()  # type: ignore[no-any-return]
    if cell.guidance == "cfg":
        return ClassifierFree(model(True), SCALE, {"y": NULL})
    if cell.guidance == "autoguidance":
        return Autoguidance(model(), model(wider=WEAK), SCALE)
    if cell.guidance == "loss":
        return LossGuidance(model(), _loss)
    at = {"classifier": "x_t", "classifier at the mean": "mean", "classifier at x0": "x0"}[cell.guidance]
    return ClassifierGuidance(model(), class_gradient, 1.0, at)


def pull(x: Tensor, level: Level, guidance: str) -> Tensor:
    """The gradient that moves the score, of guidance at x0 by Tweedie: d x0 / d x = alpha Var(x0 | x) / sigma^2."""
    if guidance == "classifier":
        return class_gradient(x, level, CLASSES)
    found = exact(x, level)
    slope = expand(level.alpha / level.sigma**2, x) * found.variance
    if guidance == "classifier at x0":
        return slope * class_gradient(found.mean, Level.clean(), CLASSES)
    return slope * -2 * (found.mean - TARGET)


class ByHand:
    """The guided denoiser in closed form, for solvers of the score."""

    conditions = frozenset({"y"})

    def __init__(self, chain: DiscreteSchedule, guidance: str) -> None:
        self.chain, self.guidance = chain, guidance

    def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        x0, eps = moments(x, level, self.guidance)
        if self.guidance in ("classifier", "classifier at x0", "loss"):
            g = pull(x, level, self.guidance)
            factor = torch.where(level.alpha > 0, level.sigma**2 / level.alpha.clamp(min=1e-300), 0.0)
            x0, eps = x0 + expand(factor, x) * g, eps - expand(level.sigma, x) * g
        return Prediction(x, level, "x0", x0, noise=eps)


def moments(x: Tensor, level: Level, guidance: str) -> tuple[Tensor, Tensor]:
    """Denoised image and noise; of comparisons as extrapolated."""
    main = exact(x, level, CLASSES if guidance == "cfg" else None)
    if guidance not in ("cfg", "autoguidance"):
        return main.mean, main.eps
    other = exact(x, level, wider=WEAK if guidance == "autoguidance" else 1.0)
    return tuple(b + SCALE * (a - b) for a, b in ((main.mean, other.mean), (main.eps, other.eps)))  # type: ignore[return-value]


def ancestral_by_hand(path: NoisePath, cell: Cell) -> Tensor:
    """Ancestral sampling from the formulas."""
    noise = Noise64(0, IMAGES)
    x = noise.normal(SHAPE, step=0, purpose="x_T")
    for index in range(path.steps):
        step = path.transition(path.steps - 1 - index)
        low, high, last = float(step.log_posterior_variance), float(step.log_beta), bool(step.last)
        x0, _ = moments(x, step.source, cell.guidance)
        mean = float(step.coef_x0) * x0 + float(step.coef_xt) * x
        spread: Any = {
            "fixed_large": math.exp(low if last else high),
            "learned_range": math.exp(FRACTION * high + (1 - FRACTION) * low),
        }.get(cell.variance, math.exp(low))
        if cell.variance == "learned":
            if bool(step.adjacent):  # the network's own number, whose bound is that of the whole chain
                low = float(_chain(cell.preconditioning).posterior_log_variance_clipped[int(step.source_index)])
            own = exact(x, step.source, CLASSES if cell.guidance == "cfg" else None)
            spread = math.exp(low) + float(step.coef_x0) ** 2 * own.variance
        shift = 0.0 if last and cell.variance in ("fixed_small", "none") else spread
        if cell.guidance == "classifier at the mean":
            mean = mean + shift * class_gradient(mean, step.target, CLASSES)
        elif cell.guidance in ("classifier", "classifier at x0", "loss"):
            mean = mean + shift * pull(x, step.source, cell.guidance)
        x = mean + (0.0 if last else spread**0.5) * noise.normal(SHAPE, step=index)
    return x


def path_of(cell: Cell, chain: DiscreteSchedule) -> NoisePath:
    """Few steps; PNDM's Runge-Kutta steps need more than four."""
    return grid(chain, "5" if cell.solver == "pndm" else "3", PLACES[cell.place])


@cache
def _chain(preconditioning: str) -> DiscreteSchedule:
    target = {"edm": "edm", "flow": "velocity"}.get(preconditioning, "eps")
    return ProcessConfig(preconditioning=preconditioning, steps=40, target=target, variance="fixed_small").chain()


@cache
def _expected(cell: Cell) -> Tensor:
    chain = _chain(cell.preconditioning)
    path = path_of(cell, chain)
    if cell.solver == "ddpm":
        return ancestral_by_hand(path, cell)
    return generate(ByHand(chain, cell.guidance), path, solver_of(cell), Noise64(0, IMAGES), SHAPE)


def expected(cell: Cell) -> Tensor:
    """The images by exact formulas, which do not depend on the kind of prediction, nor mostly on the variance."""
    variance = cell.variance if cell.solver == "ddpm" else "none"
    return _expected(replace(cell, kind="x0", variance=variance))


def solver_of(cell: Cell) -> Solver:
    return build_solver(cell.solver, **OPTIONS.get(cell.solver, {}))


def outcome(cell: Cell) -> str:
    """Empty where the cell runs and gives what it should, else the message with which it is refused. AssertionError
    where it gives something else."""
    try:
        denoiser = guided(cell)
        path = path_of(cell, denoiser.chain)
        told = {"y": CLASSES} if cell.guidance not in ("none", "autoguidance", "loss") else None
        x = generate(denoiser, path, solver_of(cell), Noise64(0, IMAGES), SHAPE, cond=told)
    except ValueError as error:
        return str(error)
    torch.testing.assert_close(x, expected(cell), rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text: f"{cell}: {text}")
    return ""


Reason = Callable[[Cell], "str | None"]


def page(every: list[Cell], reason: Reason) -> str:
    """docs/compatibility.md: tables of what runs, and the reasons for what is refused, by number."""
    reasons = list(dict.fromkeys(why for cell in every if (why := reason(cell)) is not None))
    number = {why: str(k + 1) for k, why in enumerate(reasons)}
    runs = sum(reason(cell) is None for cell in every)
    out = [
        "# What goes with what",
        "",
        "Generated by `python benchmarks/compatibility.py --write docs` and held to by "
        f"`tests/solvers/test_compatibility.py`: {len(every):,}",
        f"combinations of prediction, variance, solver, guidance and path, of which {runs:,} run and agree with exact "
        "formulas to",
        f"{TOLERANCE:g} on a mixture of Gaussians, and {len(every) - runs:,} are refused with a message. *Trained* is "
        "a path over trained steps (grid",
        "`chain`), *between* one through levels between them (`logsnr` and all other grids).",
        "",
        "## Networks: prediction and variance of a preconditioning",
        "",
        "\"none\" is a denoiser of one's own whose predictions say nothing of the variance; the posterior's is used.",
        "",
        f"| preconditioning | prediction | {' | '.join((*VARIANCES, 'none'))} |",
        "|---|---|" + "---|" * (len(VARIANCES) + 1),
    ]
    by_process: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in every:
        by_process.setdefault((cell.preconditioning, cell.kind, cell.variance), []).append(cell)
    for preconditioning, kind in itertools.product(PRECONDITIONINGS, KINDS):
        found = [
            _summary(by_process[preconditioning, kind, variance], reason, number) for variance in (*VARIANCES, "none")
        ]
        out.append(f"| {preconditioning} | {kind} | {' | '.join(found)} |")
    common = [
        cell
        for cell in every
        if cell.preconditioning == "chain" and cell.kind == "eps" and cell.variance == "fixed_small"
    ]
    special = (
        ("every network but those below", common),
        ("a network that predicts the `previous_mean`", [replace(cell, kind="previous_mean") for cell in common]),
        ("a network with a `learned` variance", [replace(cell, variance="learned") for cell in common]),
    )
    for title, some in special:
        out += ["", f"## Solvers and guidance: {title}", ""]
        out += [f"| solver | {' | '.join(GUIDANCE)} |", "|---|" + "---|" * len(GUIDANCE)]
        for solver in SOLVERS:
            here = [[c for c in some if c.solver == solver and c.guidance == g] for g in GUIDANCE]
            out.append(f"| `{solver}` | {' | '.join(_summary(c, reason, number) for c in here)} |")
    out += ["", "## Reasons", ""]
    out += [f"{k}. ... {why} ..." for why, k in number.items()]
    return "\n".join(out) + "\n"


def _summary(some: list[Cell], reason: Reason, number: Mapping[str, str]) -> str:
    """What a table says of some cells: "runs", "refused: 3", "trained only: 4"; of a whole network "runs, but: 4"."""
    places = {place: {reason(c) for c in some if c.place == place} for place in PLACES}
    whys = sorted({number[w] for found in places.values() for w in found if w is not None}, key=int)
    if not whys:
        return "runs"
    if not any(None in found for found in places.values()):
        return f"refused: {', '.join(whys)}"
    if places["trained"] == {None} and None not in places["between"]:
        return f"trained only: {', '.join(whys)}"
    return f"runs, but: {', '.join(whys)}"
