"""Registry of the sampling methods and grids: descriptions, options and costs. It does not import torch.

The command line, sweeps and the compatibility tests use it; `solvers.build` creates a solver by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

Value = float | int | str
Given = Mapping[str, Value]


class Option(NamedTuple):
    """Describes an option of a method.

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


class Method(NamedTuple):
    """Describes a sampling method.

    Attributes:
        line: One-line description.
        kind: "ode", "sde" or "consistency".
        order: Order of convergence, certified by tests: strong for "ode", weak for "sde".
        steps: Default number of steps.
        grid: Default grid.
        options: Options by name.
        calls: (steps, options) -> network calls per image; None if only a run can tell.
    """

    line: str
    kind: str
    order: int
    steps: int
    grid: str
    options: Mapping[str, Option] = {}
    calls: Callable[[int, Given], int | None] = lambda steps, given: steps

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
_SDE = {"eta": Option(default=1.0, line="noise: 0 is the ODE, 1 the reverse diffusion, more is possible")}
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
_ADAPTIVE = {
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


def _pndm_calls(steps: int, given: Given) -> int:
    return steps + 9 if given["warmup"] == "rk" and steps > 4 else steps


def _third(steps: int, given: Given) -> int:
    """Returns the calls of a third-order method: its first step makes two calls, unless it is the only one."""
    return steps + (given.get("order", 3) == 3 and steps > 1)


def _restart_calls(steps: int, given: Given) -> int:
    """Returns the calls of `restart`; a path of one step has no level to restart from."""
    return 2 * steps - 1 + (int(given["restarts"]) * 2 * int(given["inner"]) if steps > 1 else 0)


METHODS: dict[str, Method] = {
    "ancestral": Method(
        line="DDPM sampling: the learned reverse step, with noise", kind="sde", order=1, steps=100, grid="chain"
    ),
    "ddim": Method(line="first order, deterministic; eta adds noise", kind="ode", order=1, steps=50, grid="chain"),
    "euler": Method(
        line="Euler's method in EDM's form, with churn", kind="ode", order=1, steps=50, grid="karras", options=_CHURN
    ),
    "heun": Method(
        line="Heun's method (EDM): two calls per step, with churn", kind="ode", order=2, steps=18, grid="karras",
        options=_CHURN, calls=lambda steps, given: 2 * steps - 1,
    ),
    "dpmpp-2s": Method(
        line="DPM-Solver++(2S): second order, two calls per step", kind="ode", order=2, steps=10, grid="logsnr",
        calls=lambda steps, given: 2 * steps - 1,
    ),
    "dpmpp-2m": Method(
        line="DPM-Solver++(2M): second order, one call per step", kind="ode", order=2, steps=20, grid="logsnr"
    ),
    "dpmpp-3m": Method(
        line="DPM-Solver++(3M): third order, one call per step", kind="ode", order=3, steps=20, grid="logsnr",
        calls=_third,
    ),
    "dpmpp-2m-sde": Method(
        line="SDE variant of 2M, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE
    ),
    "dpmpp-3m-sde": Method(
        line="SDE variant of 3M, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE
    ),
    "unipc": Method(
        line="UniPC: predictor and corrector share their calls", kind="ode", order=3, steps=12, grid="logsnr",
        options=_UNIPC,
    ),
    "deis": Method(
        line="DEIS (rho-AB): Adams-Bashforth in sigma / alpha", kind="ode", order=3, steps=20, grid="karras",
        options=_ORDER, calls=_third,
    ),
    "adams": Method(
        line="Adams-Bashforth in log-SNR", kind="ode", order=3, steps=20, grid="logsnr", options=_ORDER, calls=_third
    ),
    "pndm": Method(
        line="pseudo linear multistep (PLMS), for uniform steps", kind="ode", order=2, steps=25, grid="uniform",
        options=_PNDM, calls=_pndm_calls,
    ),
    "restart": Method(
        line="Heun's method, repeating an interval with new noise", kind="sde", order=2, steps=12, grid="karras",
        options=_RESTART, calls=_restart_calls,
    ),
    "adaptive": Method(
        line="third order, step sizes from an error tolerance", kind="ode", order=3, steps=4, grid="logsnr",
        options=_ADAPTIVE, calls=lambda steps, given: None,
    ),
    "pc": Method(
        line="DDIM predictor, Langevin corrector", kind="sde", order=1, steps=25, grid="logsnr", options=_LANGEVIN,
        calls=lambda steps, given: steps + (steps - 1) * int(given["correctors"]),
    ),
    "dpm-2": Method(
        line="DPM-Solver-2: midpoint in sigma, two calls per step", kind="ode", order=2, steps=10, grid="karras",
        options=_DPM2, calls=lambda steps, given: 2 * steps - (given["last"] == "euler"),
    ),
    "consistency": Method(
        line="for consistency models: denoise, add noise, repeat", kind="consistency", order=0, steps=2,
        grid="trailing", options=_CONSISTENCY,
    ),
}  # fmt: skip

GRIDS: dict[str, str] = {
    "chain": "trained steps, spaced as in the original code",
    "karras": "EDM's spacing: even in (sigma / alpha)^(1 / rho); rho=7",
    "logsnr": "even in log-SNR",
    "uniform": "even in t, first and last trained step included",
    "trailing": "even in t, including the last trained step only",
    "leading": "even in t, including the first trained step only",
    "quadratic": "even in the square root of t",
    "at": "explicit log-SNRs: at:-8,-4,-1,2,8",
}


def method(name: str) -> Method:
    """Returns the method with this name; raises ValueError, listing the methods, if there is none."""
    if name not in METHODS:
        raise ValueError(f"unknown solver {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def brief(grid: str) -> str:
    """Shortens a grid for captions: of explicit levels, only the ends remain, "at:-8.7641,...,9.2103"."""
    ends = grid.split(",")
    return f"{ends[0]},...,{ends[-1]}" if grid.startswith("at:") and len(ends) > 3 else grid


def read_options(name: str, text: str) -> dict[str, Value]:
    """Parses the options of a method from "churn=30,s_min=0.05".

    Args:
        name: Name of the method.
        text: Options as key=value, separated by commas.

    Raises:
        ValueError: The method, an option or a value is invalid.
    """
    found: dict[str, Value] = {}
    options = method(name).options
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in options:
            known = ", ".join(options) or "none"
            raise ValueError(f"{name} has no option {key!r} (it has: {known}); options are given as key=value")
        found[key] = options[key].read(value, f"{name}: {key}")
    return found


def write_options(name: str, given: Given) -> str:
    """Returns the text for `read_options`, without options that have their default."""
    options = method(name).options
    return ",".join(f"{key}={given[key]}" for key in options if key in given and given[key] != options[key].default)
