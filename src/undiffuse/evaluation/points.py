"""How the points of a sweep differ: sampler configs with another strength of guidance, or another solver.

Everything that sweeps know of the fields of `SamplerConfig` is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from undiffuse.config import GuidanceConfig, SamplerConfig
from undiffuse.config.fields import settings_of
from undiffuse.frontiers import Point
from undiffuse.models import paired_classifier
from undiffuse.runtime_specs import DEFAULT
from undiffuse.solvers.registry import read_options, solver_info
from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.pipelines import Pipeline

__all__ = [
    "OVER", "guides", "point_of", "short_text", "with_guidance", "with_solver", "without_defaults", "without_strength",
]  # fmt: skip

OVER = {
    "guidance": ("guidance scale", (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)),
    "cfg": ("scale of classifier-free guidance (1: none)", (1.0, 1.5, 2.0, 3.0, 5.0)),
    "autoguide": ("scale of autoguidance (1: none)", (1.0, 1.5, 2.0, 3.0, 5.0)),
}
"""What can be swept: its name on plots, and its usual values."""


def with_guidance(config: SamplerConfig, over: str, scale: float) -> SamplerConfig:
    """Returns a config with another strength of guidance; settings that shape no acting guidance are left out.

    Args:
        config: The config to change.
        over: "guidance" (of the classifier), "cfg" or "autoguide".
        scale: The strength.

    Raises:
        ValueError: What is swept needs a model that is not given.
    """
    guidance = config.guidance
    if over == "guidance":
        config = config.replace(guidance=replace(guidance, scale=(scale, *guidance.scale[1:])))
    elif over == "cfg":
        config = config.replace(cfg=scale)
    else:
        if guidance.autoguide is None and guidance.autoguide_weights is None:
            raise ConfigError("autoguide", "a sweep over autoguidance needs the model that guides: give one")
        config = config.replace(autoguide_scale=scale)
    return config.replace(guidance=config.guidance.resolved(config.model, paired_classifier))


def without_strength(config: SamplerConfig, over: str) -> SamplerConfig:
    """Returns a config with the default strength of what is swept: what the points have in common."""
    if over == "guidance":
        others = config.guidance.scale[1:]
        return config.replace(guidance=replace(config.guidance, scale=(0.0, *others) if others else ()))
    return config.replace(cfg=None) if over == "cfg" else config.replace(autoguide_scale=2.0)


def with_solver(config: SamplerConfig, solver: str, steps: str, grid: str | None) -> SamplerConfig:
    """Returns a config with another solver, number of steps and grid (None: the solver's own)."""
    return replace(config, solver=solver, steps=steps, grid=grid)


def guides(config: SamplerConfig) -> list[str]:
    """Returns the names of the settings that guide beside one classifier."""
    guidance = config.guidance.resolved(config.model, paired_classifier)
    single = {"classifier", "guidance", "guidance_at"} if len(guidance.classifier) < 2 else {"guidance_at"}
    named = {declared.name: getattr(guidance, f.name) != f.default for f, declared in settings_of(GuidanceConfig)}
    return sorted(name for name, differs in named.items() if differs and name not in single)


def point_of(pipeline: Pipeline, label: str = "", student: str = "") -> Point:
    """Returns what a pipeline is and costs, as a point of a frontier whose value is still 0.

    Raises:
        ValueError: The solver chooses its number of network calls while it runs.
    """
    s = pipeline.config
    assert s.solver and s.steps and s.grid  # a loaded pipeline has them
    given = solver_info(s.solver).settings(read_options(s.solver, s.solver_options))
    nfe = solver_info(s.solver).nfe(pipeline.path.steps, given)
    if nfe is None:
        raise ValueError(f"{s.solver} chooses its number of network calls while it runs: choose another solver")
    return Point(
        solver=s.solver, steps=s.steps, grid=s.grid, nfe=nfe, value=0.0, solver_options=s.solver_options,
        eta=s.eta, guidance=s.guidance.strength, guidance_at=s.guidance.at, label=label, student=student,
    )  # fmt: skip


def short_text(pipeline: Pipeline) -> str:
    """Returns the sampler in as few words as file names have room for: "dpmpp-2m 10, logsnr, guidance 2"."""
    s = pipeline.config
    parts = [f"{s.solver} {s.steps}"]
    parts += [s.grid] if s.grid not in (None, "chain") else []
    parts += [s.solver_options] if s.solver_options else []
    parts += s.guidance.text()
    parts += [s.precision] if s.precision != "fp32" else []
    parts += [s.runtime] if s.runtime != DEFAULT else []
    return ", ".join(parts)


def without_defaults(config: SamplerConfig) -> dict[str, Any]:
    """Returns the fields of a config, nested ones too, that are not the defaults; the model always."""
    return {"model": config.model} | _difference(asdict(config), asdict(type(config)()))


def _difference(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            if inner := _difference(value, defaults[name]):
                out[name] = inner
        elif value != defaults.get(name):
            out[name] = value
    return out
