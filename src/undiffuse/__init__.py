"""Train, guide, sample and evaluate pixel-space diffusion models: DDPM, DDIM, Improved DDPM, ADM.

The names below are imported when they are first used, so that `import undiffuse` stays light:

    import undiffuse

    pipeline = undiffuse.Pipeline.from_pretrained("fashion-mnist-32", guidance=2.0)
    pipeline.sample(16, classes="dress", seed=0).save("dresses")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "ConfigError": "undiffuse.util.errors",
    "GuidanceConfig": "undiffuse.config",
    "NoiseSource": "undiffuse.noise",
    "Pipeline": "undiffuse.pipelines",
    "SamplerConfig": "undiffuse.config",
    "distill": "undiffuse.training.distill",
    "evaluate": "undiffuse.evaluation",
    "generate": "undiffuse.sampling",
    "load_classifier": "undiffuse.models",
    "load_diffusion": "undiffuse.models",
    "load_model": "undiffuse.models",
    "register_metric": "undiffuse.evaluation",
    "register_network": "undiffuse.nets",
    "register_solver": "undiffuse.solvers",
    "save_model": "undiffuse.models",
    "train": "undiffuse.training.face",
}
"""Public names, each with the module that defines it."""

__all__ = [
    "ConfigError",
    "GuidanceConfig",
    "NoiseSource",
    "Pipeline",
    "SamplerConfig",
    "__version__",
    "distill",
    "evaluate",
    "generate",
    "load_classifier",
    "load_diffusion",
    "load_model",
    "register_metric",
    "register_network",
    "register_solver",
    "save_model",
    "train",
]

if TYPE_CHECKING:
    from undiffuse.config import GuidanceConfig, SamplerConfig
    from undiffuse.models import load_classifier, load_diffusion, load_model, save_model
    from undiffuse.noise import NoiseSource
    from undiffuse.pipelines import Pipeline
    from undiffuse.sampling import generate
    from undiffuse.util.errors import ConfigError


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'undiffuse' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
