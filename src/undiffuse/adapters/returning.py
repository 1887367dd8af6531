"""Models that `undiffuse export` wrote, read back from the files of other programs.

Beside the weights lies JSON with all that the format itself cannot hold: network, process, classes. It is believed only
where the weights are those that were exported, which their hash says; files changed since are read as any other.
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

WRITTEN = "written_sha256"
"""Key of the weights' hash in the JSON where rows were put into another order than the model's own."""

_PT2_CONFIG = "model_weights_config.json"
_PT2_FLOAT = 7  # torch.export's number of float32


@dataclass(frozen=True)
class Returned:
    """A model read back: its network and process, weights by our names, and more entries of its manifest."""

    config: Any
    process: ProcessConfig
    state: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    weights: str


def about(path: Path) -> Mapping[str, Any] | None:
    """Read the JSON beside an exported file; None if there is none of ours."""
    beside = exporting.about_path(path)
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "net" in content and "sha256" in content else None


def of_state(told: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Returned | None:
    """Put JSON and weights by our names together; None unless these are the weights it was written for."""
    if not told or not {"net", "process", "sha256", "kind"} <= set(told):
        return None
    state = {name: value.float().contiguous() for name, value in state.items()}
    if weights_hash(state) != told.get(WRITTEN, told["sha256"]):
        return None
    try:
        config = config_from_dict(told["net"], told["kind"])
        process = ProcessConfig(**told["process"])
    except (TypeError, ValueError, KeyError):
        return None
    more: dict[str, Any] = {"labels": told.get("classes")}
    more |= {name: told[name] for name in ("objective", "sampling") if name in told}
    return Returned(config, process, state, more, str(told.get("weights", "net")))


def of_diffusers(told: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Returned | None:
    """The same of a folder of diffusers, whose weights have other names and a row of qkv in parts."""
    from undiffuse.adapters import ddpm_weights, export_diffusers  # which import much that nothing else needs

    if not told or not isinstance(told.get("net"), dict) or told.get("kind") != "diffusion":
        return None
    try:
        config: Any = config_from_dict(told["net"])
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
    return of_state(told, ours) if ours is not None else None


def of_program(path: Path) -> Returned:
    """Read a program of `torch.export` that we wrote: its weights, as data. CheckpointError for any other."""
    told = about(path)
    if told is None:
        raise CheckpointError(
            f"{path} is a program of torch.export, which says how to compute but not with which noise: only those that "
            f"`undiffuse export` wrote are read, with {exporting.about_path(path).name} beside them"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            state = _program_weights(archive)
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged or of an unknown version of torch.export: {error}") from error
    found = of_state(told, state)
    if found is None:
        raise CheckpointError(f"{path} does not hold the weights that {exporting.about_path(path).name} describes")
    return found


def is_program(path: Path) -> bool:
    """Whether a file is a program of `torch.export`."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(_PT2_CONFIG) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _program_weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The float32 weights in an archive of `torch.export`, which lie there as plain numbers with a JSON index."""
    index = next(name for name in archive.namelist() if name.endswith(_PT2_CONFIG))
    out = {}
    for name, item in json.loads(archive.read(index))["config"].items():
        meta = item["tensor_meta"]
        if item["use_pickle"] or meta["dtype"] != _PT2_FLOAT:
            raise ValueError(f"{name} is no plain float32 tensor")
        folder = index.rpartition("/")[0]
        numbers = torch.frombuffer(bytearray(archive.read(f"{folder}/{item['path_name']}")), dtype=torch.float32)
        sizes, strides = ([part["as_int"] for part in meta[key]] for key in ("sizes", "strides"))
        out[name] = numbers.as_strided(sizes, strides, meta["storage_offset"]["as_int"]).contiguous()
    return out
