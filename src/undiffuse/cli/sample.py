"""`undiffuse sample`: images from a model, streamed to disk, continued where it was stopped."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.cli import writing
from undiffuse.cli.console import Progress, duration, say
from undiffuse.cli.low_res import LowRes
from undiffuse.cli.sampler import Sampler, Settings, class_names, classes_to_guide
from undiffuse.noise import NoiseSource
from undiffuse.pictures import save_animation, save_png, spaced
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step

FRAMES = 24
GRID = "grid.png"
COUNT = 20


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.from_record is not None:
        from undiffuse.cli.regenerate import regenerate

        return regenerate(args)
    begin = time.monotonic()
    sampler = Sampler.load(Settings.of_args(args), args.device)
    low = LowRes.of_args(args, sampler.model)
    classes = classes_to_guide(sampler, args.classes) if args.classes or low is None or low.labels is None else None
    count = args.count or (len(low) if low is not None else COUNT)
    folder = Path(args.out or "samples")
    every = class_names(sampler) is not None and classes == list(range(len(class_names(sampler) or ())))
    run_record = {"command": "sample", "seed": args.seed, **sampler.record, "classes": "all" if every else classes}
    if low is not None:
        run_record["low_res"] = low.fingerprint
    notes = {**sampler.notes, **({"low_res_data": args.low_res} if low else {})}
    writer = writing.open_writer(
        folder, args.format, args.overwrite, (GRID, "path.gif", "path.apng"),
        run=run_record, notes=notes, label_names=class_names(sampler),
    )  # fmt: skip

    job = Job(sampler, args.seed, classes, low)
    shown = writing.grid_count(count, classes)
    path = folder / f"path.{args.animation}" if args.animation else None
    missing = writer.missing(count)
    redone = range(shown) if path is not None and not path.exists() else ()
    todo = sorted({*missing, *redone})
    frames = Frames(shown if redone else 0, sampler.chain.steps)
    size = sampler.batch_size(args.batch)
    with Progress("sampling", len(todo), "images") as progress:
        for start in range(0, len(todo), size):
            indices = todo[start : start + size]
            images = job.make(indices, progress, frames)
            writer.write(indices, images, job.labels(indices))
    result = writer.finish(count)

    record = {**run_record, **notes, "images": [0, shown - 1]}
    grid = writing.class_grid(
        writing.first_images(folder, args.seed, shown), classes, class_names(sampler),
        title=f"{count:,} samples" if shown == count else f"The first {shown} of {count:,} samples",
        caption=f"{Path(args.model).name}, {sampler.text()}, seed {args.seed}",
    )  # fmt: skip
    save_png(folder / GRID, grid, record, overwrite=True)
    if path is not None and redone:
        columns = len(classes) if classes and 1 < len(classes) <= writing.MOST_COLUMNS else None
        scale = max(1, 96 // max(sampler.shape[1:]))
        save_animation(path, frames.pictures(), columns=columns, scale=scale, record=record, overwrite=True)

    made = f"{len(missing):,} images made" if missing else "all images were there already"
    kept = f" ({count - len(missing):,} were there already)" if missing and len(missing) < count else ""
    say(f"{made}{kept} in {duration(time.monotonic() - begin)} on {sampler.device.type}: {sampler.text()}")
    say(f"  images  {result}")
    say(f"  grid    {folder / GRID}")
    if path is not None:
        say(f"  path    {path}")
    return 0


class Frames:
    """The denoising path of a run's first images, as it is seen on the way."""

    def __init__(self, count: int, steps: int) -> None:
        self.count = count
        self.kept = spaced(steps, FRAMES)
        self._images: dict[int, list[np.ndarray]] = {}

    def see(self, indices: Sequence[int], step: Step) -> None:
        """Keep what a step shows of the images that belong to the animation."""
        wanted = [k for k, index in enumerate(indices) if index < self.count]
        if step.index in self.kept and wanted:
            pixels = to_uint8(step.x[wanted].float()).cpu().numpy()
            for k, image in zip(wanted, pixels, strict=True):
                self._images.setdefault(indices[k], []).append(image)

    def pictures(self) -> list[np.ndarray]:
        """One batch uint8 [count, H, W, C] a frame."""
        return [np.stack([self._images[i][f] for i in range(self.count)]) for f in range(len(self.kept))]


class Job:
    """How image number i of a run is made: its class, its noise, its low-resolution image."""

    def __init__(self, sampler: Sampler, seed: int, classes: Sequence[int] | None, low: LowRes | None = None) -> None:
        self.sampler, self.seed, self.classes, self.low = sampler, seed, classes, low

    def labels(self, indices: Sequence[int]) -> list[int] | None:
        """The classes of some images, None without classes."""
        if self.classes is not None:
            return [self.classes[i % len(self.classes)] for i in indices]
        return None if self.low is None else self.low.labels_of(indices)

    def make(self, indices: Sequence[int], progress: Progress | None = None, frames: Frames | None = None) -> Tensor:
        """Images uint8 [B, H, W, C] on the CPU."""
        labels: Any = self.labels(indices)
        low = None if self.low is None else self.low.images_of(indices)

        def on_step(step: Step) -> None:
            if frames is not None and frames.count:
                frames.see(indices, step)

        x = self.sampler.steps_of(NoiseSource(self.seed, indices), labels, low, on_step=on_step, progress=progress)
        return to_uint8(x.to(torch.float32)).cpu()
