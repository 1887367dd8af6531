"""The registry of solvers: what each one is, its options, its cost and where its class is. Imports no torch.

The command line, sweeps and the compatibility tests read this table; `build_solver` makes a solver from a name. To add
a solver to the package, write a file in this folder with a class that follows `undiffuse.solvers.Solver`, and add one
entry to `SOLVERS`. Other packages call `register_solver`, or name their classes in the entry point group
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
    """A setting of a method. `default` tells its type (int, float, or one of `words`); numbers lie in [low, high]."""

    default: Value
    line: str
    low: float = 0.0
    high: float = math.inf
    words: tuple[str, ...] = ()

    def read(self, text: str, name: str) -> Value:
        """The value that `text` says. ValueError for what it cannot be."""
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
    """The description of a solver.

    Attributes:
        line: What it is, in one line.
        kind: "ode" for a solver of the probability flow, "sde" for one that draws noise.
        order: Order of convergence, as the tests certify it: strong for "ode", weak for "sde".
        steps: Default number of steps.
        grid: Default grid of noise levels, see `undiffuse.grid_specs`.
        options: Its options by name.
        nfe: (steps, options) -> network evaluations an image; None where only a run can tell.
        solver: The class, or where it is: "package.module:Class".
        fixed: Arguments of the class that make it this solver.
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
        """Returns the class, imported if it was given by its place."""
        if not isinstance(self.solver, str):
            return self.solver
        import importlib

        module, _, name = self.solver.partition(":")
        made: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return made

    def settings(self, given: Given | None = None) -> dict[str, Value]:
        """All options, those not given by default. ValueError for options that the method does not have."""
        unknown = [name for name in given or {} if name not in self.options]
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"there is no option {unknown[0]!r} of this solver; its options are {known}")
        return {name: option.default for name, option in self.options.items()} | dict(given or {})


_CHURN = {
    "churn": Option(default=0.0, line="noise added and removed again, over all steps (EDM's S_churn; 0: none)"),
    "s_min": Option(default=0.0, line="only above this sigma / alpha"),
    "s_max": Option(default=math.inf, line="only below this sigma / alpha"),
    "s_noise": Option(default=1.0, line="the added noise is this times as strong", high=2.0),
}
_SDE = {"eta": Option(default=1.0, line="its noise, from 0 (the ODE) to 1 (the reverse diffusion) and beyond")}
_ORDER = {"order": Option(default=3, line="points the polynomial goes through", low=1, high=3)}
_RESTART = {
    "restarts": Option(default=2, line="how often the stretch is gone up and down again"),
    "inner": Option(default=4, line="steps of a stretch", low=1),
    "s_min": Option(default=0.06, line="where it begins, in sigma / alpha", low=1e-6),
    "s_max": Option(default=0.3, line="and to where noise is added", low=1e-6),
}
_LANGEVIN = {
    "correctors": Option(default=1, line="Langevin steps after each step", low=1),
    "rate": Option(default=0.5, line="Langevin time a unit of log(alpha / sigma), times sigma^2"),
}
_CONSISTENCY = {"s_min": Option(default=0.002, line="sigma / alpha at which the model returns its input")}
_DPM2 = {"last": Option(default="euler", line="onto the clean image", words=("euler", "midpoint"))}
_BOSH3 = {"tol": Option(default=0.02, line="error a step, absolute and relative, of pixels in [-1, 1]", low=1e-12)}
_UNIPC = {
    "order": Option(default=3, line="its p", low=1, high=3),
    "variant": Option(default="bh2", line="B(h): h (bh1) or exp(h) - 1 (bh2)", words=("bh1", "bh2")),
}
_PNDM = {"warmup": Option(default="rk", line="first three steps: Runge-Kutta or few points", words=("rk", "plms"))}


def _pndm_nfe(steps: int, given: Given) -> int:
    return steps + 9 if given["warmup"] == "rk" and steps > 4 else steps


def _third(steps: int, given: Given) -> int:
    """Third order needs a second-order first step, of two calls; the only step of one is the last one."""
    return steps + (given.get("order", 3) == 3 and steps > 1)


