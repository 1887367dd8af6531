"""What a run shows: preview grids, the loss curve, accuracy by noise level. Nothing here influences training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from undiffuse.ema import EMA
from undiffuse.nets.runner import NetworkRunner
from undiffuse.pictures.grid import draw_grid
from undiffuse.pictures.plots import Panel, PlottingUnavailable, draw_plot
from undiffuse.pixels import to_uint8
from undiffuse.train_config import TrainConfig
from undiffuse.training.events import read_events
from undiffuse.training.tasks import Task
from undiffuse.util.files import atomic_file

MOST_COLUMNS = 12
MOST_SPAN = 100.0  # largest over smallest value of a curve that still shows a trend


def save_picture(picture: Image.Image, path: Path) -> None:
    """A PNG that is whole or absent."""
    with atomic_file(path, overwrite=True, durable=False) as file:
        picture.save(file, format="PNG")


def save_previews(
    task: Task, ema: EMA, forward: NetworkRunner, config: TrainConfig, images: int, folder: Path | None,
    device: torch.device,
) -> list[Path]:  # fmt: skip
    """Grids from the trained weights and every average, always of the same noise, so that moments can be compared.

    Files: previews/0000200000_raw.png, previews/0000200000_ema-0.9999.png. Empty list if the task has nothing to show.
    Without a folder the pictures are only made, in a process that helps the main one.
    """
    names = task.preview_labels(config.preview_count)
    paths = []
    for which in ("raw", *ema.names):
        with evaluating(task.net), _weights(ema, which):
            pictures = task.preview(forward, config.seed, config.preview_count, config.preview_steps, device)
        if pictures is None or folder is None:
            continue
        title = "trained weights" if which == "raw" else f"averaged weights, decay {which}"
        grid = draw_grid(
            to_uint8(pictures.float()).cpu(),
            caption=f"{title}, after {images:,} images",
            **_columns(names),
        )
        path = folder / "previews" / f"{images:010d}_{'raw' if which == 'raw' else 'ema-' + which}.png"
        save_picture(grid, path)
        paths.append(path)
    return paths


def save_loss_curve(metrics: Path, path: Path) -> bool:
    """Draws the mean squared error (or else the loss) and bits over the images seen; False if there is nothing yet.

    The bound takes x0 unclipped, which from predicted noise means a division by sqrt(alpha_bar_t), 5e-5 at the end of
    a cosine chain: one draw near t = T-1 makes "vb", and with it a hybrid "loss" and "bits", a thousand times what
    they were. That would look like a divergence while the error falls smoothly. So the error is drawn where there is
    one, and bits only where they stay within a factor of 100; metrics.jsonl keeps them all.
    """
    records = list(read_events(metrics))
    error = _points(records, "train", "mse")
    key, name = ("mse", "mean squared error") if error else ("loss", "loss")
    series = {
        name: error or _points(records, "train", "loss"),
        f"validation {name}": _points(records, "validation", key),
    }
    bits = _points(records, "train", "bits")
    if _span(bits) < MOST_SPAN:
        series["bits per dimension"] = bits
    series = {name: points for name, points in series.items() if any(y > 0 for _, y in points)}
    if not series:
        return False
    title = f"Training: {path.resolve().parent.name}"
    y_label = f"{name}; bits per dimension" if "bits per dimension" in series else name
    panel = Panel(lines=series, title=title, x_label="images seen", y_label=y_label, log_y=True, smooth=0.9)
    return _save_plot(panel, path)


def save_accuracy_curve(by_tenth: dict[str, Sequence[float | None]], steps: int, classes: int, path: Path) -> bool:
    """Draws accuracy over the timestep (0: hardly any noise), with the accuracy of guessing for comparison."""
    series = {}
    for key, name in (("top1", "best guess right"), ("top5", "among the best five")):
        values = by_tenth.get(key)
        if values:
            centres = [(j + 0.5) * steps / len(values) for j in range(len(values))]
            series[name] = [(x, 100 * y) for x, y in zip(centres, values, strict=True) if y is not None]
    if not any(series.values()):
        return False
    series["guessing"] = [(0.0, 100 / classes), (float(steps), 100 / classes)]
    title = f"Accuracy by noise level: {path.resolve().parent.name}"
    return _save_plot(
        Panel(lines=series, title=title, x_label="timestep", y_label="per cent of validation images"), path
    )


def _save_plot(panel: Panel, path: Path) -> bool:
    """Draws and writes a plot; writes nothing and returns False without matplotlib, of which the run has a note."""
    try:
        picture = draw_plot(panel)
    except PlottingUnavailable:
        return False
    save_picture(picture, path)
    return True


class evaluating:
    """A context in which the network is in evaluation mode (no dropout) and records no gradients."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._no_grad = torch.no_grad()

    def __enter__(self) -> None:
        self.was_training = self.net.training
        self.net.eval()
        self._no_grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._no_grad.__exit__(*error)
        self.net.train(self.was_training)


def _weights(ema: EMA, which: str) -> Any:
    return nullcontext() if which == "raw" else ema.applied(which)


def _columns(names: list[str] | None) -> dict[str, Any]:
    """One column a class where that fits; otherwise about square, the classes in order."""
    classes = list(dict.fromkeys(names or []))
    if names and len(classes) <= MOST_COLUMNS and len(names) % len(classes) == 0:
        return {"columns": len(classes), "column_labels": classes}
    return {"columns": None}


def _points(records: list[dict[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    points = [(r["images"], r[key]) for r in records if r.get("kind") == kind and isinstance(r.get(key), (int, float))]
    return [(float(x), float(y)) for x, y in points if math.isfinite(y)]


def _span(points: list[tuple[float, float]]) -> float:
    """Largest over smallest positive value; 1 if there is none."""
    values = [y for _, y in points if y > 0]
    return max(values) / min(values) if values else 1.0
