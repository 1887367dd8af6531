"""How its authors sample a model, as a `SamplerConfig`: made, stored in manifests, and described in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from undiffuse.config.fields import given, settings_of
from undiffuse.config.guidance import GuidanceConfig
from undiffuse.config.sampler import SamplerConfig
from undiffuse.grid_specs import brief
from undiffuse.solvers.registry import FORMER_NAMES

RHO = 7.0
"""Exponent of the grid that Karras et al. (2022) propose."""


def advice(
    steps: str = "250", *, solver: str = "ddpm", guidance: float = 0.0, classifier: str | None = None, **more: Any
) -> SamplerConfig:
    """Returns the settings of a sampler; the defaults are those of OpenAI's scripts.

    Args:
        steps: Number or sections of steps, see `DiscreteSchedule.respaced`.
        solver: Name of the solver.
        guidance: Scale of the classifier's gradient.
        classifier: Name of the classifier that guides.
        **more: Further fields of `SamplerConfig`.
    """
    guides = GuidanceConfig(classifier=(classifier,), scale=(guidance,)) if classifier else GuidanceConfig()
    return SamplerConfig(solver=solver, steps=steps, guidance=guides, **more)


def levels_of(indices: Sequence[int], steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> str:
    """Returns levels of Karras' grid as a grid of explicit log-SNRs, "at:...", as samplers take it.

    Level i of `steps` is sigma_i = (sigma_max^(1/7) + i / (steps - 1) (sigma_min^(1/7) - sigma_max^(1/7)))^7, relative
    to the image, and its log-SNR is -2 ln sigma_i.

    Args:
        indices: Numbers of the levels, 0 the noisiest and `steps` - 1 the cleanest.
        steps: Number of levels on the grid, 2 or more.
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 5; multistep
        sampling in Song et al. 2023, "Consistency Models", algorithm 1.
    """
    first, last = sigma_max ** (1 / RHO), sigma_min ** (1 / RHO)
    roots = [first + index / (steps - 1) * (last - first) for index in indices]
    return "at:" + ",".join(f"{-2 * RHO * math.log(root):.9g}" for root in roots)


def to_manifest(config: SamplerConfig) -> dict[str, Any]:
    """Returns the settings that are not the defaults, by flat name, ready for JSON."""
    out: dict[str, Any] = {}
    for part in (config, config.guidance):
        for f, declared in settings_of(part):
            value = getattr(part, f.name)
            if value != f.default:
                out[declared.name] = list(value) if isinstance(value, tuple) else value
    return out


def from_manifest(saved: Mapping[str, Any]) -> SamplerConfig:
    """Reads what `to_manifest` wrote, or the form that older files have ("spacing" and "options").

    Raises:
        ConfigError: A value is not possible.
    """
    values = dict(saved)
    if values.get("spacing") and not values.get("grid"):
        values["grid"] = f"chain:{values['spacing']}"
    if "options" in values:
        values["solver_options"] = values.pop("options")
    if not values.get("classifier"):
        values.pop("guidance", None)
    if values.get("solver") in FORMER_NAMES:
        values["solver"] = FORMER_NAMES[values["solver"]]
    return SamplerConfig(guidance=GuidanceConfig(**given(GuidanceConfig, values)), **given(SamplerConfig, values))


def describe(config: SamplerConfig) -> str:
    """Returns the settings in words: "ddpm, 250 steps, guidance 1, classifier 64x64_classifier"."""
    parts = [config.solver or "the usual solver"]
    if config.steps is not None:
        parts.append(f"{config.steps} step{'' if config.steps == '1' else 's'}")
    parts += [f"grid {brief(config.grid)}"] if config.grid else []
    parts += [f"clip {config.clip}"] if config.clip else []
    guides = config.guidance
    parts += [f"guidance {guides.strength:g}"] if guides.strength else []
    parts += [f"classifier {name}" for name in guides.classifier]
    return ", ".join(parts)
