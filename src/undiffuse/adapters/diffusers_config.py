"""Finds the files in a diffusers folder, and checks whether its UNet2DModel equals DDPM's U-Net.

A folder is a whole pipeline (unet/config.json, scheduler/scheduler_config.json), has everything at its root, like
google/ddpm-cifar10-32, or is a training checkpoint (unet/, unet_ema/). The weights are
`diffusion_pytorch_model.safetensors` or `.bin`, in one file or in shards with an index, possibly a variant (`.fp16`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

_FILE = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?\.(?:safetensors|bin)")
_INDEX = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?\.(?:safetensors|bin)\.index(?:\.(\w+))?\.json")
# Entries that EMAModel adds to the config.json of averaged weights.
_OF_AVERAGES = frozenset(
    ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
)

# Settings with which a UNet2DModel equals DDPM's U-Net: allowed values (first that of google/ddpm-*), diffusers'
# default, and the meaning in DDPM.
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
"""Settings in the config.json of a DDPM model, except sizes."""


@dataclass(frozen=True)
class Folder:
    """The contents of a diffusers folder.

    Attributes:
        files: The weights files; several for a sharded model.
        unet: The content of config.json.
        scheduler: The content of scheduler_config.json; None if there is none.
        about: The content of undiffuse.json, in a folder that `undiffuse export` wrote.
        called: Name of the weights: "net", "unet", "unet_ema" or a variant, for example "fp16".
    """

    files: tuple[Path, ...]
    unet: dict[str, Any]
    scheduler: dict[str, Any] | None
    about: dict[str, Any] | None = None
    called: str = "net"

    @property
    def weights(self) -> Path:
        """The first weights file."""
        return self.files[0]


def find(folder: str | Path, which: str | None = None) -> Folder | None:
    """Finds the model in a folder written by diffusers.

    Args:
        folder: A pipeline, a bare model, a training checkpoint (`checkpoint-500`), or the folder of a training, whose
            newest checkpoint is used.
        which: "unet" or "unet_ema" if a checkpoint has both (default: the EMA), or a variant, for example "fp16".

    Returns:
        The model, or None if this is not a diffusers folder.

    Raises:
        ValueError: The configuration cannot be read, or the weights are missing or ambiguous.
    """
    root = Path(folder)
    inside = [root / "unet_ema", root / "unet", root]
    if which in ("unet", "unet_ema"):
        inside = [root / which]
    home = next((place for place in inside if _is_model(place / "config.json")), None)
    if home is None:
        newest = max(root.glob("checkpoint-*"), key=_number_of, default=None)
        if newest is not None and newest.is_dir():
            found = find(newest, which)
            if found is not None:
                return found if found.scheduler else replace(found, scheduler=_scheduler(root))
        if (root / "model_index.json").is_file():
            parts = _read(root / "model_index.json")
            name = parts.get("_class_name", "without a name")
            raise ValueError(
                f"{root} is a diffusers pipeline ({name}) without a unet/config.json: it has no pixel-space U-Net"
            )
        return None
    both = _is_model(root / "unet" / "config.json") and _is_model(root / "unet_ema" / "config.json")
    variant = None if which in ("unet", "unet_ema", "net") else which
    files, named = _files(home, variant)
    about = root / "undiffuse.json"
    return Folder(
        files,
        {name: value for name, value in _read(home / "config.json").items() if name not in _OF_AVERAGES},
        _scheduler(root) or _scheduler(root.parent if home == root else root),
        _read(about) if about.is_file() else None,
        home.name if both else named or "net",
    )


def beside(file: Path) -> Path | None:
    """Returns the diffusers folder that a weights file belongs to, found by the config.json next to it, or None."""
    if not _is_model(file.parent / "config.json"):
        return None
    home = file.parent
    return home.parent if home.name == "unet" and _scheduler(home.parent) else home


def _files(home: Path, variant: str | None) -> tuple[tuple[Path, ...], str]:
    """Returns the weights files of a model, and their variant ("" for none)."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(home.glob("diffusion_pytorch_model*"), key=lambda path: path.suffix == ".bin"):
        match = _INDEX.fullmatch(path.name)
        if match:
            shards = sorted(set(_read(path).get("weight_map", {}).values()))
            missing = [name for name in shards if not (home / name).is_file() or Path(name).name != name]
            if missing or not shards:
                raise ValueError(f"{path} names missing files: {', '.join(missing) or 'none'}")
            found.setdefault(match[1] or match[2] or "", tuple(home / name for name in shards))
        elif match := _FILE.fullmatch(path.name):
            found.setdefault(match[1] or "", (path,))
    if variant is not None:
        if variant not in found:
            there = ", ".join(name or "net" for name in found) or "none"
            raise ValueError(f"{home} has no weights {variant!r}; it has: {there}")
        return found[variant], variant
    if "" in found:
        return found[""], ""
    if len(found) == 1:
        name, files = next(iter(found.items()))
        return files, name
    if found:
        raise ValueError(f"{home} has several weights, {', '.join(found)}: choose one by weights=NAME")
    there = ", ".join(sorted(p.name for p in home.glob("*") if p.suffix in (".safetensors", ".bin"))) or "none"
    raise ValueError(f"{home} has no {' or '.join(WEIGHTS)} (weights files: {there})")


def _scheduler(root: Path) -> dict[str, Any] | None:
    places = [root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"]
    found = next((path for path in places if path.is_file()), None)
    return _read(found) if found else None


def _number_of(path: Path) -> int:
    text = path.name.removeprefix("checkpoint-")
    return int(text) if text.isdecimal() else -1


def check_unet(config: Mapping[str, Any], attending: Iterable[int]) -> None:
    """Checks that a UNet2DModel with this configuration equals DDPM's U-Net. Sizes are not checked here.

    Args:
        config: The content of config.json.
        attending: Channels of the levels with attention, which has a single head of this width.

    Raises:
        ValueError: It differs; the message lists all differences.
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


def _is_model(path: Path) -> bool:
    """Returns whether this is the config.json of a diffusers model."""
    return path.is_file() and "_diffusers_version" in _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
