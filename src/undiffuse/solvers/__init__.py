"""Sampling methods, one per file. Each moves images from one noise level of a path to the next cleaner one.

A solver contains no loop, prints nothing and knows no network: it calls `denoise(x, level) -> Prediction`, and draws
noise with `draw()`. To add one, write a file here with a class that follows `Solver`, describe it in
`undiffuse.methods.METHODS`, and add its constructor to `_CLASSES` below. The tests of convergence then cover it, and
the command line offers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from undiffuse.methods import METHODS, Value, method
from undiffuse.solvers.adams import Adams
from undiffuse.solvers.adaptive import Adaptive
from undiffuse.solvers.ancestral import Ancestral
from undiffuse.solvers.base import Denoise, Draw, Solver, ddim_move
from undiffuse.solvers.consistency import Consistency
from undiffuse.solvers.ddim import DDIM
from undiffuse.solvers.dpm import DPM2
from undiffuse.solvers.dpmpp import DPMpp, DPMpp2S
from undiffuse.solvers.edm import EDM
from undiffuse.solvers.langevin import PredictorCorrector
from undiffuse.solvers.pndm import PNDM
from undiffuse.solvers.restart import Restart
from undiffuse.solvers.unipc import UniPC

__all__ = [
    "DDIM", "DPM2", "EDM", "PNDM", "SOLVERS", "Adams", "Adaptive", "Ancestral", "Consistency", "DPMpp", "DPMpp2S",
    "Denoise", "Draw", "PredictorCorrector", "Restart", "Solver", "UniPC", "build", "ddim_move",
]  # fmt: skip

SOLVERS = METHODS
"""Methods by name: description, options, default steps and grid, and network calls."""

_CLASSES: dict[str, Callable[..., Any]] = {
    "ancestral": lambda reclip: Ancestral(),  # clips x0 before the guides, not after
    "ddim": DDIM,
    "euler": lambda **options: EDM(order=1, **options),
    "heun": lambda **options: EDM(order=2, **options),
    "dpmpp-2s": DPMpp2S,
    "dpmpp-2m": lambda **options: DPMpp(order=2, **options),
    "dpmpp-3m": lambda **options: DPMpp(order=3, **options),
    "dpmpp-2m-sde": lambda **options: DPMpp(order=2, **options),
    "dpmpp-3m-sde": lambda **options: DPMpp(order=3, **options),
    "unipc": UniPC,
    "deis": lambda **options: Adams(variable="ratio", **options),
    "adams": lambda **options: Adams(variable="logsnr", **options),
    "pndm": PNDM,
    "restart": Restart,
    "adaptive": Adaptive,
    "pc": PredictorCorrector,
    "dpm-2": DPM2,
    "consistency": Consistency,
}


def build(name: str, reclip: bool = False, **options: Value) -> Solver:
    """Builds a solver.

    Args:
        name: One of `SOLVERS`.
        reclip: Clip the denoised image again after guidance has moved it.
        options: Options of the solver (`SOLVERS[name].options`); ddim also accepts `eta`.

    Raises:
        ValueError: The name or an option is unknown, or a value is out of range.
    """
    eta = {"eta": options.pop("eta", 0.0)} if name == "ddim" else {}
    settings = method(name).settings(options)
    return _CLASSES[name](reclip=reclip, **eta, **settings)
