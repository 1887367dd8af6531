"""Folders of diffusers: where their files are, and whether their UNet2DModel computes what DDPM's U-Net does.

A folder is a whole pipeline (unet/config.json, scheduler/scheduler_config.json), has everything at its root, as
google/ddpm-cifar10-32 and its kin have, or is a checkpoint of a training (unet/, unet_ema/). The weights are
`diffusion_pytorch_model.safetensors` or `.bin`, whole or in shards with an index, perhaps of a variant (`.fp16`).
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
# What EMAModel adds to the config.json of averaged weights.
_OF_AVERAGES = frozenset(
    ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
)

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


@dataclass(frozen=True)
class Folder:
    """What a folder of diffusers holds.

    Attributes:
        files: The files of the weights, one or, of a sharded model, several.
        unet: What config.json says.
        scheduler: What scheduler_config.json says, if it is there.
        about: What undiffuse.json says, in a folder that `undiffuse export` wrote.
        called: Which of several weights these are: "net", "unet", "unet_ema" or a variant like "fp16".
    """

    files: tuple[Path, ...]
    unet: dict[str, Any]
    scheduler: dict[str, Any] | None
    about: dict[str, Any] | None = None
    called: str = "net"

    @property
    def weights(self) -> Path:
        """The first file of the weights."""
        return self.files[0]


def find(folder: str | Path, which: str | None = None) -> Folder | None:
    """Find the model in a folder written by diffusers.

    Args:
        folder: A pipeline, a bare model, `checkpoint-500` of a training, or the folder of such a training, whose newest
            checkpoint counts. A file of weights beside its config.json means its folder.
        which: "unet" or "unet_ema" where a checkpoint holds both (default: the average), or a variant, like "fp16".

    Returns:
        The model, or None if it is no such folder.

    Raises:
        ValueError: It is one, but its configuration cannot be read, or its weights are not there or ambiguous.
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
            name = parts.get("_class_name", "of no name")
            raise ValueError(
                f"{root} is a diffusers pipeline ({name}) without a unet/config.json: it holds no U-Net of pixels"
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
    """The folder of diffusers that a file of weights belongs to, by the config.json beside it, or None."""
    if not _is_model(file.parent / "config.json"):
        return None
    home = file.parent
    return home.parent if home.name == "unet" and _scheduler(home.parent) else home


def _files(home: Path, variant: str | None) -> tuple[tuple[Path, ...], str]:
    """The files of a model's weights, and the variant that they are ("" for none)."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(home.glob("diffusion_pytorch_model*"), key=lambda path: path.suffix == ".bin"):
        match = _INDEX.fullmatch(path.name)
        if match:
            shards = sorted(set(_read(path).get("weight_map", {}).values()))
            missing = [name for name in shards if not (home / name).is_file() or Path(name).name != name]
            if missing or not shards:
                raise ValueError(f"{path} names files that are not there: {', '.join(missing) or 'none'}")
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
        raise ValueError(f"{home} has several weights, {', '.join(found)}: say which by --weights NAME")
    there = ", ".join(sorted(p.name for p in home.glob("*") if p.suffix in (".safetensors", ".bin"))) or "none"
    raise ValueError(f"{home} has no {' or '.join(WEIGHTS)} (files of weights there: {there})")


def _scheduler(root: Path) -> dict[str, Any] | None:
    places = [root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"]
    found = next((path for path in places if path.is_file()), None)
    return _read(found) if found else None


def _number_of(path: Path) -> int:
    text = path.name.removeprefix("checkpoint-")
    return int(text) if text.isdecimal() else -1


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
