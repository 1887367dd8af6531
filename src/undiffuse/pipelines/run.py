"""Resumable runs: samples into a folder as they come, the grid, and the animation of the denoising path."""

from __future__ import annotations

import math
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from undiffuse.distributed import Job, join
from undiffuse.kernels import Plan, planned
from undiffuse.pictures import SampleWriter, read_record, save_animation, save_png
from undiffuse.pictures.names import output_names
from undiffuse.pictures.stored import RUN, keeps_names
from undiffuse.pictures.units import IN_UNITS, check_format, default_format, preview_text
from undiffuse.pipelines import grids, memory
from undiffuse.pipelines.classes import class_names
from undiffuse.pipelines.conditioning import classes_of
from undiffuse.pipelines.given import GivenConditions
from undiffuse.pipelines.low_res import LowRes
from undiffuse.pipelines.pipeline import Pipeline, recorded_classes
from undiffuse.pipelines.source import Frames, SampleSource
from undiffuse.pixels import to_uint8, to_units
from undiffuse.sampling import Step
from undiffuse.util.progress import NoProgress, Progress
from undiffuse.util.text import count_of, duration, size_text

__all__ = ["SamplingRun"]

GRID = "grid.png"
COUNT = 20
_BYTES = {"both": 2, "png16": 2, "tiff": 4, "npy": 4}  # of a value; 1 in other formats
_MUCH = 100_000_000  # bytes from which the disk space is reported beforehand
_LONG = 20.0  # seconds of a whole run from which on its duration is reported beforehand

Report = Callable[[str], None]


