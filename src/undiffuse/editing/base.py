"""Images in, edited images out: what inpainting, restoring, varying and translating share."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undiffuse.data import ImageDataset
from undiffuse.distributed import Job, join
from undiffuse.editing.methods import StepCallback
from undiffuse.kernels import Plan, planned
from undiffuse.noise import NoiseSource
from undiffuse.pictures import SampleWriter, draw_grid, read_samples, save_png
from undiffuse.pictures.arrays import as_picture
from undiffuse.pictures.names import output_names as names_of_outputs
from undiffuse.pictures.units import check_format, default_format, preview
from undiffuse.pictures.writer import FORMATS
from undiffuse.pipelines import Pipeline, grids
from undiffuse.pipelines.classes import choose_classes, class_names
from undiffuse.pipelines.inputs import Images, file_of, labels_of, model_images, open_images
from undiffuse.pipelines.run import recorded_kernels
from undiffuse.pixels import to_uint8, to_units
from undiffuse.sampling import Step
from undiffuse.util.errors import ConfigError
from undiffuse.util.launch import Launch
from undiffuse.util.progress import NoProgress, progress_of
from undiffuse.util.text import count_of, duration, join_names

__all__ = ["EditInputs", "EditOptions", "EditResult", "Edited", "edit", "output_names"]

GRID = "grid.png"
MOST_SHOWN = 10  # images side by side on the page


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """The keyword arguments that all edits share.

    Attributes:
        classes: The class of all images, by name or number; by default the data's labels, or for each picture the class
            in its record, or the class its folder is named after.
        count: Edit at most this many images, evenly spaced over the data.
        variants: Results for each image, each with noise of its own.
        seed: Seed of the noise.
        labels, fit, on_broken: See `undiffuse.pipelines.inputs.open_images`.
        out: A folder for the results, which have the names of the images, and a page with before and after. The same
            edit again makes only what is missing. None keeps the results in memory.
        format: Of the files in `out`, as in `pipelines.run.SamplingRun`.
        overwrite: Whether to remove results of another edit in `out`.
        batch: Images at once; by default what fits into memory.
        progress: Whether to show a progress bar; or what counts the images instead.
        report: Receives lines on what was done.
        on_step: Called after each step with its `Step`.
    """

    classes: Any = None
    count: int | None = None
    variants: int = 1
    seed: int = 0
    labels: str = "auto"
    fit: str | None = None
    on_broken: str = "refuse"
    out: str | Path | None = None
    format: Any = None
    overwrite: bool = False
    batch: int | None = None
    progress: bool | NoProgress = True
    report: Callable[[str], None] | None = None
    on_step: StepCallback | None = None

    def __post_init__(self) -> None:
        if self.variants < 1:
            raise ConfigError("variants", f"{self.variants} is not possible; expected at least 1")
        if self.format not in (None, *FORMATS):
            raise ConfigError("format", f"{self.format!r} is not possible; expected {join_names(FORMATS)}")


@dataclass(frozen=True)
class EditInputs:
    """The images to edit.

    Attributes:
        dataset: The images.
        labels: The class of each; None without classes.
        chosen: The classes that were given for all images; None if each has its own.
    """

    dataset: ImageDataset
    labels: list[int] | None
    chosen: list[int] | None

    @classmethod
    def open(
        cls, pipeline: Pipeline, images: Images, options: EditOptions, size: tuple[int, int] | None = None
    ) -> EditInputs:
        """Opens the images and finds their classes.

        Args:
            pipeline: The pipeline that edits them.
            images: What `open_images` takes.
            options: The shared arguments.
            size: (height, width) of the images if it is not the model's.

        Raises:
            ConfigError: The class of some image is unknown ("classes").
        """
        chosen = choose_classes(pipeline, options.classes) if options.classes is not None else None
        dataset = open_images(
            images, pipeline.model, labels=options.labels if chosen is None else "none", size=size, fit=options.fit,
            on_broken=options.on_broken, count=options.count,
        )  # fmt: skip
        labels = labels_of(dataset, pipeline.model, chosen)
        if pipeline.targets:
            names = ", ".join(name for guide in pipeline.targets for name in guide.names)
            raise ConfigError("classifier", f"guides towards numbers ({names}), which only sampling takes")
        if labels is None and pipeline.classifier is not None:
            if chosen is None or len(chosen) != 1:
                raise ConfigError("classes", "missing; guidance by a classifier needs one class for all images")
            labels = chosen * len(dataset)
        return cls(dataset, labels, chosen)

    def __len__(self) -> int:
        return len(self.dataset)

    def labels_at(self, numbers: Sequence[int]) -> list[int] | None:
        """Returns the classes of some images."""
        return None if self.labels is None else [self.labels[i] for i in numbers]


@dataclass(frozen=True)
class EditResult:
    """One edited batch.

    Attributes:
        x: Images [B, C, H, W] in [-1, 1].
        errors: Mean squares [B] by what they are of.
    """

    x: Tensor
    errors: Mapping[str, Tensor] = field(default_factory=dict)


EditFn = Callable[[Tensor, NoiseSource, "list[int] | None", "list[int]", StepCallback], EditResult]
"""(images as read [B, C, H, W], noise, classes, numbers of the images, a callback for each step) -> results."""


@dataclass(frozen=True)
class Edited:
    """The results of an edit.

    Attributes:
        labels: The class of each result; None without classes.
        names: The file name of each result.
        errors: Root mean square errors in 8-bit levels, by what they are of, over the results made now.
        page: The images before and after.
        folder: Where the results are on disk; None if they are only in memory.
        kept: The results in memory, uint8 [N, H, W, C]; None if they are on disk.
    """

    labels: list[int] | None
    names: list[str]
    errors: dict[str, float]
    page: Image.Image = field(repr=False)
    folder: Path | None
    kept: np.ndarray | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> np.ndarray:
        """The results, uint8 [N, H, W, C], the variants of an image one after the other."""
        if self.kept is not None or self.folder is None:
            return self.kept if self.kept is not None else np.empty((0, 0, 0, 0), np.uint8)
        return read_samples(self.folder).images

    def pil(self) -> list[Image.Image]:
        """Returns the results as PIL images."""
        return [as_picture(image) for image in self.images]


def edit(
    pipeline: Pipeline,
    inputs: EditInputs,
    make: EditFn,
    options: EditOptions,
    *,
    command: str,
    record: Mapping[str, Any],
    text: str,
    seen: Callable[[Tensor, list[int]], Tensor] | None = None,
    target: int | None = None,
) -> Edited:
    """Edits images in batches, into a folder or in memory.

    Processes that torchrun or srun started share the images if they go into a folder.

    Args:
        pipeline: What makes the results.
        inputs: The images.
        make: Edits one batch.
        options: The shared arguments.
        command: The name of the edit in records.
        record: What decides the results besides the pipeline.
        text: The same in a few words.
        seen: Returns what the results were made from, for the page, from images as read and their numbers; None if
            that is the images themselves.
        target: The class of all results; by default those of the images.

    Raises:
        FileExistsError: The folder holds files that no edit wrote.
        ValueError: The folder belongs to another edit.
    """
    begin, dataset, variants = time.monotonic(), inputs.dataset, options.variants
    total, names = len(inputs) * variants, output_names(dataset, variants)
    labels = None if inputs.labels is None else [target if target is not None else k for k in inputs.labels]
    run = {
        **pipeline.record, **record, "command": command, "seed": options.seed, "variants": variants,
        "classes": inputs.chosen, "labels": None if inputs.labels is None or inputs.chosen else "of the images",
        "data": dataset.source.fingerprint, "prepared": {"fit": dataset.config.fit, "size": list(dataset.shape)},
    }  # fmt: skip
    folder, writer = None if options.out is None else Path(options.out), None
    made: list[Tensor] = []
    squares: dict[str, dict[int, float]] = {}
    with join() if folder is not None else nullcontext(Job(Launch())) as job, ExitStack() as stack:
        if folder is not None:
            stack.enter_context(job.only_user(folder, f"running {command}"))
            form = default_format(pipeline.shape[0]) if options.format is None else options.format
            check_format(form, pipeline.shape[0])
            writer = job.main_first(lambda main: grids.open_writer(
                folder, form, options.overwrite and main, (GRID,), run=run, notes=pipeline.notes,
                label_names=class_names(pipeline), names=names, value_range=pipeline.model.value_range,
            ))  # fmt: skip
            names = writer.names or names
        todo = list(range(total)) if writer is None else writer.missing(total)
        kernels = Plan(recorded=None if writer is None else job.broadcast_json(recorded_kernels(writer)))
        with progress_of(options.progress, command, len(todo), "images") as bar, planned(kernels):
            for indices, shared in job.shared(todo, pipeline.batch_size(options.batch), bar):
                numbers = [index // variants for index in indices]

                def on_step(step: Step, count: int = len(indices), shared: NoProgress = shared) -> None:
                    shared.advance(count / step.total)
                    if options.on_step is not None:
                        options.on_step(step)

                x0 = model_images(dataset, numbers, pipeline.device)
                result = make(x0, NoiseSource(options.seed, indices), inputs.labels_at(numbers), numbers, on_step)
                for name, values in result.errors.items():
                    squares.setdefault(name, {}).update(zip(indices, values.double().cpu().tolist(), strict=True))
                units = writer is not None and writer.in_units
                x = result.x.float()
                pixels = to_units(x, pipeline.model.value_range) if units else to_uint8(x).cpu()
                if writer is None:
                    made.append(pixels)
                else:
                    _write(writer, dataset, {**pipeline.notes, **kernels.note()}, indices, numbers, pixels, labels)
        off = _errors(job.gather_json({name: list(values.items()) for name, values in squares.items()}))
        kept = None if writer is not None else torch.cat(made).numpy()

        def finish() -> Image.Image:
            shown = min(len(inputs), MOST_SHOWN) * variants
            if writer is None or folder is None:
                assert kept is not None
                return _page(pipeline, inputs, kept[:shown], variants, seen, text)
            writer.finish(total)
            first = grids.first_images(folder, options.seed, shown)
            page = _page(pipeline, inputs, first, variants, seen, text)
            save_png(folder / GRID, page, {**run, **pipeline.notes, **kernels.note()}, overwrite=True)
            return page

        page = job.main_first(lambda main: finish() if main else Image.open(str(folder / GRID)))  # type: ignore[operator]
        if options.report is not None and job.is_main:
            done = f"{count_of(len(todo), 'image')} made" if todo else "all images already exist"
            seconds = duration(time.monotonic() - begin)
            options.report(f"{done} in {seconds} on {pipeline.device.type}: {text}, {pipeline.text()}")
            if folder is not None:
                options.report(f"  images  {folder}\n  grid    {folder / GRID}")
            for name, levels in off.items():
                options.report(f"  {name}: {error_text(levels)}")
    each = None if labels is None else [labels[i // variants] for i in range(total)]
    return Edited(each, names, off, page, folder, kept)


def _errors(found: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> dict[str, float]:
    """Root mean square errors in 8-bit levels, from what each process has: (number, mean square) by name."""
    merged: dict[str, dict[float, float]] = {}
    for part in found:
        for name, pairs in part.items():
            merged.setdefault(name, {}).update((number, square) for number, square in pairs)
    values = {name: [squares[k] for k in sorted(squares)] for name, squares in merged.items()}
    return {name: 127.5 * math.sqrt(float(torch.tensor(v, dtype=torch.float64).mean())) for name, v in values.items()}


def output_names(dataset: ImageDataset, variants: int = 1) -> list[str]:
    """Names the results of an edit as the images are named, see `undiffuse.pictures.names.output_names`.

    Sub-folders are kept; of single files what their folders have in common is left out.

    Args:
        dataset: The images.
        variants: Results for each image; of several, "_1", "_2"... is put behind the name.

    Returns:
        Relative paths, the variants of an image one after the other.
    """
    source = dataset.source
    names = [source.name(i) for i in range(len(source))]
    files = [file_of(source, i) for i in range(len(source))]
    if all(file is not None and str(file) == str(Path(name)) for file, name in zip(files, names, strict=True)):
        paths = [os.path.abspath(name) for name in names]  # single files, whose names lead there from here
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    stems = [name.removesuffix(".png") for name in names_of_outputs(names)]
    if variants == 1:
        return [f"{stem}.png" for stem in stems]
    return [f"{stem}_{k}.png" for stem in stems for k in range(1, variants + 1)]


def error_text(levels: float) -> str:
    """Formats a root mean square error in 8-bit levels, with its peak signal-to-noise ratio."""
    decibels = f", PSNR {20 * math.log10(255 / levels):.1f} dB" if levels > 0 else ""
    return f"{levels:.2f} of 255 (root mean square){decibels}"


def _write(
    writer: SampleWriter,
    dataset: ImageDataset,
    notes: Mapping[str, Any],
    indices: Sequence[int],
    numbers: Sequence[int],
    pixels: Tensor,
    labels: Sequence[int] | None,
) -> None:
    """Puts a batch on disk; the record of each result names its image."""
    if writer.format == "npz":
        writer.write(indices, pixels, None if labels is None else [labels[i] for i in numbers])
        return
    for k, (index, number) in enumerate(zip(indices, numbers, strict=True)):
        writer.notes = {**notes, "source": dataset.source.name(number)}
        writer.write([index], pixels[k : k + 1], None if labels is None else [labels[number]])


def _page(
    pipeline: Pipeline,
    inputs: EditInputs,
    results: np.ndarray,
    variants: int,
    seen: Callable[[Tensor, list[int]], Tensor] | None,
    text: str,
) -> Image.Image:
    """A column for each image, under its name and class: as it was read, as it was seen, and its results."""
    shown = min(len(inputs), MOST_SHOWN)
    numbers = list(range(shown))
    x0 = model_images(inputs.dataset, numbers, "cpu")
    each = min(variants, MOST_SHOWN)
    before = [] if x0.shape[-2:] != pipeline.shape[1:] else [to_uint8(x0).numpy()]
    heads = ["before"] * len(before)
    if seen is not None:
        before.append(to_uint8(seen(x0, numbers)).numpy())
        heads.append("seen")
    after = [results[k::variants] for k in range(each)]
    heads += ["after", *(f"after {k}" for k in range(2, each + 1))]
    title = count_of(len(inputs), "image") + (f", the first {shown}" if shown < len(inputs) else "")
    names, classes = [inputs.dataset.source.name(i) for i in numbers], class_names(pipeline)
    columns = [PurePosixPath(name).name for name in names]
    if inputs.labels is not None and classes is not None:
        columns = [f"{name} ({classes[inputs.labels[i]]})" for i, name in enumerate(columns)]
    return draw_grid(
        np.concatenate([*map(preview, before), *map(preview, after)]), shown, row_labels=heads, column_labels=columns,
        title=title, caption=f"{text}, {pipeline.text()}",
    )  # fmt: skip
