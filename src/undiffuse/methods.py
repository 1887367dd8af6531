"""The sampling methods and the grids of noise levels by name: what they are, their options, their cost. No torch here.

This is what the command line, sweeps and the compatibility tests read; `solvers.build` makes a solver of a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

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


class Method(NamedTuple):
    """A sampling method.

    `line`     what it is, in one line
    `order`    of convergence as the tests certify it: strong for "ode", weak for "sde"
    `steps`, `grid`   what it uses if nothing else is said
    `options`  by name
    `calls`    (steps, options) -> network calls an image, None where only a run can tell
    """

    line: str
    kind: str
    order: int
    steps: int
    grid: str
    options: Mapping[str, Option] = {}
    calls: Callable[[int, Given], int | None] = lambda steps, given: steps

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
_ADAPTIVE = {"tol": Option(default=0.02, line="error a step, absolute and relative, of pixels in [-1, 1]", low=1e-12)}
_UNIPC = {
    "order": Option(default=3, line="its p", low=1, high=3),
    "variant": Option(default="bh2", line="B(h): h (bh1) or exp(h) - 1 (bh2)", words=("bh1", "bh2")),
}
_PNDM = {"warmup": Option(default="rk", line="first three steps: Runge-Kutta or few points", words=("rk", "plms"))}


def _pndm_calls(steps: int, given: Given) -> int:
    return steps + 9 if given["warmup"] == "rk" and steps > 4 else steps


def _third(steps: int, given: Given) -> int:
    """Third order needs a second-order first step, of two calls; the only step of one is the last one."""
    return steps + (given.get("order", 3) == 3 and steps > 1)


def _restart_calls(steps: int, given: Given) -> int:
    """A path of one step has no level below the noisiest, from which to restart."""
    return 2 * steps - 1 + (int(given["restarts"]) * 2 * int(given["inner"]) if steps > 1 else 0)


METHODS: dict[str, Method] = {
    "ancestral": Method(
        line="the learned reverse step, with noise (DDPM)", kind="sde", order=1, steps=100, grid="chain"
    ),
    "ddim": Method(line="first order, deterministic; --eta adds noise", kind="ode", order=1, steps=50, grid="chain"),
    "euler": Method(
        line="DDIM in EDM's form, with churn", kind="ode", order=1, steps=50, grid="karras", options=_CHURN
    ),
    "heun": Method(
        line="EDM's second order, two calls a step, with churn", kind="ode", order=2, steps=18, grid="karras",
        options=_CHURN, calls=lambda steps, given: 2 * steps - 1,
    ),
    "dpmpp-2s": Method(
        line="DPM-Solver++(2S): second order, two calls a step", kind="ode", order=2, steps=10, grid="logsnr",
        calls=lambda steps, given: 2 * steps - 1,
    ),
    "dpmpp-2m": Method(
        line="DPM-Solver++(2M): second order, one call a step", kind="ode", order=2, steps=20, grid="logsnr"
    ),
    "dpmpp-3m": Method(
        line="third order, one call a step (one more to begin)", kind="ode", order=3, steps=20, grid="logsnr",
        calls=_third,
    ),
    "dpmpp-2m-sde": Method(
        line="2M for the reverse diffusion, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE
    ),
    "dpmpp-3m-sde": Method(
        line="3M for the reverse diffusion, with noise", kind="sde", order=2, steps=25, grid="logsnr", options=_SDE
    ),
    "unipc": Method(
        line="predictor and corrector from the same calls", kind="ode", order=3, steps=12, grid="logsnr", options=_UNIPC
    ),
    "deis": Method(
        line="Adams-Bashforth in sigma / alpha (DEIS, rho-AB)", kind="ode", order=3, steps=20, grid="karras",
        options=_ORDER, calls=_third,
    ),
    "adams": Method(
        line="Adams-Bashforth in log-SNR", kind="ode", order=3, steps=20, grid="logsnr", options=_ORDER, calls=_third
    ),
    "pndm": Method(
        line="pseudo linear multistep (PLMS), for even steps", kind="ode", order=2, steps=25, grid="uniform",
        options=_PNDM, calls=_pndm_calls,
    ),
    "restart": Method(
        line="Heun, and a stretch of it again with new noise", kind="sde", order=2, steps=12, grid="karras",
        options=_RESTART, calls=_restart_calls,
    ),
    "adaptive": Method(
        line="third order, steps chosen by an error tolerance", kind="ode", order=3, steps=4, grid="logsnr",
        options=_ADAPTIVE, calls=lambda steps, given: None,
    ),
    "pc": Method(
        line="DDIM predicts, Langevin steps correct", kind="sde", order=1, steps=25, grid="logsnr", options=_LANGEVIN,
        calls=lambda steps, given: steps + (steps - 1) * int(given["correctors"]),
    ),
    "dpm-2": Method(
        line="DPM-Solver-2 in sigma: midpoints, two calls a step", kind="ode", order=2, steps=10, grid="karras",
        options=_DPM2, calls=lambda steps, given: 2 * steps - (given["last"] == "euler"),
    ),
    "consistency": Method(
        line="consistency models: denoise at once, add noise, repeat", kind="consistency", order=0, steps=2,
        grid="trailing", options=_CONSISTENCY,
    ),
}  # fmt: skip

GRIDS: dict[str, str] = {
    "chain": "the original's spacings of the trained steps, by --steps alone",
    "karras": "EDM's: even in (sigma / alpha)^(1 / rho); rho=7",
    "logsnr": "even in log-SNR",
    "uniform": "even in t, from the last trained step to the first",
    "trailing": "even in t, from the last step, short of the first",
    "leading": "even in t, to the first step, short of the last",
    "quadratic": "even in the root of t",
    "at": "these log-SNRs: at:-8,-4,-1,2,8",
}


def method(name: str) -> Method:
    """The method of that name. ValueError lists them."""
    if name not in METHODS:
        raise ValueError(f"unknown solver {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def brief(grid: str) -> str:
    """A grid for captions: of explicit levels the ends only, "at:-8.7641,...,9.2103"."""
    ends = grid.split(",")
    return f"{ends[0]},...,{ends[-1]}" if grid.startswith("at:") and len(ends) > 3 else grid


def read_options(name: str, text: str) -> dict[str, Value]:
    """Options of a method from "churn=30,s_min=0.05". ValueError for options it lacks and values they cannot have."""
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
    """The text that `read_options` reads, without what is as by default."""
    options = method(name).options
    return ",".join(f"{key}={given[key]}" for key in options if key in given and given[key] != options[key].default)
