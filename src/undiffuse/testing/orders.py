"""Errors and orders of solvers on problems with known answers, without Monte-Carlo noise.

*Strong*, for solvers of the probability flow: the distance of images from those of a Runge-Kutta solution so fine that
its error does not count, on a Gaussian mixture. *Weak*, for solvers that draw noise: on a Gaussian the denoiser is
affine, so an image is affine in its first noise and in every later draw. Running the scheme on basis vectors, one draw
each, gives these weights, and with them the exact mean and variance of what the scheme makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.grids import Grid
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.sampling import generate, sample
from undiffuse.solvers import Solver, build_solver
from undiffuse.solvers.registry import SOLVERS
from undiffuse.testing.oracles import Mixture, OracleDenoiser

Make = Callable[[int], Solver]  # the solver for a number of steps
Case = tuple[str, dict[str, Any]]
Point = tuple[float, float]  # steps (or calls), error

LINEAR = named_schedule("linear", 1000)
MIXTURE = Mixture.scalar([0.4, 0.6], [-0.6, 0.5], [0.35, 0.3])
GAUSSIAN = Mixture.scalar([1.0], [0.4], [0.3])
FIRST, LAST = -4.0, 5.0  # log-SNR: where these problems are smooth, so that few steps already show the order
START = torch.linspace(-2.5, 2.5, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)


def smooth_grid(steps: int, chain_time: bool = False) -> Grid:
    """Levels from `FIRST` to `LAST`: uneven, but smoothly so, in log-SNR; or even in a time as PNDM wants."""
    u = np.linspace(0, 1, steps + 1)
    if chain_time:  # the time in which sigma / alpha is sinh(t): neither even in it nor in its logarithm
        ends = np.arcsinh(np.exp([-FIRST / 2, -LAST / 2]))
        logsnr = -2 * np.log(np.sinh(ends[0] + u * (ends[1] - ends[0])))
    else:
        logsnr = FIRST + (LAST - FIRST) * (u + 0.1 * np.sin(math.pi * u))
    level = Level.from_logsnr(logsnr)
    return Grid(level.alpha.numpy(), level.sigma.numpy())


@cache
def flow(steps: int = 300) -> Tensor:
    """Where the probability flow carries `START` from `FIRST` to `LAST`, by the classical Runge-Kutta method."""

    def slope(x: Tensor, logsnr: float) -> Tensor:
        level = Level.from_logsnr(logsnr)
        return (MIXTURE.denoised(x * level.alpha, level.alpha, level.sigma) - x) / 2

    x, h = START / Level.from_logsnr(FIRST).alpha, (LAST - FIRST) / steps
    for k in range(steps):
        at = FIRST + k * h
        a = slope(x, at)
        b = slope(x + h / 2 * a, at + h / 2)
        c = slope(x + h / 2 * b, at + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, at + h))
    return x * Level.from_logsnr(LAST).alpha


class Draws:
    """No noise, except in row 2 + i a one in draw i: draw `number` of step `step` is draw steps * number + step."""

    def __init__(self, rows: int, steps: int) -> None:
        self.rows, self.steps = rows, steps

    def __len__(self) -> int:
        return self.rows

    def normal(self, shape: Sequence[int], step: int = 0, purpose: str = "step", device: Any = "cpu") -> Tensor:
        number = int(purpose.partition("+")[2] or 0)
        out = torch.zeros(self.rows, *shape, dtype=torch.float64)
        out[2 + self.steps * number + step] = 1
        return out


def strong_error(solver: Solver, path: Grid) -> Point:
    """(calls, mean distance from the flow) after the path of a solver that draws nothing."""
    denoiser = OracleDenoiser(MIXTURE, LINEAR)
    *_, last = sample(denoiser, path, solver, Draws(len(START), path.steps), (1, 1, 1), x_T=START)
    return last.nfe, (last.x - flow()).abs().mean().item()


def weak_error(solver: Solver, path: Grid, draws: int = 2, variance: str = "fixed_small") -> float:
    """Distance of (mean, variance) at the end from the Gaussian's own there, from its own at the start."""
    rows = 2 + draws * path.steps
    x_T = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
    x_T[1] = 1
    denoiser = OracleDenoiser(GAUSSIAN, LINEAR, variance)
    x = generate(denoiser, path, solver, Draws(rows, path.steps), (1, 1, 1), x_T=x_T).flatten()
    (mean, var), (end_mean, end_var) = (
        exact_moments(path.level(path.steps - 1)),
        exact_moments(path.transition(0).target),
    )
    weights = x[1:] - x[0]
    got = x[0] + weights[0] * mean, weights[0] ** 2 * var + (weights[1:] ** 2).sum()
    return math.hypot(float(got[0] - end_mean), float(got[1] - end_var))


