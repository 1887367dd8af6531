"""How the points of a sweep differ: sampler configs with another strength of guidance, or another solver.

Everything that sweeps know of the fields of `SamplerConfig` is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from undiffuse.frontiers import Point
from undiffuse.methods import method, read_options
from undiffuse.models import paired_classifier
from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig

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
    guiding = config.guiding
    if over == "guidance":
        classifier = config.classifier or (paired_classifier(config.model) if scale else None)
        if scale and classifier is None:
            raise ConfigError("classifier", "guidance needs a classifier of noisy images that fits the model: give one")
        config = replace(config, guidance=scale, classifier=classifier)
    elif over == "cfg":
        guiding = replace(guiding, cfg=scale)
    else:
        if guiding.autoguide is None:
            raise ConfigError("autoguide", "a sweep over autoguidance needs the model that guides: give one")
        guiding = replace(guiding, autoguide_scale=scale)
    acting = {
        "guidance": bool(config.guidance or any(s for _, s in guiding.more_classifiers)),
        "cfg": guiding.cfg != 1,
        "autoguide": guiding.autoguide is not None and guiding.autoguide_scale != 1,
    }
    present = {over, *(name for name, acts in acting.items() if acts)}
    present |= {"autoguide"} if guiding.autoguide is not None else set()
    return replace(config, guiding=guiding.settled(present, [name for name, acts in acting.items() if acts]))


def without_strength(config: SamplerConfig, over: str) -> SamplerConfig:
    """Returns a config with the default strength of what is swept: what the points have in common."""
    if over == "guidance":
        return replace(config, guidance=type(config)().guidance)
    name = {"cfg": "cfg", "autoguide": "autoguide_scale"}[over]
    return replace(config, guiding=replace(config.guiding, **{name: getattr(type(config.guiding)(), name)}))


def with_solver(config: SamplerConfig, solver: str, steps: str, grid: str | None) -> SamplerConfig:
    """Returns a config with another solver, number of steps and grid (None: the solver's own)."""
    return replace(config, solver=solver, steps=steps, grid=grid)


def guides(config: SamplerConfig) -> list[str]:
    """Returns the names of the settings that guide beside one classifier."""
    return sorted(without_defaults(config).get("guiding", {}))


def point_of(pipeline: Pipeline, label: str = "") -> Point:
    """Returns what a pipeline is and costs, as a point of a frontier whose value is still 0.

    Raises:
        ValueError: The solver chooses its number of network calls while it runs.
    """
    s = pipeline.settings
    assert s.solver and s.steps and s.grid  # a loaded pipeline has them
    given = method(s.solver).settings(read_options(s.solver, s.solver_options))
    calls = method(s.solver).calls(pipeline.chain.steps, given)
    if calls is None:
        raise ValueError(f"{s.solver} chooses its number of network calls while it runs: choose another solver")
    return Point(
        solver=s.solver, steps=s.steps, grid=s.grid, calls=calls, value=0.0, solver_options=s.solver_options,
        eta=s.eta, guidance=s.guidance, guidance_at=s.guidance_at, label=label,
    )  # fmt: skip


def short_text(pipeline: Pipeline) -> str:
    """Returns the sampler in as few words as file names have room for: "dpmpp-2m 10, logsnr, guidance 2"."""
    s = pipeline.settings
    parts = [f"{s.solver} {s.steps}"]
    parts += [s.grid] if s.grid not in (None, "chain") else []
    parts += [s.solver_options] if s.solver_options else []
    at = {"mean": " at the mean", "x0": " at x0"}.get(s.guidance_at, "")
    parts += [f"guidance {s.guidance:g}{at}"] if s.guidance else []
    parts += s.guiding.text()
    parts += [s.precision] if s.precision != "fp32" else []
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