def _silent(text: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """The first `count` images of a source, written into a folder; the same run again makes only what is missing.

    Attributes:
        source: Makes the images.
        folder: Where they go.
        count: How many.
        format: "png", "npz", "both", or in the units of the training data "png16", "tiff" or "npy"; None takes "png",
            and "tiff" for images of other than 1, 3 or 4 channels, which 8-bit PNG cannot hold.
        names: Names of the classes; None without classes.
        record: Everything that decides the images, see `pictures.SampleWriter`.
        notes: What is good to know.
        batch: Images at once; None for what fits into memory.
        overwrite: Whether samples of another run in the folder are deleted.
        animation: "gif" or "apng" for the denoising path as an animation.
        noun: What one image is called in messages and captions.
        file_names: What the files are called, one name an image; None for names made of class, seed and number.
    """

    source: SampleSource
    folder: Path
    count: int
    record: Mapping[str, Any]
    format: Any = None
    names: list[str] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    overwrite: bool = False
    animation: str | None = None
    noun: str = "sample"
    file_names: list[str] | None = None

    def __post_init__(self) -> None:
        if self.format is None:
            object.__setattr__(self, "format", default_format(self.source.pipeline.shape[0]))

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        folder: Path | str,
        *,
        count: int | None = None,
        classes: Any = None,
        seed: int = 0,
        low: LowRes | None = None,
        given: GivenConditions | None = None,
        **more: Any,
    ) -> SamplingRun:
        """Plans a run of a pipeline.

        Args:
            pipeline: What makes the images.
            folder: Where they go.
            count: How many; by default 20, or one of each low-resolution image or row of conditions.
            classes: As in `Pipeline.sample`.
            seed: Seed of the noise.
            low: The images that a super-resolution model enlarges.
            given: Other conditions; images that are made from pictures keep the names of these.
            **more: The other attributes.
        """
        open_classes = classes or low is None or low.labels is None
        chosen = classes_of(pipeline, classes or None, given) if open_classes else None
        names = class_names(pipeline)
        record = {"command": "sample", "seed": seed, **pipeline.record, "classes": recorded_classes(chosen, names)}
        if low is not None:
            record["low_res"] = low.fingerprint
        record |= {} if given is None else given.record()
        rows = 0 if given is None else len(given)
        number = count or (len(low) if low is not None else rows if rows > 1 else COUNT)
        source = SampleSource(pipeline, seed, chosen, low, given)
        notes = {**pipeline.notes, **source.notes(), **more.pop("notes", {})}
        called = None if given is None or given.names is None else [given.names[i % rows] for i in range(number)]
        return cls(
            source=source, folder=Path(folder), count=number, record=record, names=names, notes=notes,
            file_names=None if called is None else output_names(called, ""), **more,
        )  # fmt: skip

    def open(self) -> SampleWriter:
        """Claims the folder.

        Raises:
            ConfigError: The format cannot hold the images ("format").
            ValueError, FileExistsError: If it holds something else.
        """
        check_format(self.format, self.source.pipeline.shape[0])
        extra = (GRID, "path.gif", "path.apng")
        with join() as job:
            return job.main_first(lambda main: grids.open_writer(
                self.folder, self.format, self.overwrite and main, extra, run=self.record, notes=self.notes,
                label_names=self.names, value_range=self.source.pipeline.model.value_range,
                names=None if self.format == "npz" else self._file_names(),
            ))  # fmt: skip

    def _file_names(self) -> list[str] | None:
        """The names of the files, after those of condition pictures or enlarged images; None: by class and number."""
        if self.file_names is not None:
            return self.file_names
        low = self.source.low
        began_without = (self.folder / RUN).is_file() and not keeps_names(self.folder) and not self.overwrite
        return low.file_names(self.count) if isinstance(low, LowRes) and not began_without else None

    @property
    def path(self) -> Path | None:
        """The animation's file; None without one."""
        return self.folder / f"path.{self.animation}" if self.animation else None

    def run(self, writer: SampleWriter | None = None, *, report: Report = _silent, progress: bool = True) -> Path:
        """Makes what is missing, draws the grid and the animation.

        Processes that torchrun or srun started share the images in whole batches; a process that is free takes the
        next one. The images are the same for any number of processes.

        Args:
            writer: What `open` returned, if the folder is claimed already.
            report: Receives lines on the plan, the time it will take, and what was done.
            progress: Whether to show a progress bar.

        Returns:
            The npz, or the folder of PNG files.
        """
        with join() as job, job.only_user(self.folder, "sampling"):
            writer = self.open() if writer is None else writer
            return self._run(job, writer, report if job.is_main else _silent, progress)

    def _run(self, job: Job, writer: SampleWriter, report: Report, progress: bool) -> Path:
        begin, pipeline = time.monotonic(), self.source.pipeline
        shown = grids.grid_count(self.count, self.source.classes)
        missing = writer.missing(self.count)
        redone = range(shown) if self.path is not None and not self.path.exists() else ()
        todo = sorted({*missing, *redone})
        frames = Frames(shown if redone and job.is_main else 0, pipeline.path.steps)
        kernels = Plan(recorded=job.broadcast_json(recorded_kernels(writer)))
        if job.broadcast_json(bool(todo)):
            remarks = () if self.source.given is None else self.source.given.remarks
            for line in (*unit_notes(self.format, pipeline), *remarks):
                report(f"  note    {line}")
            size = max(1, min(len(todo), pipeline.batch_size(self.batch)))
            report(textwrap.fill(plan(pipeline, size), 100, initial_indent="  plan    ", subsequent_indent=" " * 10))
            space = disk(len(todo), pipeline.shape, self.format, self.folder)
            if space is not None:
                report(f"  disk    {space}")
            with Progress("sampling", len(todo), "images") if progress else NoProgress() as bar, planned(kernels):
                watch = _Watch(len(todo), bar, report, job.world_size)
                # The path of the first images is drawn by the main process, which therefore makes them.
                for indices, shared in job.shared(todo, size, bar, reserved=-(-len(redone) // size)):
                    x = self.source.make_float(indices, shared, frames, watch)
                    writer.notes = {**self.notes, **kernels.note()}
                    units = writer.in_units
                    images = to_units(x, pipeline.model.value_range) if units else to_uint8(x, self.source.rounding)
                    writer.write(indices, images, self.source.labels(indices), self.source.entries(indices))

        def finish() -> str:
            result = writer.finish(self.count)
            for text in kernels.notes:
                report(f"  note: the samples made before used {text}")
            self._draw(shown, frames if redone else None, kernels.note())
            for line in self._summary(len(missing), time.monotonic() - begin, result):
                report(line)
            return str(result)

        return Path(job.finish(finish))

    def _draw(self, shown: int, frames: Frames | None, more: Mapping[str, Any]) -> None:
        """The grid of the first images, and their animation."""
        source, pipeline = self.source, self.source.pipeline
        record = {**self.record, **self.notes, **more, "images": [0, shown - 1]}
        nouns = count_of(self.count, self.noun)
        shows = preview_text(pipeline.shape[0], pipeline.model.value_range)
        grid = grids.class_grid(
            grids.first_images(self.folder, source.seed, shown), source.classes, self.names,
            title=nouns if shown == self.count else f"The first {shown} of {nouns}",
            caption=", ".join(part for part in (Path(str(pipeline.config.model)).name, pipeline.text(),
                                                f"seed {source.seed}", shows) if part),
        )  # fmt: skip
        save_png(self.folder / GRID, grid, record, overwrite=True)
        if self.path is not None and frames is not None:
            few = source.classes and 1 < len(source.classes) <= grids.MOST_COLUMNS
            columns = len(source.classes) if few and source.classes else None
            scale = max(1, 96 // max(pipeline.shape[1:]))
            save_animation(self.path, frames.pictures(), columns=columns, scale=scale, record=record, overwrite=True)

    def _summary(self, made: int, seconds: float, result: Path) -> list[str]:
        pipeline = self.source.pipeline
        done = f"{count_of(made, 'image')} made" if made else "all images already exist"
        kept = f" ({self.count - made:,} already existed)" if made and made < self.count else ""
        lines = [f"{done}{kept} in {duration(seconds)} on {pipeline.device.type}: {pipeline.text()}"]
        lines += [f"  images  {result}", f"  grid    {self.folder / GRID}"]
        return lines + ([f"  path    {self.path}"] if self.path is not None else [])


def recorded_kernels(writer: SampleWriter) -> Any:
    """The kernels that made the samples that are there already, so that the others are rounded alike; None if there are
    none, {} if their records are older than such notes."""
    for file in writer.done().values():
        try:
            return read_record(file).get("kernels", {})
        except (OSError, SyntaxError, ValueError):  # samples in an npz have no records
            return None
    return None


def unit_notes(format: str, pipeline: Pipeline) -> list[str]:
    """Says what is good to know of a format and the values and channels of a model."""
    channels, value_range = pipeline.shape[0], pipeline.model.value_range
    if channels not in (1, 3, 4) and format == "tiff":
        return [f"images of {channels} channels are written as TIFF, because 8-bit PNG holds 1, 3 or 4"]
    if value_range is not None and format not in IN_UNITS:
        low, high = value_range
        return [f"values {low:g}..{high:g} are written as 0..255; the formats png16, tiff and npy keep them"]
    return []


class _Watch:
    """Times the first step of a run, and reports once how long all of it will take."""

    def __init__(self, images: int, progress: NoProgress, report: Report, processes: int = 1) -> None:
        self.images, self.progress, self.report, self.processes = images, progress, report, processes
        self._begin = time.monotonic()
        self._reported = False

    def __call__(self, step: Step, batch: int) -> None:
        """After every step of `batch` images at once; only the first one counts."""
        if self._reported:
            return
        if step.x.device.type == "cuda":
            torch.cuda.synchronize(step.x.device)
        self._reported = True
        seconds = time.monotonic() - self._begin
        self.progress.expect(seconds * step.total / batch / self.processes * self.images)
        line = expected_time(seconds, step.total, batch, self.images, self.processes)
        if line is not None:
            if step.x.device.type == "cuda":
                line += f"; {size_text(torch.cuda.max_memory_allocated(step.x.device))} in use at most"
            self.progress.clear()
            self.report(line)


def plan(pipeline: Pipeline, batch: int) -> str:
    """Returns what a run needs: parameters, memory of weights and activations, free memory, steps."""
    count = " + ".join(f"{net.parameters / 1e6:.3g}M" for net in pipeline.footprints)
    free = memory.free_bytes(pipeline.device)
    left = f" of {size_text(free)} free" if free is not None else ""
    needed = batch * pipeline.bytes_per_image + max(net.kernel for net in pipeline.footprints)
    return (
        f"{count} parameters, {size_text(sum(net.weights for net in pipeline.footprints))} weights; batch {batch}, "
        f"about {size_text(needed)}{left}; {pipeline.path.steps} steps"
    )


def disk(images: int, shape: tuple[int, int, int], format: str, folder: Path) -> str | None:
    """Returns how much disk space images take at most, with a warning if less is free; None if it is little.

    Args:
        images: How many.
        shape: (channels, height, width).
        format: As in `SamplingRun`.
        folder: Where they go.
    """
    needed = images * math.prod(shape) * _BYTES.get(format, 1)
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed < _MUCH and needed < free:
        return None
    text = f"up to {size_text(needed)}"
    return text if needed < free else f"{text}; only {size_text(free)} free"


def expected_time(seconds: float, steps: int, batch: int, images: int, processes: int = 1) -> str | None:
    """Returns how long a run will take if every step takes `seconds` for `batch` images; None if it is short."""
    each = seconds * steps / batch / processes
    if each * images < _LONG:
        return None
    return (
        f"  time    {seconds:.2g} s per step (measured on the first), {duration(each)} per image, "
        f"about {duration(each * images)} for {count_of(images, 'image')}"
    )