def exact_moments(level: Level) -> tuple[Tensor, Tensor]:
    """Mean and variance of the Gaussian at a level."""
    return level.alpha * GAUSSIAN.means[0], level.alpha**2 * GAUSSIAN.variances[0] + level.sigma**2


def slope(points: Sequence[Point]) -> float:
    """The order: minus the least-squares slope of log error against log steps."""
    logs = np.log(np.array(points))
    return -float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def strong_order(make: Make, steps: Sequence[int] = (32, 48, 72), chain_time: bool = False) -> float:
    """Order of a solver of the flow in the number of steps."""
    return slope([(n, strong_error(make(n), smooth_grid(n, chain_time))[1]) for n in steps])


def weak_order(make: Make, steps: Sequence[int] = (32, 48, 72), variance: str = "fixed_small") -> float:
    """Order of a solver with noise, of the mean and variance that it makes."""
    return slope([(n, weak_error(make(n), smooth_grid(n), variance=variance)) for n in steps])


def tolerance_order(make: Callable[[float], Solver], tolerances: Sequence[float] = (1e-4, 1e-5, 1e-6, 1e-7)) -> float:
    """Order of an adaptive solver: of the error in the number of calls, as the tolerance shrinks."""
    return slope([strong_error(make(tol), smooth_grid(1)) for tol in tolerances])


def of(name: str, **options: Any) -> Make:
    """The same solver whatever the number of steps."""
    return lambda steps: build_solver(name, **options)


def convergence_order(
    solver: str | Solver | Make, kind: str | None = None, steps: Sequence[int] = (32, 48, 72)
) -> float:
    """Measures the order at which a solver converges: p where errors shrink as 1 / steps^p.

    Args:
        solver: A solver, the name of a registered one, or a function from a number of steps to a solver. A solver that
            chooses its own steps by a tolerance needs `tolerance_order` instead.
        kind: "ode" for a solver of the probability flow, which draws no noise: strong order on a Gaussian mixture.
            "sde" for a solver that draws noise: weak order, of mean and variance on a Gaussian. By default the kind
            that the registry gives for the solver's name, or "ode".
        steps: Numbers of steps to measure at, at least two; the path covers log-SNR -4 to 5.

    Returns:
        The order: minus the slope of log error against log steps, by least squares.

    Raises:
        ValueError: If the kind is neither "ode" nor "sde", or fewer than two numbers of steps are given.
    """
    name = solver if isinstance(solver, str) else getattr(solver, "name", None)
    if kind is None:
        kind = SOLVERS[name].kind if isinstance(name, str) and name in SOLVERS else "ode"
    if kind not in ("ode", "sde"):
        raise ValueError(f"the kind of a solver is 'ode' or 'sde'; got {kind!r}")
    if len(set(steps)) < 2:
        raise ValueError(f"an order needs errors at two or more numbers of steps; got {list(steps)}")

    def make(count: int) -> Any:
        if isinstance(solver, str):
            return build_solver(solver)
        return solver if hasattr(solver, "step") else solver(count)

    return strong_order(make, steps) if kind == "ode" else weak_order(make, steps)
