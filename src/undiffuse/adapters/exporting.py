"""Shared by all exports: atomic writing, the description of the model, and the check of the written files.

A format is a function `export_x(model, path) -> Exported` that writes its files, reads them back and compares their
output with the model's. `staged` makes the files appear together or not at all.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
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
from undiffuse.util.files import sync
from undiffuse.util.locks import locked

ABOUT = "undiffuse.json"  # the description in an exported folder; next to a file it is at `about_path`
TOLERANCE = 1e-4  # largest difference of the outputs, relative to the largest output


class Model(Protocol):
    """The attributes of a `DiffusionModel` or `ClassifierModel` that an export needs."""

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
    """The result of an export.

    Attributes:
        difference: Largest difference between the outputs of the model and of the written files, relative to the
            largest output.
        checked: How the files were read back and run.
        usage: Lines of Python or shell that use the files.
        notes: Differences of the other program, and what its format cannot express.
    """

    difference: float
    checked: str
    usage: str
    notes: tuple[str, ...] = ()


@contextmanager
def staged(target: Path, companions: Sequence[Path] = (), *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path to write to, and moves the result to `target` if the block ends without an error.

    If the block fails, nothing changes. If the new files cannot be moved, the old ones are restored; if the process is
    killed while it moves them, the next export to the folder restores them.

    Args:
        target: The file or folder to write.
        companions: Files next to the target that may be written next to the temporary path too.
        overwrite: Replace an existing file or an earlier export.

    Raises:
        FileExistsError: Something exists and `overwrite` is false, or a folder is not an earlier export.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _tidy(target.parent)
    names = [*companions, target]  # the target comes last, so that it never exists without its companions
    taken = [path for path in names if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[-1]} already exists: choose another name, or pass overwrite=True to replace it")
    if target.is_dir() and any(target.iterdir()) and not (target / ABOUT).is_file():
        raise FileExistsError(f"{target} is a folder with other files, not an earlier export: choose another name")
    room = target.parent / f".undiffuse-{secrets.token_hex(6)}.export"
    new, old = room / "new", room / "old"
    new.mkdir(parents=True)
    old.mkdir()
    lock = locked(room)
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
        sync(target.parent)
    finally:
        if lock is not None:
            lock.close()
        shutil.rmtree(room, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Removes what killed exports left in a folder, and puts back what they had moved aside."""
    for room in folder.glob(".undiffuse-*.export"):
        lock = locked(room)
        if lock is None:  # its process is alive
            continue
        with lock:
            for path in (room / "old").glob("*"):
                if not (folder / path.name).exists():
                    os.replace(path, folder / path.name)
            shutil.rmtree(room, ignore_errors=True)


def _settle(file: Path, mode: int) -> None:
    """Flushes a file to disk and gives it ordinary permissions."""
    with open(file, "rb+") as handle:
        os.chmod(file, mode)
        os.fsync(handle.fileno())


def about_path(path: Path) -> Path:
    """Returns the path of the JSON file next to an exported file: model.onnx.json."""
    return path.with_name(f"{path.name}.json")


def describe(model: Model) -> dict[str, Any]:
    """Returns the description of the model for the JSON file of an export."""
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
    """Returns "diffusion" or "classifier"."""
    return "classifier" if isinstance(model.net, NoisyClassifier) else str(model.manifest.get("kind", "diffusion"))


def time_scale(process: ProcessConfig) -> float:
    """Returns the factor between a step number and the network's time input."""
    return 1000.0 / process.steps if process.rescale_timesteps else 1.0


ORIGINAL_SCHEDULES = ("linear", "cosine")
"""Schedules that other programs know by name; for others the export contains the betas."""


def level_obstacles(process: ProcessConfig) -> list[str]:
    """Lists what other programs cannot express about a process's noise levels and target."""
    problems = []
    if process.continuous:
        problems.append(f"its noise levels are continuous ({process.levels_text}), not discrete steps")
    if process.target == "edm":
        problems.append("it predicts F of EDM's preconditioning, which no other program supports")
    return problems


