"""Which solver and how many steps a model is sampled with when nothing else is said. The one place that decides it."""

from __future__ import annotations

from typing import NamedTuple

from undiffuse.denoiser import ProcessConfig
from undiffuse.noise_levels import ddim_spec
from undiffuse.solvers.registry import solver_info

__all__ = ["DefaultSampling", "default_sampling", "default_steps"]


class DefaultSampling(NamedTuple):
    """A solver, its steps and its grid, as `solvers.build_solver` and `grids.grid` take them."""

    solver: str
    steps: str
    grid: str


def default_sampling(process: ProcessConfig, count: int | None = None, eta: float = 0.0) -> DefaultSampling:
    """Returns the solver, steps and grid that suit a process.

    A learned variance lets ancestral sampling do with about 100 steps (Improved DDPM, section 4); a model with a fixed
    one is better served by DDIM. With few steps, second-order solvers are far better than either: DPM-Solver++(2M),
    with noise (SDE) where the variance is learned.

    Args:
        process: The process of the model.
        count: Steps to make do with, at least 1; None leaves the number to the solver.
        eta: Noise of DDIM; a positive value chooses DDIM.
    """
    if count is None or eta > 0:
        solver = "ddpm" if process.learns_variance and not eta else "ddim"
        return DefaultSampling(solver, default_steps(solver, process, count=count), "chain")
    solver = "dpmpp-2m-sde" if process.learns_variance else "dpmpp-2m"
    return DefaultSampling(solver, str(min(count, process.steps)), solver_info(solver).grid)


def default_steps(solver: str, process: ProcessConfig, grid: str | None = None, count: int | None = None) -> str:
    """Returns the steps of a solver as text: its default number, at most the whole chain.

    DDIM takes the original's spacing where there is one; a grid of explicit levels has as many steps as levels.

    Args:
        solver: Name of the solver.
        process: The process of the model.
        grid: The grid, None for the solver's own.
        count: Another number of steps than the solver's default.
    """
    if grid and grid.replace(" ", "").startswith("at:"):
        return str(grid.count(",") + 1)
    count = min(count or solver_info(solver).steps, process.steps)
    early = solver == "ddim" and grid in (None, "chain") and not process.needs_last_level
    return (ddim_spec(process.steps, count) if early else "") or str(count)
