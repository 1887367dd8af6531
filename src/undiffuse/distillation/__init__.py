"""Distillation: models of a few calls made from models of many.

`registry` names the methods without importing torch; the other names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from undiffuse.distillation.registry import DEFAULT, METHODS, build_method, read_settings

_PLACES = {
    "Batch": "base", "Method": "base", "Networks": "base", "Segments": "base",
    "ConsistencyDistillation": "consistency", "ConsistencyTraining": "consistency", "consistency_loss": "consistency",
    "heun_teacher": "consistency", "karras_level": "consistency", "straight_teacher": "consistency",
    "Critic": "base", "Discretisation": "discretisation", "MomentMatching": "moment_matching",
    "Progressive": "progressive",
}  # fmt: skip
"""Modules of the names that need torch."""

__all__ = ["DEFAULT", "METHODS", "build_method", "read_settings", *_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Imports a name of `_PLACES` when it is first used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
