"""Averages of any width, made after training from snapshots of two (Karras et al. 2024, section 3.2).

A run with `posthoc_widths` keeps power-function averages (`undiffuse.ema.PowerEMA`) and stores them in its folder
every `posthoc_every` images: posthoc/0000123456-0.05.safetensors, each a model by itself. A weighted sum of them, with
weights that follow from the shapes of the averages alone, is the average of any other width at any of those moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse import checkpoints
from undiffuse.ema import PowerEMA, decay_name, exponent_of, power_combination

__all__ = ["Reconstruction", "Snapshot", "reconstruct", "save_snapshots", "snapshots"]

FOLDER = "posthoc"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A stored average: its file, relative width, and the images and updates of the run at that moment."""

    path: Path
    width: float
    images: int
    updates: int


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """An average made from snapshots.

    `weights`   by parameter name, float32
    `base`      the newest snapshot used, whose manifest describes the network
    `about`     {"width", "images", "updates", "snapshots", "profile_error"}: the last is the part of the profile that
                the snapshots cannot make, relative to its norm (see `power_combination`)
    """

    weights: dict[str, Tensor]
    base: Path
    about: dict[str, Any]


def save_snapshots(
    run_dir: Path, averages: PowerEMA, images: int, updates: int, manifest: Mapping[str, Any]
) -> list[Path]:
    """Write every average as a model of its own; nothing before the first update, when there is none."""
    paths = []
    for name in averages.names if updates else ():
        path = run_dir / FOLDER / f"{images:010d}-{name}.safetensors"
        tensors = {f"net.{parameter}": tensor for parameter, tensor in averages.weights(name).items()}
        about = {"width": float(name), "images": images, "updates": updates}
        checkpoints.write(
            path, tensors, {**manifest, "ema": [], "weights": weights_name(float(name)), "posthoc": about}
        )
        paths.append(path)
    return paths


def snapshots(run_dir: Path | str) -> list[Snapshot]:
    """The snapshots of a run, oldest first. CheckpointError for a file there that is none."""
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
    """Delete half-written files and the snapshots past `images`, where a run goes on: they will be written again."""
    for path in (run_dir / FOLDER).glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in (run_dir / FOLDER).glob("*.safetensors"):
        number = path.name.partition("-")[0]
        if number.isdigit() and int(number) > images:
            path.unlink(missing_ok=True)


def reconstruct(run_dir: Path | str, width: float, at: int | None = None) -> Reconstruction:
    """The average of relative width `width` after `at` images, None: at the last snapshot.

    ValueError for a width that no power function has, a run without snapshots, or a moment without one.
    """
    gamma = exponent_of(width)
    every = snapshots(run_dir)
    if not every:
        raise ValueError(
            f"{run_dir} has no snapshots of averages: train with --set train.posthoc_widths=0.05,0.1 and "
            "--set train.posthoc_every=IMAGES"
        )
    moments = sorted({s.images for s in every})
    at = moments[-1] if at is None else at
    if at not in moments:
        near = sorted(sorted(moments, key=lambda m: abs(m - at))[:6])
        raise ValueError(
            f"there is no snapshot after {at} images; averages can be made at {', '.join(map(str, near))}"
            + ("" if len(moments) <= 6 else f" and {len(moments) - 6} other moments")
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


def weights_name(width: float) -> str:
    """What the weights of an average are called in a model's file: "power 0.12"."""
    return f"power {decay_name(width)}"