def _restart_nfe(steps: int, given: Given) -> int:
    """A path of one step has no level below the noisiest, from which to restart."""
    return 2 * steps - 1 + (int(given["restarts"]) * 2 * int(given["inner"]) if steps > 1 else 0)


SOLVERS: dict[str, SolverInfo] = {
    "ddpm": SolverInfo(
        line="the learned reverse step, with noise (DDPM)", kind="sde", order=1, steps=100, grid="chain",
        solver="undiffuse.solvers.ddpm:DDPM",
    ),
    "ddim": SolverInfo(
        line="first order, deterministic; --eta adds noise", kind="ode", order=1, steps=50, grid="chain",
        solver="undiffuse.solvers.ddim:DDIM",
    ),
    "euler": SolverInfo(
        line="DDIM in EDM's form, with churn", kind="ode", order=1, steps=50, grid="karras", options=_CHURN,
        solver="undiffuse.solvers.edm:EDM", fixed={"order": 1},
    ),
    "heun": SolverInfo(
        line="EDM's second order, two calls a step, with churn", kind="ode", order=2, steps=18, grid="karras",
        options=_CHURN, nfe=lambda steps, given: 2 * steps - 1, solver="undiffuse.solvers.edm:EDM", fixed={"order": 2},
    ),
    "dpmpp-2s": SolverInfo(
        line="DPM-Solver++(2S): second order, two calls a step", kind="ode", order=2, steps=10, grid="logsnr",
        nfe=lambda steps, given: 2 * steps - 1, solver="undiffuse.solvers.dpmpp:DPMpp2S",
    ),
    "dpmpp-2m": SolverInfo(
        line="DPM-Solver++(2M): second order, one call a step", kind="ode", order=2, steps=20, grid="logsnr",
        solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 2},
    ),
    "dpmpp-3m": SolverInfo(
        line="third order, one call a step (one more to begin)", kind="ode", order=3, steps=20, grid="logsnr",
        nfe=_third, solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 3},
    ),
    "dpmpp-2m-sde": SolverInfo(
        line="2M for the reverse diffusion, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE,
        solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 2},
    ),
    "dpmpp-3m-sde": SolverInfo(
        line="3M for the reverse diffusion, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE,
        solver="undiffuse.solvers.dpmpp:DPMpp", fixed={"order": 3},
    ),
    "unipc": SolverInfo(
        line="predictor and corrector from the same calls", kind="ode", order=3, steps=12, grid="logsnr",
        options=_UNIPC, solver="undiffuse.solvers.unipc:UniPC",
    ),
    "deis": SolverInfo(
        line="Adams-Bashforth in sigma / alpha (DEIS, rho-AB)", kind="ode", order=3, steps=20, grid="karras",
        options=_ORDER, nfe=_third, solver="undiffuse.solvers.adams:AdamsBashforth", fixed={"variable": "ratio"},
    ),
    "ab3": SolverInfo(
        line="Adams-Bashforth in log-SNR", kind="ode", order=3, steps=20, grid="logsnr", options=_ORDER, nfe=_third,
        solver="undiffuse.solvers.adams:AdamsBashforth", fixed={"variable": "logsnr"},
    ),
    "pndm": SolverInfo(
        line="pseudo linear multistep (PLMS), for even steps", kind="ode", order=2, steps=25, grid="uniform",
        options=_PNDM, nfe=_pndm_nfe, solver="undiffuse.solvers.pndm:PNDM",
    ),
    "restart": SolverInfo(
        line="Heun, and a stretch of it again with new noise", kind="sde", order=2, steps=12, grid="karras",
        options=_RESTART, nfe=_restart_nfe, solver="undiffuse.solvers.restart:Restart",
    ),
    "bosh3": SolverInfo(
        line="third order, steps chosen by an error tolerance", kind="ode", order=3, steps=4, grid="logsnr",
        options=_BOSH3, nfe=lambda steps, given: None, solver="undiffuse.solvers.bosh3:Bosh3",
    ),
    "langevin-pc": SolverInfo(
        line="DDIM predicts, Langevin steps correct", kind="sde", order=1, steps=25, grid="logsnr", options=_LANGEVIN,
        nfe=lambda steps, given: steps + (steps - 1) * int(given["correctors"]),
        solver="undiffuse.solvers.langevin:LangevinPC",
    ),
    "dpm-2": SolverInfo(
        line="DPM-Solver-2 in sigma: midpoints, two calls a step", kind="ode", order=2, steps=10, grid="karras",
        options=_DPM2, nfe=lambda steps, given: 2 * steps - (given["last"] == "euler"),
        solver="undiffuse.solvers.dpm:DPM2",
    ),
    "consistency": SolverInfo(
        line="consistency models: denoise at once, add noise, repeat", kind="consistency", order=0, steps=2,
        grid="trailing", options=_CONSISTENCY, solver="undiffuse.solvers.consistency:Consistency",
    ),
}  # fmt: skip
"""Name -> what the solver is, its options, default steps and grid, cost and class."""

