"""Ways to sample images given what was observed of them: their names, defaults, solvers, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.editing.dps import DPS
from undiffuse.editing.mask import Mask
from undiffuse.editing.observation import OBSERVED, ObservationGuidance
from undiffuse.editing.operators import Operator
from undiffuse.editing.projection import ProjectedDenoiser
from undiffuse.editing.repaint import repaint
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.sampling import Step, sample
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import join_names

__all__ = [
    "METHODS", "StepCallback", "load_pipeline", "mean_square", "method_settings", "sample_inpainted", "sample_observed",
]  # fmt: skip

METHODS = ("repaint", "dps", "pigdm", "mmps", "projection")
StepCallback = Callable[[Step], None]

_SOLVERS = {"dps": "ddim", "pigdm": "dpmpp-2m", "mmps": "dpmpp-2m"}
"""Solvers of the methods that use a gradient. These clip x0 after it was moved; ancestral sampling moves its mean, and
does not clip. DPS shifts x behind the solver's back, which one that remembers would take for the flow's change."""
_DEFAULTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "resamples": (5, ("repaint",)),
    "jump": (4, ("repaint",)),
    "zeta": (1.0, ("dps",)),
    "iterations": (3, ("mmps",)),
    "noise": (1.0, ("pigdm", "mmps")),
    "data_std": (1.0, ("pigdm",)),
}
"""Settings of the methods: the default, and the methods that have it."""


def method_settings(method: str, allowed: tuple[str, ...] = METHODS, **given: Any) -> dict[str, Any]:
    """Fills in the settings of a method.

    Args:
        method: One of `allowed`.
        allowed: The methods that suit the task.
        **given: "resamples" and "jump" of repaint; "zeta" of dps; "iterations" of mmps; "noise", in 8-bit levels, of
            pigdm and mmps; "data_std" of pigdm. None means the default.

    Returns:
        "method" and its settings.

    Raises:
        ConfigError: The method is unknown, or a setting belongs to another one.
    """
    if method not in allowed:
        raise ConfigError("method", f"{method!r} is unknown; expected one of {join_names(allowed)}")
    found: dict[str, Any] = {"method": method}
    for name, (default, methods) in _DEFAULTS.items():
        value = given.get(name)
        if method in methods:
            found[name] = default if value is None else value
        elif value is not None:
            raise ConfigError(name, f"has no effect on {method}; it is a setting of {' and '.join(methods)}")
    return found


def load_pipeline(
    model: Pipeline | SamplerConfig | str | Path, device: str = "auto", method: str | None = None, **defaults: Any
) -> Pipeline:
    """Loads what an edit needs.

    Args:
        model: A pipeline, which is taken as it is; a config that names the model; or the reference of a model.
        device: See `Pipeline.load`.
        method: The method; it chooses the solver if the config does not, and whether gradients are kept.
        **defaults: Settings to use where the config has none.

    Raises:
        ConfigError: The method needs gradients, which the pipeline was loaded without ("model").
    """
    gradient = method in _SOLVERS
    if isinstance(model, Pipeline):
        if gradient and not model.gradient:
            raise ConfigError(
                "model", f"loaded without gradients, which {method} needs; pass gradient=True to Pipeline.load"
            )
        return model
    config = model if isinstance(model, SamplerConfig) else SamplerConfig(model=str(model))
    chosen = config.solver is not None or config.eta > 0 or config.guidance.at == "mean"
    if not chosen and method in _SOLVERS:
        defaults = {"solver": _SOLVERS[method], **defaults}
    unset = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return Pipeline.load(config.replace(**unset), device, gradient=gradient, keep_weights=False)


def sample_observed(
    pipeline: Pipeline,
    settings: Mapping[str, Any],
    operator: Operator,
    observed: Tensor,
    noise: NoiseSource,
    labels: list[int] | None,
    on_step: StepCallback,
) -> Tensor:
    """Samples images given a linear observation, by any method but repaint.

    Args:
        pipeline: A pipeline with gradients.
        settings: What `method_settings` returned.
        operator: The linear map from images to what was observed.
        observed: What was observed, [B, C, h, w].
        noise: The noise of the B images.
        labels: Their classes; None without classes.
        on_step: Called after each step.

    Returns:
        Images [B, C, H, W], about in [-1, 1].
    """
    cond, denoiser, solver = pipeline.condition(labels), pipeline.denoiser, pipeline.solver
    if settings["method"] == "projection":
        denoiser = ProjectedDenoiser(denoiser, operator, observed)
    elif settings["method"] == "dps":
        solver = DPS(solver, operator, observed, settings["zeta"])
    else:
        std, iterations = settings.get("data_std", 1.0), settings.get("iterations", 0)
        level = settings["noise"] / 127.5
        denoiser = ObservationGuidance(denoiser, operator, level, data_std=std, iterations=iterations)
        cond[OBSERVED] = observed
    for step in sample(denoiser, pipeline.path, solver, noise, pipeline.shape, cond=cond, device=pipeline.device):
        on_step(step)
    return step.x


def sample_inpainted(
    pipeline: Pipeline,
    settings: Mapping[str, Any],
    mask: Mask,
    x0: Tensor,
    noise: NoiseSource,
    labels: list[int] | None,
    on_step: StepCallback,
) -> Tensor:
    """Samples images [B, C, H, W] whose known part is that of x0 [B, C, H, W]; arguments as in `sample_observed`.

    The known part is exact after repaint only; use `Mask.merged`.
    """
    if settings["method"] != "repaint":
        return sample_observed(pipeline, settings, mask, mask(x0), noise, labels, on_step)
    x = x0
    for step in repaint(
        pipeline.denoiser, pipeline.path, pipeline.solver, noise, x0, mask,
        cond=pipeline.condition(labels), jump=settings["jump"], resamples=settings["resamples"],
    ):  # fmt: skip
        on_step(step)
        x = step.x
    return x


def mean_square(difference: Tensor) -> Tensor:
    """Mean squares [B] of differences [B, ...]."""
    return difference.flatten(1).square().mean(1)
