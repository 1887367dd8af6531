"""Interpolates between two images or two seeds on the sphere of latents, and draws a grid and an animation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undiffuse.kernels import planned
from undiffuse.noise import NoiseSource
from undiffuse.pictures import draw_grid, save_animation, save_png
from undiffuse.pipelines import latents
from undiffuse.pipelines.classes import class_numbers
from undiffuse.pipelines.inputs import Images, labels_of, open_images
from undiffuse.pipelines.pipeline import Pipeline
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step, slerp
from undiffuse.util.errors import ConfigError
from undiffuse.util.locks import FolderLock
from undiffuse.util.progress import NoProgress, progress_of

__all__ = ["Interpolation", "arc", "check_absent", "interpolate"]

GRID, MOVIE = "interpolation.png", "interpolation.gif"


@dataclass(frozen=True)
class Interpolation:
    """Rows of images from one end to the other.

    Attributes:
        images: uint8 [rows, frames, H, W, C].
        classes: The class of each row; None without classes.
        ends: What the two ends are, in words.
        record: How the images were made.
        row_names: The name of each row's class.
        caption: The sampler in a few words.
    """

    images: np.ndarray
    classes: list[int] | None
    ends: tuple[str, str]
    record: dict[str, Any]
    row_names: list[str]
    caption: str

    def grid(self) -> Image.Image:
        """Draws a row for each class, the ends at its ends."""
        rows, frames = self.images.shape[:2]
        weights = [f"{k / (frames - 1):.2f}" for k in range(frames)]
        flat = self.images.reshape(rows * frames, *self.images.shape[2:])
        return draw_grid(
            flat, frames, row_labels=self.row_names or None, column_labels=weights,
            title=f"From {' to '.join(self.ends)}", caption=f"spherical interpolation of latents, {self.caption}",
        )  # fmt: skip

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes the grid, and an animation in which all rows move there and back.

        Raises:
            FileExistsError: The files exist, and `overwrite` is false.
            ValueError: Another process works in the folder.
        """
        out = Path(folder)
        rows, frames = self.images.shape[:2]
        scale = max(1, 128 // max(self.images.shape[2:4]))
        there = [self.images[:, k] for k in range(frames)]
        lock = FolderLock(out, "saving")  # both files are those of one call
        try:
            check_absent(out, overwrite)
            save_animation(
                out / MOVIE, [*there, *there[-2::-1]], columns=min(rows, 5), scale=scale, frame_ms=110, hold_ms=600,
                record=self.record, overwrite=True,
            )  # fmt: skip
            save_png(out / GRID, self.grid(), self.record, overwrite=True)  # the last, for which `check_absent` looks
        finally:
            lock.close(remove=True)


def interpolate(
    pipeline: Pipeline,
    images: Images | None = None,
    *,
    seeds: Sequence[int] | None = None,
    classes: Any = None,
    frames: int = 9,
    batch: int | None = None,
    progress: bool | NoProgress = True,
    on_step: Callable[[Step], None] | None = None,
    **inputs: Any,
) -> Interpolation:
    """Makes the images on the arc between two images, which are encoded first, or between the samples of two seeds.

    Args:
        pipeline: A pipeline with the solver "ddim" and eta 0.
        images: Two images, as `open_images` takes them.
        seeds: Two seeds, in place of images.
        classes: Classes, a row each; by default all with seeds, and otherwise those that `labels_of` finds.
        frames: Images in a row, both ends included; at least 2.
        batch: Images at once; by default what fits into memory.
        progress: Whether to show a progress bar; or what counts the images instead.
        on_step: Called after each step with its `Step`.
        **inputs: Other arguments of `open_images`.

    Raises:
        ConfigError: There are other than two ends ("images"), too few frames ("frames"), or the class of an image is
            unknown ("classes").
    """
    if (seeds is None) == (images is None) or (seeds is not None and len(seeds) != 2):
        raise ConfigError("images", "expected two images, or two `seeds` to interpolate between samples")
    latents.check_deterministic(pipeline)
    dataset = None
    if images is not None:
        dataset = open_images(images, pipeline.model, **{"labels": "none", **inputs})
        if len(dataset) != 2:
            raise ConfigError("images", f"expected two images that can be read; got {len(dataset)}")
    if dataset is not None and classes is None:
        found = labels_of(dataset, pipeline.model)
        chosen = None if found is None else list(dict.fromkeys(found))  # images of two classes make a row of each
        names = [dataset.source.name(i) for i in range(2)]
    else:
        chosen = class_numbers(pipeline.model, classes)
        names = (
            [dataset.source.name(i) for i in range(2)] if dataset is not None else [f"seed {s}" for s in seeds or ()]
        )
    rows: list[int | None] = [None] if chosen is None else list(chosen)
    made = []
    with progress_of(progress, "interpolating", len(rows) * frames, "images") as bar, planned() as kernels:
        for row in rows:
            ends = _seed_ends(pipeline, seeds) if dataset is None else _image_ends(pipeline, dataset, row)
            made.append(arc(pipeline, ends, frames=frames, label=row, batch=batch, progress=bar, on_step=on_step))
    settings = {"command": "interpolate", **pipeline.record, **pipeline.notes, **kernels.note()}
    record = {**settings, "classes": chosen, "frames": frames, "ends": names}
    row_names = [pipeline.model.label_name(row) for row in rows if row is not None]
    return Interpolation(torch.stack(made).numpy(), chosen, (names[0], names[1]), record, row_names, pipeline.text())


def arc(
    pipeline: Pipeline,
    ends: tuple[Tensor, Tensor],
    *,
    frames: int = 9,
    label: int | None = None,
    batch: int | None = None,
    progress: NoProgress | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Makes images on the arc between two latents (DDIM, Appendix D.5).

    Args:
        pipeline: A pipeline with the solver "ddim" and eta 0.
        ends: The two latents, [1, C, H, W] each.
        frames: Number of images, both ends included; at least 2.
        label: The class of all images; None without classes.
        batch: Images at once; by default what fits into memory.
        progress: Advanced by one for each image, in parts.
        on_step: Called after each step.

    Returns:
        uint8 [frames, H, W, C], evenly spaced by angle.
    """
    if frames < 2:
        raise ConfigError("frames", f"{frames} is too few: expected at least 2, the two ends")
    way = torch.cat([slerp(ends[0], ends[1], k / (frames - 1)) for k in range(frames)])
    made = []
    for part in way.split(pipeline.batch_size(batch)):
        labels = None if label is None else [label] * len(part)
        noise = NoiseSource(0, range(len(part)))  # no deterministic step draws from it
        x = pipeline.from_noise(noise, labels, x_T=part, on_step=on_step, progress=progress)
        made.append(to_uint8(x.float()).cpu())
    return torch.cat(made)


def check_absent(folder: Path, overwrite: bool) -> None:
    """Raises FileExistsError if the folder holds an interpolation that may not be replaced."""
    if (folder / GRID).exists() and not overwrite:
        raise FileExistsError(f"{folder / GRID} already exists: choose another folder, or pass overwrite=True")


def _seed_ends(pipeline: Pipeline, seeds: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The starting noise of image 0 of each seed."""
    a, b = (
        NoiseSource(seed, [0]).normal(pipeline.shape, step=0, purpose="x_T", device=pipeline.device)
        for seed in seeds or ()
    )
    return a, b


def _image_ends(pipeline: Pipeline, dataset: Any, row: int | None) -> tuple[Tensor, Tensor]:
    """The latents of two images, which depend on the class."""
    classes = None if row is None else [row, row]
    found = latents.encode(pipeline, dataset, classes=classes, progress=False).latents.to(pipeline.device)
    return found[:1], found[1:]