def given_betas(process: ProcessConfig) -> list[float] | None:
    """Returns the betas of a schedule that other programs do not know by name; None for a known schedule."""
    if process.betas is not None:
        return list(process.betas)
    return None if process.schedule in ORIGINAL_SCHEDULES else process.chain().betas.tolist()


def low_size(model: Model) -> tuple[int, int]:
    """Returns (height, width) of the low-resolution images: as in training if known, else a quarter of the size."""
    known = (model.manifest.get("objective") or {}).get("low_size")
    if isinstance(known, (list, tuple)) and len(known) == 2:
        return int(known[0]), int(known[1])
    height, width = model.spec.size
    return max(1, height // 4), max(1, width // 4)


def times(process: ProcessConfig, batch: int) -> Tensor:
    """Returns time inputs [batch] of a network, spread over its noise levels, the noisiest first."""
    steps = torch.linspace(process.steps - 1, 0, batch).round()
    if not process.continuous:
        return steps * time_scale(process)
    preconditioning = process.build_preconditioning()
    return preconditioning.time(preconditioning.level(steps.double()), steps)


def example_inputs(model: Model, batch: int, *, full_size: bool = True) -> dict[str, Tensor]:
    """Returns example inputs of the network by name: x, t, and the conditions that it takes.

    Args:
        model: The model.
        batch: Number of images; their times are spread over the schedule.
        full_size: Use the trained image size. Otherwise the smallest size that the network is known to allow.
    """
    spec, config = model.spec, getattr(model.net, "config", None)
    height, width = spec.size
    downsampling = getattr(config, "downsampling", None)
    if not full_size and downsampling is not None and getattr(config, "pool", None) != "attention":
        height, width = (min(side, 4 * downsampling) for side in (height, width))
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.randn((batch, spec.in_channels, height, width), generator=generator),
        "t": times(model.process, batch),
    }
    conditions = conditions_of(model.net)
    if "y" in conditions and spec.num_classes is not None:
        inputs["y"] = torch.arange(batch) * (spec.num_classes - 1) // max(1, batch - 1)
    if "low_res" in conditions:
        small = low_size(model) if full_size else (max(1, height // 2), max(1, width // 2))
        inputs["low_res"] = torch.randn((batch, spec.in_channels, *small), generator=generator)
    for name in (name for name in ("tags", "numbers", "cond_image") if name in conditions):
        shape = (height, width) if name == "cond_image" else ()
        inputs[name] = torch.randn((batch, spec.width_of(name), *shape), generator=generator)
        inputs[name] = inputs[name].gt(0).float() if name == "tags" else inputs[name]
    return inputs


def call(net: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Calls a network with inputs from `example_inputs`; x and t are passed by position."""
    x, t, *_ = inputs.values()
    return net(x, t, **{name: value for name, value in inputs.items() if name not in ("x", "t")})


def relative_difference(output: Tensor, expected: Tensor) -> float:
    """Returns max |output - expected| / max |expected|; infinite if shapes differ or the output is not finite."""
    if output.shape != expected.shape or not bool(torch.isfinite(output).all()):
        return float("inf")
    largest = float(expected.abs().max())
    difference = float((output - expected).abs().max())
    return difference / largest if largest > 0 else difference


def accept(difference: float, what: str) -> float:
    """Returns `difference`; RuntimeError if it is above `TOLERANCE`, ValueError if there is none to compare."""
    if not math.isfinite(difference):
        raise ValueError(
            f"the output of {what} is not finite or has another shape, so the export was discarded: check the model's "
            "weights for NaN"
        )
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the output of {what} differs from the model's (relative difference {difference:.2g}, allowed "
            f"{TOLERANCE:g}), so the export was discarded; please report this"
        )
    return difference


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes readable JSON: one key per line, long lists of numbers on one line."""
    rows = [f"  {json.dumps(key)}: {_dumped(value)}" for key, value in content.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def _dumped(value: Any) -> str:
    if isinstance(value, Mapping):
        rows = [f"    {json.dumps(key)}: {json.dumps(part)}" for key, part in value.items()]
        return "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
    return json.dumps(value)
