"""What all ways out share: a place to write to, what is said of the model, and the check of what was written.

A format is a function `export_x(model, path) -> Exported` that writes its files, reads them back and compares what they
compute with the model itself; `staged` makes such a function's files appear whole, or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from undiffuse import __version__
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import NetworkSpec, NoisyClassifier, conditions_of, config_to_dict

ABOUT = "undiffuse.json"  # in an exported folder; what lies beside a file is told by `about_path`
TOLERANCE = 1e-4  # of the largest output: beyond it what was written is not this model
_DAY = 86_400.0


class Model(Protocol):
    """What a `DiffusionModel` and a `ClassifierModel` have, and an export needs."""

    @property
    def net(self) -> Any: ...
    @property
    def spec(self) -> NetworkSpec: ...
    @property
    def process(self) -> ProcessConfig: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...
    @property
    def manifest(self) -> Mapping[str, Any]: ...
    @property
    def weights(self) -> str: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written and how it was found right.

    `difference`  largest difference between the outputs of the model and of what was read back, relative to the largest
    `checked`     by what the files were read and run
    `usage`       lines of code, or of a shell, that use the files elsewhere
    `notes`       what the receiving side does differently, or cannot be told
    """

    difference: float
    checked: str
    usage: str
    notes: tuple[str, ...] = ()


