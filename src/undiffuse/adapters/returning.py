"""Reads back models that `undiffuse export` wrote in the formats of other programs.

A JSON file next to the weights holds what the format itself cannot: network, process, classes. It is used only if the
hash shows that the weights have not changed since the export; otherwise they are read like any other file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.adapters import exporting
from undiffuse.checkpoints import CheckpointError, weights_hash
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import UNetConfig, config_from_dict
from undiffuse.nets.meta import build_on_meta
from undiffuse.util.limits import is_zip, open_zip

WRITTEN = "written_sha256"
"""Key in the JSON of the hash of the written weights, if their rows are in another order than the model's own."""

_PT2_CONFIG = "model_weights_config.json"
_PT2_FLOAT = 7  # the number of float32 in torch.export


@dataclass(frozen=True)
class Returned:
    """A model read back.

    Attributes:
        config: The network's configuration.
        process: The diffusion process.
        state: Weights by our names.
        manifest: Further entries of the manifest.
        weights: Name of the weights, "net" or an EMA decay.
    """

    config: Any
    process: ProcessConfig
    state: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    weights: str


def about(path: Path) -> Mapping[str, Any] | None:
    """Reads the JSON next to an exported file; returns None if there is none of ours."""
    beside = exporting.about_path(path)
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "net" in content and "sha256" in content else None


def of_state(content: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Returned | None:
    """Combines the JSON with weights by our names; returns None if the JSON was written for other weights."""
    if not content or not {"net", "process", "sha256", "kind"} <= set(content):
        return None
    state = {name: value.float().contiguous() for name, value in state.items()}
    if weights_hash(state) != content.get(WRITTEN, content["sha256"]):
        return None
    try:
        config = config_from_dict(content["net"], content["kind"])
        process = ProcessConfig(**content["process"])
    except (TypeError, ValueError, KeyError):
        return None
    more: dict[str, Any] = {"labels": content.get("classes")}
    more |= {name: content[name] for name in ("objective", "sampling") if name in content}
    return Returned(config, process, state, more, str(content.get("weights", "net")))


def of_diffusers(content: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Returned | None:
    """Does the same for a diffusers folder, whose weights have other names and separate q, k and v."""
    from undiffuse.adapters import ddpm_weights, export_diffusers  # heavy imports, needed only here

    if not content or not isinstance(content.get("net"), dict) or content.get("kind") != "diffusion":
        return None
    try:
        config: Any = config_from_dict(content["net"])
    except (TypeError, ValueError):
        return None
    if isinstance(config, UNetConfig):
        ours = export_diffusers.own_state(config, state)
    elif getattr(config, "architecture", "") == "ddpm":
        levels = len(config.widths)
        shapes = {name: value.shape for name, value in build_on_meta(config.build).state_dict().items()}
        theirs = {name: ddpm_weights.diffusers_name(name, levels) for name in shapes}
        fits = set(theirs.values()) == set(state) and all(
            state[theirs[n]].numel() == shape.numel() for n, shape in shapes.items()
        )
        ours = {name: state[theirs[name]].reshape(shape) for name, shape in shapes.items()} if fits else None
    else:
        ours = dict(state)
    return of_state(content, ours) if ours is not None else None


def of_program(path: Path) -> Returned:
    """Reads the weights of a `torch.export` program that undiffuse wrote, without executing it.

    Raises:
        CheckpointError: The program is damaged, or was not written by undiffuse.
    """
    content = about(path)
    if content is None:
        raise CheckpointError(
            f"{path} is a torch.export program, which does not describe the noise levels: only programs written by "
            f"`undiffuse export` can be read, with {exporting.about_path(path).name} next to them"
        )
    try:
        with open_zip(path) as archive:
            state = _program_weights(archive)
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged, or of an unknown version of torch.export: {error}") from error
    found = of_state(content, state)
    if found is None:
        raise CheckpointError(f"{path} does not contain the weights that {exporting.about_path(path).name} describes")
    return found


def is_program(path: Path) -> bool:
    """Returns whether a file is a program of `torch.export`."""
    if not is_zip(path):
        return False
    try:
        with open_zip(path) as archive:
            return any(name.endswith(_PT2_CONFIG) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _program_weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Reads the float32 weights in an archive of `torch.export`, stored as plain numbers with a JSON index."""
    index = next(name for name in archive.namelist() if name.endswith(_PT2_CONFIG))
    out = {}
    for name, item in json.loads(archive.read(index))["config"].items():
        meta = item["tensor_meta"]
        if item["use_pickle"] or meta["dtype"] != _PT2_FLOAT:
            raise ValueError(f"{name} is not a plain float32 tensor")
        folder = index.rpartition("/")[0]
        numbers = torch.frombuffer(bytearray(archive.read(f"{folder}/{item['path_name']}")), dtype=torch.float32)
        sizes, strides = ([part["as_int"] for part in meta[key]] for key in ("sizes", "strides"))
        out[name] = numbers.as_strided(sizes, strides, meta["storage_offset"]["as_int"]).contiguous()
    return out
