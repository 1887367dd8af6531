"""Folders of diffusers that hold DDPM's U-Net: where their files are, and what their configurations say.

A folder is a whole pipeline (unet/config.json, scheduler/scheduler_config.json) or has everything at its root, as
google/ddpm-cifar10-32 and its kin have. The weights are `diffusion_pytorch_model.safetensors` or `.bin`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.denoiser import ProcessConfig

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# What a UNet2DModel's settings must be for it to compute what DDPM's U-Net does: allowed values (the first is how
# google/ddpm-* say it), what a setting left out means in diffusers, and what DDPM does.
_REQUIRED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "flip_sin_to_cos": ((False,), True, "sines before cosines in the time embedding"),
    "freq_shift": ((1,), 0, "frequencies down to exactly 1/10000"),
    "norm_eps": ((1e-6,), 1e-5, "group norms with eps 1e-6"),
    "downsample_padding": ((0,), 1, "padding on one side when down-sampling"),
    "downsample_type": (("conv",), "conv", "down-sampling by a convolution"),
    "upsample_type": (("conv",), "conv", "up-sampling by a convolution"),
    "act_fn": (("silu", "swish"), "silu", "the SiLU"),
    "time_embedding_type": (("positional",), "positional", "a sinusoidal time embedding"),
    "resnet_time_scale_shift": (("default",), "default", "a time embedding that is added"),
    "mid_block_type": (("UNetMidBlock2D",), "UNetMidBlock2D", "a middle block with attention"),
    "add_attention": ((True,), True, "a middle block with attention"),
    "mid_block_scale_factor": ((1,), 1, "no scaling in the middle block"),
    "center_input_sample": ((False,), False, "images in [-1, 1]"),
    "class_embed_type": ((None,), None, "no classes"),
    "num_class_embeds": ((None,), None, "no classes"),
}
_BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}
_HEAD, _GROUPS, _ATTENTION_GROUPS = "attention_head_dim", "norm_num_groups", "attn_norm_num_groups"

DDPM_SETTINGS: Mapping[str, Any] = {
    **{name: allowed[0] for name, (allowed, _, _) in _REQUIRED.items()},
    _HEAD: None,
    _GROUPS: 32,
    _ATTENTION_GROUPS: None,
}
"""What config.json of a genuine DDPM model says besides sizes."""

_TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "beta",
    "fixed_large_log": "beta",
}


@dataclass(frozen=True)
class Folder:
    """What a folder of diffusers holds: the file of the weights, config.json, and scheduler_config.json if there."""

    weights: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any] | None


def find(folder: str | Path) -> Folder | None:
    """The model in a folder written by diffusers, or None if it is no such folder.

    ValueError if it is one, but its configuration cannot be read or its weights are not there.
    """
    root = Path(folder)
    places = [root / "unet", root]
    home = next((place for place in places if _is_model(place / "config.json")), None)
    if home is None:
        if (root / "model_index.json").is_file():
            raise ValueError(f"{root} is a diffusers pipeline without a unet/config.json: it holds no U-Net")
        return None
    weights = next((home / name for name in WEIGHTS if (home / name).is_file()), None)
    if weights is None:
        there = ", ".join(sorted(p.name for p in home.glob("*") if p.suffix in (".safetensors", ".bin"))) or "none"
        raise ValueError(f"{home} has no {' or '.join(WEIGHTS)} (files of weights there: {there})")
    scheduler = [root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"]
    found = next((path for path in scheduler if path.is_file()), None)
    return Folder(weights, _read(home / "config.json"), _read(found) if found else None)


def check_unet(config: Mapping[str, Any], attending: Iterable[int]) -> None:
    """ValueError unless a UNet2DModel of this configuration computes what DDPM's U-Net does.

    `attending` are the widths at which it attends: with one head, the head is as wide as they are. All differences are
    named. Sizes and the number of groups are the weights' business.
    """
    problems = []
    name = config.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        problems.append(f"it is a {name}, not a UNet2DModel")
    for key, (allowed, default, meaning) in _REQUIRED.items():
        value = config.get(key, default)
        if value not in allowed:
            problems.append(f"{key} = {value!r}, where DDPM has {allowed[0]!r} ({meaning})")
    for key, known in _BLOCKS.items():
        given = config.get(key) or ()
        others = sorted({str(block) for block in (given if isinstance(given, (list, tuple)) else [given])} - set(known))
        if others:
            problems.append(f"{key} with {', '.join(others)}, where DDPM has {' and '.join(known)}")
    groups = config.get(_ATTENTION_GROUPS)
    if groups not in (None, config.get(_GROUPS, 32)):
        problems.append(f"{_ATTENTION_GROUPS} = {groups!r}, where DDPM has as many as in all group norms")
    head = config.get(_HEAD, 8)
    if head is not None and any(head != width for width in attending):
        problems.append(f"{_HEAD} = {head!r}, where DDPM has None (one head)")
    if problems:
        raise ValueError(f"this UNet2DModel is not DDPM's U-Net: {'; '.join(problems)}")


def process_config(scheduler: Mapping[str, Any], variance: str | None = None) -> ProcessConfig:
    """The process that a scheduler_config.json describes; `variance` ("beta", "posterior") replaces what it says.

    Read are the betas (linear, scaled_linear, squaredcos_cap_v2 or given ones), what is predicted and which fixed
    variance the reverse step has; a scheduler without one, such as DDIM's, means the posterior's. Number of steps and
    clipping are a matter of sampling, not of the process. ValueError for what is not understood.
    """
    name = scheduler.get("_class_name", "DDPMScheduler")
    betas = scheduler.get("trained_betas")
    if betas is None and not {"beta_start", "beta_end", "beta_schedule"} & set(scheduler):
        raise ValueError(f"the scheduler {name} has no betas, so it is not a chain of noise levels that DDPM can have")
    if scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(f"the scheduler {name} rescales its betas to end in pure noise, which is not understood here")
    target = str(scheduler.get("prediction_type", "epsilon"))
    if target not in _TARGETS:
        raise ValueError(f"the scheduler predicts {target!r}; understood are {', '.join(_TARGETS)}")
    kind = str(scheduler.get("variance_type", "fixed_small"))
    if kind not in _VARIANCES:
        raise ValueError(
            f"the scheduler has variance_type {kind!r}, and DDPM's U-Net predicts no variance; "
            f"understood are {', '.join(_VARIANCES)}"
        )
    process = ProcessConfig(target=_TARGETS[target], variance=variance or _VARIANCES[kind])
    process = _with_betas(process, scheduler) if betas is None else replace(process, betas=_floats(betas))
    process.chain()  # says what is wrong with betas that make none
    return process


def _with_betas(process: ProcessConfig, scheduler: Mapping[str, Any]) -> ProcessConfig:
    """`process` with the schedule that a scheduler names."""
    start, end = number(scheduler, "beta_start", 1e-4), number(scheduler, "beta_end", 0.02)
    process = replace(process, steps=scheduler.get("num_train_timesteps", 1000))
    schedule = scheduler.get("beta_schedule", "linear")
    if schedule == "squaredcos_cap_v2":
        return replace(process, schedule="cosine")
    if schedule == "linear" and (start, end, process.steps) == (1e-4, 0.02, 1000):
        return process
    if schedule == "linear":
        return replace(process, betas=tuple(np.linspace(start, end, process.steps).tolist()))
    if schedule == "scaled_linear" and min(start, end) >= 0:
        return replace(process, betas=tuple((np.linspace(start**0.5, end**0.5, process.steps) ** 2).tolist()))
    known = "linear, scaled_linear and squaredcos_cap_v2"
    raise ValueError(f"the scheduler has beta_schedule {schedule!r} from {start:g} to {end:g}; understood are {known}")


def number(settings: Mapping[str, Any], name: str, default: float) -> float:
    """A setting that is a number. ValueError if it is none."""
    value = settings.get(name, default)
    if not isinstance(value, (int, float)):
        raise ValueError(f"the configuration has {name} = {value!r}; expected a number")
    return float(value)


def _floats(values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, (int, float)) for value in values):
        raise ValueError("the scheduler's trained_betas are no list of numbers")
    return tuple(float(value) for value in values)


def _is_model(path: Path) -> bool:
    """Whether this is the config.json of a diffusers model."""
    return path.is_file() and "_diffusers_version" in _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings, but {type(content).__name__}")
    return content
