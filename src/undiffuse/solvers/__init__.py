"""Sampling methods, one per file. Each moves images from one noise level of a path to the next cleaner one.

A solver contains no loop, prints nothing and knows no network: it calls `denoise(x, level) -> Prediction`, and draws
noise with `draw()`. Its class follows the protocol `Solver`; `undiffuse.solvers.registry` lists the solvers by name.
Classes are imported on first use, so the registry can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from undiffuse.solvers.registry import SOLVERS, SolverInfo, build_solver, register_solver, solver_info

if TYPE_CHECKING:
    from undiffuse.solvers.adams import AdamsBashforth
    from undiffuse.solvers.base import Denoise, Draw, Solver, ddim_move
    from undiffuse.solvers.bosh3 import Bosh3
    from undiffuse.solvers.consistency import Consistency
    from undiffuse.solvers.ddim import DDIM
    from undiffuse.solvers.ddpm import DDPM
    from undiffuse.solvers.dpm import DPM2
    from undiffuse.solvers.dpmpp import DPMpp, DPMpp2S
    from undiffuse.solvers.edm import EDM
    from undiffuse.solvers.langevin import LangevinPC
    from undiffuse.solvers.pndm import PNDM
    from undiffuse.solvers.restart import Restart
    from undiffuse.solvers.unipc import UniPC

__all__ = [
    "DDIM", "DDPM", "DPM2", "EDM", "PNDM", "SOLVERS", "AdamsBashforth", "Bosh3", "Consistency", "DPMpp", "DPMpp2S",
    "Denoise", "Draw",
    "LangevinPC", "Restart", "Solver", "SolverInfo", "UniPC", "build_solver", "ddim_move", "register_solver",
    "solver_info",
]  # fmt: skip

_MODULES = {
    "AdamsBashforth": "adams", "Bosh3": "bosh3", "Consistency": "consistency", "DDIM": "ddim", "DDPM": "ddpm",
    "DPM2": "dpm", "DPMpp": "dpmpp", "DPMpp2S": "dpmpp",
    "Denoise": "base", "Draw": "base", "EDM": "edm", "LangevinPC": "langevin", "PNDM": "pndm", "Restart": "restart",
    "Solver": "base", "UniPC": "unipc", "ddim_move": "base",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a class on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
