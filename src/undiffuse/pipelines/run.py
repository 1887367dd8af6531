"""A run of samples into a folder: the plan, the images as they come, continued where it was stopped, and the grid."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from undiffuse.cli.console import duration, fields, say
from undiffuse.pictures import SampleWriter, save_animation, save_png
from undiffuse.pipelines import grids as writing
from undiffuse.pipelines import memory as budget
from undiffuse.pipelines.pipeline import Pipeline
from undiffuse.pipelines.source import Frames, SampleSource
from undiffuse.sampling import Step
from undiffuse.util.progress import Progress

GRID = "grid.png"
LONG = 20.0  # seconds of a whole run from which on it is told how long it will take


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """What is made: the first `count` images of `job`, into `folder`.

    `names`   of the classes
    `record`  what decides the images, `notes` what is good to know: see `SampleWriter`
    `what`    what the images are called in messages and captions, "samples"
    """

    job: SampleSource
    folder: Path
    count: int
    format: Any
    names: list[str] | None
    record: Mapping[str, Any]
    notes: Mapping[str, Any]
    batch: int | None = None
    overwrite: bool = False
    animation: str | None = None
    what: str = "samples"

    def open(self) -> SampleWriter:
        """Claim the folder; ValueError or FileExistsError if it holds something else."""
        extra = (GRID, "path.gif", "path.apng")
        return writing.open_writer(
            self.folder, self.format, self.overwrite, extra, run=self.record, notes=self.notes, label_names=self.names
        )

    @property
    def path(self) -> Path | None:
        """The animation's file."""
        return self.folder / f"path.{self.animation}" if self.animation else None


def produce(run: SamplingRun, writer: SampleWriter) -> Path:
    """Make what is missing of a run, tell what was done, and return where the images are."""
    begin = time.monotonic()
    job, sampler, path = run.job, run.job.sampler, run.path
    shown = writing.grid_count(run.count, job.classes)
    missing = writer.missing(run.count)
    redone = range(shown) if path is not None and not path.exists() else ()
    todo = sorted({*missing, *redone})
    frames = Frames(shown if redone else 0, sampler.chain.steps)
    if todo:
        size = min(len(todo), sampler.batch_size(run.batch))
        say(plan(sampler, size))
        with Progress("sampling", len(todo), "images") as progress:
            watch = Watch(len(todo), progress)
            for start in range(0, len(todo), size):
                indices = todo[start : start + size]
                images = job.make(indices, progress, frames, watch)
                writer.write(indices, images, job.labels(indices))
    result = writer.finish(run.count)

    record = {**run.record, **run.notes, "images": [0, shown - 1]}
    seed = job.seed
    grid = writing.class_grid(
        writing.first_images(run.folder, seed, shown), job.classes, run.names,
        title=f"{run.count:,} {run.what}" if shown == run.count else f"The first {shown} of {run.count:,} {run.what}",
        caption=f"{Path(sampler.settings.model).name}, {sampler.text()}, seed {seed}",
    )  # fmt: skip
    save_png(run.folder / GRID, grid, record, overwrite=True)
    if path is not None and redone:
        classes = job.classes
        columns = len(classes) if classes and 1 < len(classes) <= writing.MOST_COLUMNS else None
        scale = max(1, 96 // max(sampler.shape[1:]))
        save_animation(path, frames.pictures(), columns=columns, scale=scale, record=record, overwrite=True)

    made = (
        f"{len(missing):,} image{'s' if len(missing) != 1 else ''} made" if missing else "all images were there already"
    )
    kept = f" ({run.count - len(missing):,} were there already)" if missing and len(missing) < run.count else ""
    say(f"{made}{kept} in {duration(time.monotonic() - begin)} on {sampler.device.type}: {sampler.text()}")
    say(f"  images  {result}")
    say(f"  grid    {run.folder / GRID}")
    if path is not None:
        say(f"  path    {path}")
    return result


class Watch:
    """Times the first step of a run, and then says once how long all of it will take."""

    def __init__(self, images: int, progress: Progress) -> None:
        self.images, self.progress = images, progress
        self._begin = time.monotonic()
        self._told = False

    def __call__(self, step: Step, batch: int) -> None:
        """After every step of `batch` images at once; only the first one counts."""
        if self._told:
            return
        if step.x.device.type == "cuda":
            torch.cuda.synchronize(step.x.device)
        self._told = True
        line = expected(time.monotonic() - self._begin, step.total, batch, self.images)
        if line is not None:
            if step.x.device.type == "cuda":
                line += f"; {size_text(torch.cuda.max_memory_allocated(step.x.device))} in use at most"
            self.progress.clear()
            say(line)


def plan(sampler: Pipeline, batch: int) -> str:
    """What a run is going to take: parameters, memory of weights and activations, what is free."""
    count = " + ".join(f"{net.parameters / 1e6:.3g}M" for net in sampler.footprints)
    free = budget.free_bytes(sampler.device)
    left = f" of {size_text(free)} free" if free is not None else ""
    needed = batch * sampler.bytes_per_image + max(net.kernel for net in sampler.footprints)
    text = (
        f"{count} parameters, {size_text(sum(net.weights for net in sampler.footprints))} weights; batch {batch}, "
        f"about {size_text(needed)}{left}; {sampler.chain.steps} steps"
    )
    return fields([("plan  ", text)])


def expected(seconds: float, steps: int, batch: int, images: int) -> str | None:
    """How long a run will take if every step takes `seconds` for `batch` images; None where that is soon."""
    each = seconds * steps / batch
    if each * images < LONG:
        return None
    return (
        f"  time    {seconds:.2g} s a step measured on the first, {duration(each)} an image, "
        f"about {duration(each * images)} for {images:,}"
    )


def size_text(count: float) -> str:
    """2215352344 -> "2.2 GB", 50000000 -> "50 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
