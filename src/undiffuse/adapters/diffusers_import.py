"""Reads models in diffusers folders: network, process, weights and sampling advice.

The user can give settings that a folder lacks, by diffusers' names: `image_size`, `num_classes`, `null_class`,
`variance`, and without a scheduler its settings (`beta_schedule`, `prediction_type`, ...).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from undiffuse.adapters import ddpm_weights, diffusers_continuous, diffusers_scheduler, diffusers_unet, returning
from undiffuse.adapters.diffusers_config import Folder
from undiffuse.adapters.diffusers_scheduler import Schedule
from undiffuse.config.advice import to_manifest
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import DDPMConfig
from undiffuse.nets.unet2d import UNet2DConfig

_OF_MODELS = ("image_size", "num_classes", "null_class", "variance")
_OF_SCHEDULERS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "variance_type",
                  "timestep_spacing", "clip_sample", "rescale_betas_zero_snr")  # fmt: skip
_NEEDED = ("beta_schedule", "num_train_timesteps", "prediction_type")


@dataclass(frozen=True)
class Imported:
    """The model in a folder: network, process, weights by our names, facts by source, entries of the manifest."""

    config: Any
    process: ProcessConfig
    state: Mapping[str, Tensor]
    facts: Mapping[str, str]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "net"


def read(folder: Folder, state: Mapping[str, Tensor], flags: Mapping[str, str]) -> Imported:
    """Reads the model in a folder.

    Args:
        folder: The configurations.
        state: The weights by diffusers' names.
        flags: The user's settings by name.

    Raises:
        ValueError: The model is not supported, or a setting is missing.
    """
    unknown = sorted(set(flags) - {*_OF_MODELS, *_OF_SCHEDULERS})
    if unknown:
        known = ", ".join((*_OF_MODELS, *_OF_SCHEDULERS))
        raise ValueError(f"a diffusers folder takes the settings {known}, not {', '.join(unknown)}")
    returned = returning.of_diffusers(folder.about, state) if not flags else None
    if returned is not None:
        facts = {"undiffuse.json": "a model exported by undiffuse, with unchanged weights"}
        return Imported(returned.config, returned.process, returned.state, facts, returned.manifest, returned.weights)
    ddpm = _as_ddpm(folder, state, flags)
    config: DDPMConfig | UNet2DConfig
    ours: Mapping[str, Tensor]
    if ddpm is not None:
        config, ours = ddpm
        schedule = _schedule(folder, flags, config, usual=True)
        what = "DDPM's U-Net"
    else:
        network = diffusers_continuous.network_of(folder.scheduler, diffusers_unet.network_config(folder.unet, flags))
        config, ours = network, diffusers_unet.weights(network, state)
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            raise ValueError(
                f"a network with {config.in_channels} channels in and {config.out_channels} out gives no image beside "
                "which a variance could stand; models that take a picture as a condition are not read"
            )
        schedule = _schedule(folder, flags, config, usual=False)
        what = "UNet2DModel"
    if schedule.process.variance == "fixed_small" and ddpm is not None and folder.scheduler is None:
        schedule = _ddpms_own(schedule, ddpm[0])
    facts = {
        "config.json": f"{what}, {_shape(config)}",
        "its scheduler" if folder.scheduler else "as said": f"{schedule.process.levels_text}, predicts "
        f"{schedule.process.target}, variance {schedule.process.variance}",
    }
    if folder.called != "net":
        facts["weights"] = f"those in {folder.called}"
    facts |= {f"otherwise than diffusers ({i + 1})": note for i, note in enumerate(schedule.notes)}
    more = {"sampling": to_manifest(schedule.sampling)}
    if folder.scheduler is None:
        more = {}
    return Imported(config, schedule.process, ours, facts, more, folder.called)


def _as_ddpm(
    folder: Folder, state: Mapping[str, Tensor], flags: Mapping[str, str]
) -> tuple[DDPMConfig, Mapping[str, Tensor]] | None:
    """Returns the network and weights if the model equals DDPM's own U-Net, which is the faster implementation."""
    size = flags.get("image_size", "")
    try:
        config, _, ours = ddpm_weights.convert(
            state, unet=folder.unet, scheduler=None, image_size=int(size) if size.isdigit() else None
        )
    except ValueError:
        return None
    return config, ours


def _schedule(folder: Folder, flags: Mapping[str, str], config: DDPMConfig | UNet2DConfig, usual: bool) -> Schedule:
    """Returns the process and advice from the scheduler, else from the user; with `usual`, else DDPM's own."""
    said = {name: _value(flags[name]) for name in _OF_SCHEDULERS if name in flags}
    variance = flags.get("variance")
    if variance not in (None, "fixed_small", "fixed_large", "learned_range"):
        raise ValueError(f"variance {variance}: expected fixed_small, fixed_large or learned_range")
    if folder.scheduler is None and not usual:
        missing = [name for name in _NEEDED if name not in said]
        if missing:
            example = " ".join(f"{name}={_EXAMPLES[name]}" for name in missing)
            raise ValueError(
                "there is no scheduler_config.json, and config.json says nothing of the noise: say "
                f'{", ".join(missing)}, for instance by the reference FOLDER@"{example}"'
            )
    if folder.scheduler is not None and folder.scheduler.get("_class_name") in diffusers_continuous.NAMES:
        if variance == "learned_range":
            raise ValueError("variance learned_range: this scheduler has continuous levels, without a learned variance")
        return diffusers_continuous.read({**folder.scheduler, **said}, config)
    settings = {"beta_schedule": "linear", **(folder.scheduler or {}), **said}
    if folder.scheduler is not None and "beta_schedule" not in said:
        settings = {**folder.scheduler, **said}
    return diffusers_scheduler.read(settings, config.out_channels == 2 * config.in_channels, variance)


_EXAMPLES = {"beta_schedule": "linear", "num_train_timesteps": "1000", "prediction_type": "epsilon"}


def _ddpms_own(schedule: Schedule, config: DDPMConfig) -> Schedule:
    """Sets the variance of DDPM's files without a scheduler: its authors used fixed_large below 256 pixels."""
    variance = "fixed_large" if min(config.size) < 256 else "fixed_small"
    return replace(schedule, process=replace(schedule.process, variance=variance))


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False", "None") else text)
    except ValueError:
        return text


def _shape(config: DDPMConfig | UNet2DConfig) -> str:
    height, width = config.size
    widths = "/".join(map(str, config.widths))
    return f"images of {height}x{width} in {config.in_channels} channels, {widths} wide, {config.num_res_blocks} blocks"