@contextmanager
def staged(target: Path, companions: Sequence[Path] = (), *, overwrite: bool = False) -> Iterator[Path]:
    """A path to write `target` at, a file or a folder; it appears under its own name when the block ends without error.

    `companions` are files beside the target that may be written beside the path, too. Nothing is changed if the block
    fails, and what is replaced goes back if the new files cannot take its place. FileExistsError if anything is there
    and `overwrite` is false, or if a folder would be replaced that is not an earlier export.
    """
    names = [*companions, target]  # the target comes last: its name never stands for half of its files
    taken = [path for path in names if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[-1]} exists already: choose another name, or replace it with --overwrite")
    if target.is_dir() and any(target.iterdir()) and not (target / ABOUT).is_file():
        raise FileExistsError(f"{target} is a folder of other things, not an earlier export: choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(".undiffuse-*.export"):  # of killed processes
        if time.time() - leftover.stat().st_mtime > _DAY:
            shutil.rmtree(leftover, ignore_errors=True)
    room = target.parent / f".undiffuse-{secrets.token_hex(6)}.export"
    new, old = room / "new", room / "old"
    new.mkdir(parents=True)
    old.mkdir()
    try:
        yield new / target.name
        for file in new.rglob("*"):
            if file.is_file():
                _settle(file, new.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
        placed = []
        try:
            for path in taken:
                os.replace(path, old / path.name)
            for path in names:
                if (new / path.name).exists():
                    os.replace(new / path.name, path)
                    placed.append(path)
        except BaseException:
            for path in placed:  # companions, which are files
                path.unlink()
            for path in old.iterdir():
                os.replace(path, target.with_name(path.name))
            raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _settle(file: Path, mode: int) -> None:
    """Force a file to the disk, with the permissions of an ordinary one."""
    with open(file, "rb+") as handle:
        os.chmod(file, mode)
        os.fsync(handle.fileno())


def about_path(path: Path) -> Path:
    """The JSON file that lies beside an exported file: model.onnx.json."""
    return path.with_name(f"{path.name}.json")


def describe(model: Model) -> dict[str, Any]:
    """Describe the model for the JSON file that goes with an export."""
    spec = model.spec
    process = asdict(model.process)
    if process["betas"] is None:
        del process["betas"]
    source = model.manifest.get("source")
    return {
        "made_by": f"undiffuse {__version__}",
        "kind": kind_of(model),
        "image": {
            "channels": spec.in_channels,
            "height": spec.size[0],
            "width": spec.size[1],
            "values": "-1 (black) to 1 (white)",
        },
        "num_classes": spec.num_classes,
        "null_class": spec.null_index,
        "classes": list(model.labels) if model.labels is not None else None,
        "process": process,
        "net": config_to_dict(model.net, spec),
        "weights": model.weights,
        "sha256": model.digest,
        **({"source": source} if source else {}),
        **{name: model.manifest[name] for name in ("objective", "sampling") if model.manifest.get(name)},
    }


def kind_of(model: Model) -> str:
    """Return "diffusion" or "classifier"."""
    return "classifier" if isinstance(model.net, NoisyClassifier) else str(model.manifest.get("kind", "diffusion"))


def time_scale(process: ProcessConfig) -> float:
    """What a step number is multiplied with before a network is told."""
    return 1000.0 / process.steps if process.rescale_timesteps else 1.0


ORIGINAL_SCHEDULES = ("linear", "cosine")
"""Schedules that other programs know by name; of any other they are given the betas."""


def level_obstacles(process: ProcessConfig) -> list[str]:
    """What other programs cannot express of a process's noise levels and target; empty if nothing."""
    problems = []
    if process.continuous:
        problems.append(f"its noise levels are continuous ({process.levels_text}), not the steps of a chain")
    if process.target == "edm":
        problems.append("it predicts F of EDM's preconditioning, which no other program takes")
    return problems


def given_betas(process: ProcessConfig) -> list[float] | None:
    """The betas of a chain that has no name elsewhere; None where the schedule's name says them."""
    if process.betas is not None:
        return list(process.betas)
    return None if process.schedule in ORIGINAL_SCHEDULES else process.chain().betas.tolist()


def low_size(model: Model) -> tuple[int, int]:
    """(height, width) of the images a super-resolution network enlarges: as trained if known, else a quarter."""
    known = (model.manifest.get("objective") or {}).get("low_size")
    if isinstance(known, (list, tuple)) and len(known) == 2:
        return int(known[0]), int(known[1])
    height, width = model.spec.size
    return max(1, height // 4), max(1, width // 4)


def example_inputs(model: Model, batch: int, *, full_size: bool = True) -> dict[str, Tensor]:
    """Return inputs of the network by name: x, t, and y and low_res if it takes them.

    Times are spread over the chain. Without `full_size` the image is as small as the network allows, if it is known to
    allow anything other than the trained size.
    """
    spec, config = model.spec, getattr(model.net, "config", None)
    height, width = spec.size
    downsampling = getattr(config, "downsampling", None)
    if not full_size and downsampling is not None and getattr(config, "pool", None) != "attention":
        height, width = (min(side, 4 * downsampling) for side in (height, width))
    generator = torch.Generator().manual_seed(0)
    steps = torch.linspace(model.process.steps - 1, 0, batch).round()
    inputs = {
        "x": torch.randn((batch, spec.in_channels, height, width), generator=generator),
        "t": steps * time_scale(model.process),
    }
    conditions = conditions_of(model.net)
    if "y" in conditions and spec.num_classes is not None:
        inputs["y"] = torch.arange(batch) * (spec.num_classes - 1) // max(1, batch - 1)
    if "low_res" in conditions:
        small = low_size(model) if full_size else (max(1, height // 2), max(1, width // 2))
        inputs["low_res"] = torch.randn((batch, spec.in_channels, *small), generator=generator)
    return inputs


def call(net: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call a network with inputs from `example_inputs`; the names of its first two parameters do not matter."""
    x, t, *_ = inputs.values()
    return net(x, t, **{name: value for name, value in inputs.items() if name not in ("x", "t")})


def relative_difference(output: Tensor, expected: Tensor) -> float:
    """max |output - expected| / max |expected|; infinite where the shapes or the finite numbers differ."""
    if output.shape != expected.shape or not bool(torch.isfinite(output).all()):
        return float("inf")
    largest = float(expected.abs().max())
    difference = float((output - expected).abs().max())
    return difference / largest if largest > 0 else difference


def accept(difference: float, what: str) -> float:
    """`difference` itself; RuntimeError if what was read back does not compute what the model computes."""
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{what} was read back and computes something else (relative difference {difference:.2g}, allowed "
            f"{TOLERANCE:g}), so nothing was kept of it; please report this"
        )
    return difference


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON that people can read: one key a line, long lists of numbers on one line."""
    rows = [f"  {json.dumps(key)}: {_dumped(value)}" for key, value in content.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def _dumped(value: Any) -> str:
    if isinstance(value, Mapping):
        rows = [f"    {json.dumps(key)}: {json.dumps(part)}" for key, part in value.items()]
        return "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
    return json.dumps(value)
