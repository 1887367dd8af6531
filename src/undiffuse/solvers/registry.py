"""Registry of the solvers: description, options, cost and class of each. It does not import torch.

The command line, sweeps and the compatibility tests use it; `build_solver` creates a solver by its name. To add a
solver to the package, write a file in this folder with a class that follows `undiffuse.solvers.Solver`, and add an
entry to `SOLVERS`. Other packages call `register_solver`, or list their classes in the entry point group
"undiffuse.solvers".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from undiffuse.solvers.base import Solver

Value = float | int | str
Given = Mapping[str, Value]


class Option(NamedTuple):
    """Describes an option of a solver.

    Attributes:
        default: Default value, which determines the type: int, float, or one of `words`.
        line: One-line description.
        low: Smallest number.
        high: Largest number.
        words: Allowed words.
    """

    default: Value
    line: str
    low: float = 0.0
    high: float = math.inf
    words: tuple[str, ...] = ()

    def read(self, text: str, name: str) -> Value:
        """Parses a value; raises ValueError, with `name` for the option, if it is invalid."""
        if isinstance(self.default, str):
            if text not in self.words:
                raise ValueError(f"{name}={text}: expected {' or '.join(self.words)}")
            return text
        kind = "whole number" if isinstance(self.default, int) else "number"
        try:
            value: float | int = int(text) if isinstance(self.default, int) else float(text)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high or (math.isinf(value) and value != self.default):
            reach = f"from {self.low:g}" + (f" to {self.high:g}" if math.isfinite(self.high) else "")
            raise ValueError(f"{name}={text}: expected a {kind} {reach}")
        return value


class SolverInfo(NamedTuple):
    """Describes a solver.

    Attributes:
        line: One-line description.
        kind: "ode" (probability flow), "sde" (draws noise) or "consistency".
        order: Order of convergence, certified by tests: strong for "ode", weak for "sde".
        steps: Default number of steps.
        grid: Default grid of noise levels, see `undiffuse.grid_specs`.
        options: Options by name.
        nfe: (steps, options) -> network calls per image; None if only a run can tell.
        solver: The class, or its location "package.module:Class".
        fixed: Arguments of the class that define this solver.
    """

    line: str
    kind: str
    order: int
    steps: int
    grid: str
    options: Mapping[str, Option] = {}
    nfe: Callable[[int, Given], int | None] = lambda steps, given: steps
    solver: str | Callable[..., Any] = ""
    fixed: Mapping[str, Value] = {}

    def load(self) -> Callable[..., Any]:
        """Returns the class, and imports it if necessary."""
        if not isinstance(self.solver, str):
            return self.solver
        import importlib

        module, _, name = self.solver.partition(":")
        made: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return made

    def settings(self, given: Given | None = None) -> dict[str, Value]:
        """Returns all options, with defaults for those not given; raises ValueError for unknown options."""
        unknown = [name for name in given or {} if name not in self.options]
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"this solver has no option {unknown[0]!r}; its options are: {known}")
        return {name: option.default for name, option in self.options.items()} | dict(given or {})


_CHURN = {
    "churn": Option(default=0.0, line="total noise added and removed again (EDM's S_churn; 0: none)"),
    "s_min": Option(default=0.0, line="smallest sigma / alpha with churn (EDM's S_tmin)"),
    "s_max": Option(default=math.inf, line="largest sigma / alpha with churn (EDM's S_tmax)"),
    "s_noise": Option(default=1.0, line="noise multiplier (EDM's S_noise)", high=2.0),
}
_SDE = {"eta": Option(default=1.0, line="noise: 0 is the ODE, 1 the reverse diffusion, or more")}
_ORDER = {"order": Option(default=3, line="order of the method", low=1, high=3)}
_RESTART = {
    "restarts": Option(default=2, line="number of restarts"),
    "inner": Option(default=4, line="steps per restart", low=1),
    "s_min": Option(default=0.06, line="lower end of the restart interval in sigma / alpha", low=1e-6),
    "s_max": Option(default=0.3, line="upper end of the restart interval in sigma / alpha", low=1e-6),
}
_LANGEVIN = {
    "correctors": Option(default=1, line="Langevin steps per level", low=1),
    "rate": Option(default=0.5, line="Langevin time per unit of log(alpha / sigma), in units of sigma^2"),
}
_CONSISTENCY = {"s_min": Option(default=0.002, line="sigma / alpha at which the model returns its input")}
_DPM2 = {"last": Option(default="euler", line="step onto the clean image", words=("euler", "midpoint"))}
_BOSH3 = {
    "tol": Option(
        default=0.02, line="error tolerance per step, absolute and relative, for pixels in [-1, 1]", low=1e-12
    )
}
_UNIPC = {
    "order": Option(default=3, line="order of the predictor", low=1, high=3),
    "variant": Option(default="bh2", line="B(h): h (bh1) or exp(h) - 1 (bh2)", words=("bh1", "bh2")),
}
_PNDM = {
    "warmup": Option(
        default="rk", line="first three steps: Runge-Kutta (rk) or lower order (plms)", words=("rk", "plms")
    )
}


def _pndm_nfe(steps: int, given: Given) -> int:
    return steps + 9 if given["warmup"] == "rk" and steps > 4 else steps


def _third(steps: int, given: Given) -> int:
    """Returns the calls of a third-order method: its first step makes two calls, unless it is the only one."""
    return steps + (given.get("order", 3) == 3 and steps > 1)


def _restart_nfe(steps: int, given: Given) -> int:
    """Returns the calls of `restart`; a path of one step has no level to restart from."""
    return 2 * steps - 1 + (int(given["restarts"]) * 2 * int(given["inner"]) if steps > 1 else 0)


SOLVERS: dict[str, SolverInfo] = {
    "ddpm": SolverInfo(
        line="DDPM sampling: the learned reverse step, with noise", kind="sde", order=1, steps=100, grid="chain",
        solver="undiffuse.solvers.ddpm:DDPM",
    ),
    "ddim": SolverInfo(
        line="first order, deterministic; eta adds noise", kind="ode", order=1, steps=50, grid="chain",
        solver="undiffuse.solvers.ddim:DDIM",
    ),
    "euler": SolverInfo(
        line="Euler's method in EDM's form, with churn", kind="ode", order=1, steps=50, grid="karras", options=_CHURN,
        solver="undiffuse.solvers.edm:EDM", fixed={"order": 1},
    ),
    "heun": SolverInfo(
        line="Heun's method (EDM): two calls per step, with churn", kind="ode", order=2, steps=18, grid="karras",
        options=_CHURN, nfe=lambda steps, given: 2 * steps - 1, solver="undiffuse.solvers.edm:EDM", fixed={"order": 2},
    ),
    "dpmpp-2s": SolverInfo(
        line="DPM-Solver++(2S): second order, two calls per step", kind="ode", order=2, steps=10, grid="logsnr",
        nfe=lambda steps, given: 2 * steps - 1, solver="undiffuse.solvers.dpmpp:DPMpp2S",
    ),
    "dpmpp-2m": SolverInfo(
        line="DPM-Solver++(2M): second order, one call per step", kind="ode", order=2, steps=20, grid="logsnr",
        solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 2},
    ),
    "dpmpp-3m": SolverInfo(
        line="DPM-Solver++(3M): third order, one call per step", kind="ode", order=3, steps=20, grid="logsnr",
        nfe=_third, solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 3},
    ),
    "dpmpp-2m-sde": SolverInfo(
        line="SDE variant of 2M, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE,
        solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 2},
    ),
    "dpmpp-3m-sde": SolverInfo(
        line="SDE variant of 3M, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE,
        solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 3},
    ),
    "unipc": SolverInfo(
        line="UniPC: predictor and corrector share their calls", kind="ode", order=3, steps=12, grid="logsnr",
        options=_UNIPC, solver="undiffuse.solvers.unipc:UniPC",
    ),
    "deis": SolverInfo(
        line="DEIS (rho-AB): Adams-Bashforth in sigma / alpha", kind="ode", order=3, steps=20, grid="karras",
        options=_ORDER, nfe=_third, solver="undiffuse.solvers.adams:AdamsBashforth", fixed={"variable": "ratio"},
    ),
    "ab3": SolverInfo(
        line="Adams-Bashforth in log-SNR", kind="ode", order=3, steps=20, grid="logsnr", options=_ORDER, nfe=_third,
        solver="undiffuse.solvers.adams:AdamsBashforth", fixed={"variable": "logsnr"},
    ),
    "pndm": SolverInfo(
        line="pseudo linear multistep (PLMS), for uniform steps", kind="ode", order=2, steps=25, grid="uniform",
        options=_PNDM, nfe=_pndm_nfe, solver="undiffuse.solvers.pndm:PNDM",
    ),
    "restart": SolverInfo(
        line="Heun's method, repeating an interval with new noise", kind="sde", order=2, steps=12, grid="karras",
        options=_RESTART, nfe=_restart_nfe, solver="undiffuse.solvers.restart:Restart",
    ),
    "bosh3": SolverInfo(
        line="third order, step sizes from an error tolerance", kind="ode", order=3, steps=4, grid="logsnr",
        options=_BOSH3, nfe=lambda steps, given: None, solver="undiffuse.solvers.bosh3:Bosh3",
    ),
    "langevin-pc": SolverInfo(
        line="DDIM predictor, Langevin corrector", kind="sde", order=1, steps=25, grid="logsnr", options=_LANGEVIN,
        nfe=lambda steps, given: steps + (steps - 1) * int(given["correctors"]),
        solver="undiffuse.solvers.langevin:LangevinPC",
    ),
    "dpm-2": SolverInfo(
        line="DPM-Solver-2: midpoint in sigma, two calls per step", kind="ode", order=2, steps=10, grid="karras",
        options=_DPM2, nfe=lambda steps, given: 2 * steps - (given["last"] == "euler"),
        solver="undiffuse.solvers.dpm:DPM2",
    ),
    "consistency": SolverInfo(
        line="for consistency models: denoise, add noise, repeat", kind="consistency", order=0, steps=2,
        grid="trailing", options=_CONSISTENCY, solver="undiffuse.solvers.consistency:Consistency",
    ),
}  # fmt: skip
"""Solvers by name."""

FORMER_NAMES: dict[str, str] = {
    "ancestral": "ddpm",
    "adaptive": "bosh3",
    "adams": "ab3",
    "pc": "langevin-pc",
}
"""Former names of solvers, which older files contain, with the current ones."""

GROUP = "undiffuse.solvers"
"""Entry point group for solvers of other packages."""


def solver_info(name: str) -> SolverInfo:
    """Returns the description of a solver, which may be an entry point of another package.

    Raises:
        ValueError: There is no solver with this name; the message lists the existing ones.
    """
    if name in SOLVERS:
        return SOLVERS[name]
    if name in FORMER_NAMES:
        raise ValueError(f"unknown solver {name!r}: it is now called {FORMER_NAMES[name]!r}")
    found = _from_entry_point(name)
    if found is None:
        raise ValueError(f"unknown solver {name!r}; choose one of {', '.join(SOLVERS)}")
    return found


def register_solver(name: str, cls: str | Callable[..., Any], info: SolverInfo | None = None) -> SolverInfo:
    """Registers a solver for `build_solver`, `SOLVERS` and the command line.

    Args:
        name: Its name, in lower case without spaces or commas.
        cls: The class (or a callable that returns a solver), or its location "package.module:Class". It is called with
            the options of `info`, and with `clip_after_guidance` if it has such a parameter.
        info: Its options, order, and default steps and grid; default: no options, 50 steps, order 1.

    Returns:
        The entry as registered.

    Raises:
        ValueError: The name is invalid, or belongs to another solver.
    """
    if not name or name != name.strip().lower() or any(c in name for c in " ,:="):
        raise ValueError(f"a solver's name must be lower case, without spaces, commas, colons and '='; got {name!r}")
    if info is None:
        line = (getattr(cls, "__doc__", None) or name).strip().splitlines()[0]
        info = SolverInfo(line=line[:55], kind="ode", order=1, steps=50, grid="logsnr")
    info = info._replace(solver=cls)
    if name in FORMER_NAMES or SOLVERS.get(name, info) != info:
        raise ValueError(f"the name {name!r} belongs to another solver: choose another name")
    SOLVERS[name] = info
    return info


def build_solver(name: str, clip_after_guidance: bool = False, **options: Value) -> Solver:
    """Builds a solver.

    Args:
        name: One of `SOLVERS`, or a solver that a package provides as an entry point.
        clip_after_guidance: Clip the denoised image again after guidance has moved it. Solvers without such a parameter
            ("ddpm") ignore it.
        **options: Options of the solver (`SOLVERS[name].options`); "ddim" also accepts `eta`.

    Returns:
        The solver.

    Raises:
        ValueError: The name or an option is unknown, or a value is out of range.
    """
    import inspect

    eta = {"eta": options.pop("eta", 0.0)} if name == "ddim" else {}
    info = solver_info(name)
    settings: dict[str, Any] = {**info.fixed, **eta, **info.settings(options)}
    make = info.load()
    takes = inspect.signature(make).parameters.values()
    if any(p.name == "clip_after_guidance" or p.kind is p.VAR_KEYWORD for p in takes):
        settings["clip_after_guidance"] = clip_after_guidance
    solver: Solver = make(**settings)
    return solver


def current_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of a picture with former names of solvers and settings replaced by the current ones."""
    current = {"clip_after_guidance" if key == "reclip" else key: value for key, value in record.items()}
    if isinstance(current.get("solver"), str):
        current["solver"] = FORMER_NAMES.get(current["solver"], current["solver"])
    return current


def _from_entry_point(name: str) -> SolverInfo | None:
    """Registers the solver that an installed package provides under this name; returns None if there is none.

    The entry point refers to a class, or to a pair (class, SolverInfo).
    """
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        if point.name == name:
            found = point.load()
            cls, info = found if isinstance(found, tuple) else (found, None)
            return register_solver(name, cls, info)
    return None


def read_options(name: str, text: str) -> dict[str, Value]:
    """Parses the options of a solver from "churn=30,s_min=0.05".

    Args:
        name: Name of the solver.
        text: Options as key=value, separated by commas.

    Raises:
        ValueError: The solver, an option or a value is invalid.
    """
    found: dict[str, Value] = {}
    options = solver_info(name).options
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in options:
            known = ", ".join(options) or "none"
            raise ValueError(f"{name} has no option {key!r} (it has: {known}); options are given as key=value")
        found[key] = options[key].read(value, f"{name}: {key}")
    return found


def write_options(name: str, given: Given) -> str:
    """Returns the text for `read_options`, without options that have their default."""
    options = solver_info(name).options
    return ",".join(f"{key}={given[key]}" for key in options if key in given and given[key] != options[key].default)
