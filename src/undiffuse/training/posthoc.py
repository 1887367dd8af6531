"""Averages of any width, made after training from snapshots of two (Karras et al. 2024, section 3.2).

A run with `posthoc_widths` keeps power-function averages (`undiffuse.ema.PowerEMA`) and stores them in its folder
every `posthoc_every` images: posthoc/0000123456-0.05.safetensors, each a complete model file. A weighted sum of them,
with weights that follow from the shapes of the averages alone, is the average of any other width at those moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse import checkpoints
from undiffuse.ema import decay_name, exponent_of, power_combination
from undiffuse.models import ClassifierModel, DiffusionModel, load_model
from undiffuse.util.errors import ConfigError

__all__ = ["Reconstruction", "Snapshot", "posthoc_model", "reconstruct", "save_snapshot", "snapshots"]

FOLDER = "posthoc"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A stored average: its file, its relative width, and the images and updates of the run at that moment."""

    path: Path
    width: float
    images: int
    updates: int


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """An average made from snapshots.

    Attributes:
        weights: Tensors by parameter name, float32.
        base: The newest snapshot used, whose manifest describes the network.
        about: {"width", "images", "updates", "snapshots", "profile_error"}. The last is the part of the averaging
            profile that the snapshots cannot make, relative to its norm (see `power_combination`).
    """

    weights: dict[str, Tensor]
    base: Path
    about: dict[str, Any]


def save_snapshot(
    run_dir: Path, name: str, weights: Mapping[str, Tensor], images: int, updates: int, manifest: Mapping[str, Any]
) -> Path:
    """Writes an average as a model file.

    Args:
        run_dir: The run folder.
        name: The average's width, as it is named.
        weights: The average by parameter name.
        images: Images seen.
        updates: Updates applied.
        manifest: What describes the model.

    Returns:
        The file.
    """
    path = run_dir / FOLDER / f"{images:010d}-{name}.safetensors"
    tensors = {f"net.{parameter}": tensor for parameter, tensor in weights.items()}
    about = {"width": float(name), "images": images, "updates": updates}
    checkpoints.write(path, tensors, {**manifest, "ema": [], "weights": weights_name(float(name)), "posthoc": about})
    return path


def snapshots(run_dir: Path | str) -> list[Snapshot]:
    """Returns the snapshots of a run, oldest first.

    Raises:
        CheckpointError: A file in their folder is no snapshot.
    """
    found = []
    for path in sorted((Path(run_dir) / FOLDER).glob("*.safetensors")):
        about = checkpoints.read_manifest(path).get("posthoc")
        try:
            width, images, updates = float(about["width"]), int(about["images"]), int(about["updates"])  # type: ignore[index]
            exponent_of(width)
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoints.CheckpointError(
                f"{path} is not a snapshot of an average: its manifest has posthoc = {about!r}; move it away"
            ) from error
        if updates < 1:
            raise checkpoints.CheckpointError(f"{path} says it is an average of {updates} updates; move it away")
        found.append(Snapshot(path=path, width=width, images=images, updates=updates))
    return sorted(found, key=lambda s: (s.images, s.width))


def remove_after(run_dir: Path, images: int) -> None:
    """Deletes the snapshots past `images`, where a run resumes: it writes them again."""
    for path in (run_dir / FOLDER).glob("*.safetensors"):
        number = path.name.partition("-")[0]
        if number.isdigit() and int(number) > images:
            path.unlink(missing_ok=True)


def reconstruct(run_dir: Path | str, width: float, at: int | None = None) -> Reconstruction:
    """Makes an average of any width from the snapshots of a run.

    Args:
        run_dir: The run folder.
        width: Relative width of the average, the standard deviation of its profile over the run (at most 0.288).
        at: Images after which the average ends, where there is a snapshot; None for the last one.

    Raises:
        ConfigError: No power function has this width, or the run has no snapshots, or none at that moment.

    References:
        Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.2, eq. 5.
    """
    gamma = exponent_of(width)
    every = snapshots(run_dir)
    if not every:
        raise ConfigError(
            "run_dir",
            f"{run_dir} has no snapshots of averages: train with train.posthoc_widths, for example 0.05,0.1, and "
            "train.posthoc_every, the images between two snapshots",
        )
    moments = sorted({s.images for s in every})
    at = moments[-1] if at is None else at
    if at not in moments:
        near = sorted(sorted(moments, key=lambda m: abs(m - at))[:6])
        raise ConfigError(
            "at",
            f"there is no snapshot after {at} images; averages can be made at {', '.join(map(str, near))}"
            + ("" if len(moments) <= 6 else f" and {len(moments) - 6} other moments"),
        )
    used = [s for s in every if s.images <= at]
    end = next(s for s in used if s.images == at)
    factors, error = power_combination([(s.updates, exponent_of(s.width)) for s in used], end.updates, gamma)
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(used, factors.tolist(), strict=True):
        tensors, _ = checkpoints.read(snapshot.path, "net")
        if total and {k: t.shape for k, t in tensors.items()} != {k: t.shape for k, t in total.items()}:
            raise checkpoints.CheckpointError(f"{snapshot.path} is an average of another network; move it away")
        for name, tensor in tensors.items():
            part = tensor.double().mul_(factor)
            total[name] = total[name].add_(part) if name in total else part
    about = {
        "width": float(width),
        "images": at,
        "updates": end.updates,
        "snapshots": len(used),
        "profile_error": error,
    }
    weights = {name.removeprefix("net."): tensor.to(torch.float32) for name, tensor in total.items()}
    return Reconstruction(weights=weights, base=end.path, about=about)


def posthoc_model(run_dir: Path | str, width: float, at: int | None = None) -> DiffusionModel | ClassifierModel:
    """Makes the model with an average of any width; arguments and errors as for `reconstruct`.

    `model.manifest["posthoc"]` says how it was made.
    """
    found = reconstruct(run_dir, width, at)
    model = load_model(found.base)
    model.net.load_state_dict(found.weights)
    return replace(model, manifest={**model.manifest, "posthoc": found.about}, weights=weights_name(width))


def weights_name(width: float) -> str:
    """What the weights of an average are called in a model's file: "power 0.12"."""
    return f"power {decay_name(width)}"