FORMER_NAMES: dict[str, str] = {
    "ancestral": "ddpm",
    "adaptive": "bosh3",
    "adams": "ab3",
    "pc": "langevin-pc",
}
"""Names that solvers had before, and have in older files: consulted where stored records are read."""

GROUP = "undiffuse.solvers"
"""The entry point group in which packages offer solvers."""


def solver_info(name: str) -> SolverInfo:
    """Returns the description of a solver.

    Solvers of other packages are looked up among the entry points when the name is not known.

    Raises:
        ValueError: If there is no solver of that name; the message lists those there are.
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
    """Makes a solver available by name: in `build_solver`, in `SOLVERS` and on the command line.

    Args:
        name: The name to register, in lower case without spaces or commas.
        cls: The class (or any callable that returns a solver), or where it is, as "package.module:Class". It is called
            with the options of `info`, and with `clip_after_guidance` if it has a parameter of that name.
        info: Its options, order, and default steps and grid. By default: no options, 50 steps, order 1.

    Returns:
        The entry as registered.

    Raises:
        ValueError: If the name is not possible, or belongs to another solver.
    """
    if not name or name != name.strip().lower() or any(c in name for c in " ,:="):
        raise ValueError(f"a solver's name is lower case without spaces and punctuation of options; got {name!r}")
    if info is None:
        line = (getattr(cls, "__doc__", None) or name).strip().splitlines()[0]
        info = SolverInfo(line=line[:55], kind="ode", order=1, steps=50, grid="logsnr")
    info = info._replace(solver=cls)
    if name in FORMER_NAMES or SOLVERS.get(name, info) != info:
        raise ValueError(f"the name {name!r} belongs to another solver: register it under another name")
    SOLVERS[name] = info
    return info


def build_solver(name: str, clip_after_guidance: bool = False, **options: Value) -> Solver:
    """Builds a solver from its name and options.

    Args:
        name: One of `SOLVERS`, or a solver that a package offers by an entry point.
        clip_after_guidance: Clip the denoised image again after guidance has moved it. Solvers without such a
            parameter ("ddpm") ignore it.
        **options: Options of the solver, see `SOLVERS[name].options`; "ddim" also takes `eta`.

    Returns:
        The solver.

    Raises:
        ValueError: If the name or an option is unknown, or a value is out of range.
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
    """Returns the record of a picture with today's names of solvers and settings in place of former ones."""
    current = {"clip_after_guidance" if key == "reclip" else key: value for key, value in record.items()}
    if isinstance(current.get("solver"), str):
        current["solver"] = FORMER_NAMES.get(current["solver"], current["solver"])
    return current


def _from_entry_point(name: str) -> SolverInfo | None:
    """The solver that an installed package offers under this name, registered; None if there is none.

    An entry point leads to a class, or to a pair (class, SolverInfo).
    """
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        if point.name == name:
            found = point.load()
            cls, info = found if isinstance(found, tuple) else (found, None)
            return register_solver(name, cls, info)
    return None


def read_options(name: str, text: str) -> dict[str, Value]:
    """Options of a method from "churn=30,s_min=0.05". ValueError for options it lacks and values they cannot have."""
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
    """The text that `read_options` reads, without what is as by default."""
    options = solver_info(name).options
    return ",".join(f"{key}={given[key]}" for key in options if key in given and given[key] != options[key].default)
