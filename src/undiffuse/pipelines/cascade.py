"""Samples small images and upscales them with a second model (ADM, section 4.3).

Both stages are resumable runs. The small images are in FOLDER/base as an npz in the original's layout (arr_0 uint8,
truncated to 8 bits as there; arr_1 their classes), from which the upsampler reads them. The large images are in FOLDER
as in any other run. Image i depends only on the seed and i: the base's noise equals that of a run of the base alone,
and the upsampler has its own noise stream.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from undiffuse.adapters import published
from undiffuse.config import SamplerConfig
from undiffuse.distributed import join
from undiffuse.models import split_reference
from undiffuse.pipelines.classes import choose_classes, class_names
from undiffuse.pipelines.low_res import LowRes, low_size
from undiffuse.pipelines.pipeline import Pipeline, recorded_classes
from undiffuse.pipelines.run import COUNT, Report, SamplingRun, _silent
from undiffuse.pipelines.source import FixedLowRes, SampleSource
from undiffuse.pixels import Rounding, from_uint8
from undiffuse.util.errors import ConfigError
from undiffuse.util.progress import Progress
from undiffuse.util.text import shown

__all__ = ["Cascade", "run_cascade", "upsampler_of"]

BASE = "base"  # the folder of the small images, and the key of their record
STREAM = "upsampler/"  # of the upsampler's noise
AUTO = "auto"
CUT: Rounding = "truncate"  # of the small images, on their way to the upsampler


class Cascade:
    """Two pipelines: the second one upscales the images of the first.

    Args:
        base: Makes small images from noise.
        upsampler: A super-resolution model.
        low_size: Height and width of the small images, where the upsampler's file does not say it.

    Raises:
        ValueError: The upsampler does not fit the base model.
    """

    def __init__(self, base: Pipeline, upsampler: Pipeline, low_size: Any = None) -> None:
        self.base, self.upsampler = base, upsampler
        self.size = _check_stages(base, upsampler, low_size)

    @classmethod
    def load(cls, base: SamplerConfig, upsampler: SamplerConfig, device: str = "auto", low_size: Any = None) -> Cascade:
        """Loads both stages; the upsampler is unguided, and takes clipping, precision and runtime from the base."""
        first = Pipeline.load(base, device, keep_weights=False)
        reference = upsampler.model
        if reference in (None, AUTO):
            reference = upsampler_of(str(base.model))
        second = replace(upsampler, model=reference, clip=base.clip, precision=base.precision, runtime=base.runtime)
        return cls(first, Pipeline.load(second, device, keep_weights=False), low_size)

    def small_source(self, seed: int, classes: list[int] | None) -> SampleSource:
        """Returns the source of the small images, cut to 8 bits as in the original's files."""
        return SampleSource(self.base, seed, classes, rounding=CUT)

    def check_classes(self, labelled: bool) -> None:
        """Checks that the classes of the base's images mean the same to a class-conditional upsampler.

        Args:
            labelled: Whether the base's images have classes.

        Raises:
            ValueError: If they have none, or others.
        """
        wanted = self.upsampler.model.num_classes
        if wanted is None:
            return
        base, up = self.base.config.model, self.upsampler.config.model
        if not labelled:
            raise ValueError(
                f"{up} requires the class of every image, and {base} has no classes: guide {base} by a classifier"
            )
        source = self.base.model if self.base.model.num_classes is not None else self.base.classifier
        if source is None or source.num_classes is None:
            raise ValueError(f"{up} requires the class of every image, and {base} is guided towards none")
        ours, theirs = source.labels, self.upsampler.model.labels
        if source.num_classes != wanted or (ours is not None and theirs is not None and ours != theirs):
            raise ValueError(
                f"the classes of {base} ({source.num_classes}) are not those of {up} ({wanted}): the upsampler must "
                "have been trained with the same ones"
            )


def run_cascade(
    cascade: Cascade,
    folder: Path | str,
    *,
    count: int | None = None,
    classes: Any = None,
    seed: int = 0,
    format: str = "png",
    animation: str | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    report: Report = _silent,
) -> Path:
    """Makes images with both stages into a folder; the same call again makes only what is missing.

    Args:
        cascade: The two stages. Its base may be released from memory after the first one.
        folder: Where the large images go; the small ones go into its sub-folder base.
        count: As in `SamplingRun`.
        classes: As in `SamplingRun`.
        seed: As in `SamplingRun`.
        format: As in `SamplingRun`.
        animation: As in `SamplingRun`.
        batch: As in `SamplingRun`.
        overwrite: As in `SamplingRun`.
        report: Receives lines on what is done.

    Returns:
        The npz, or the folder of PNG files.
    """
    base, upsampler, folder = cascade.base, cascade.upsampler, Path(folder)
    chosen = choose_classes(base, classes)
    cascade.check_classes(labelled=chosen is not None)
    names = class_names(base)
    shared: dict[str, Any] = {"count": count or COUNT, "names": names, "batch": batch, "overwrite": overwrite}
    about = {"command": "sample", "seed": seed}
    recorded = recorded_classes(chosen, names)
    small = SamplingRun(
        source=cascade.small_source(seed, chosen),
        folder=folder / BASE,
        format="npz",
        record={**about, **base.record, "classes": recorded, "rounding": CUT},
        notes=base.notes,
        noun="small image",
        **shared,
    )
    files = {name: value for name, value in base.notes.items() if name.endswith(("_file", "_files"))}
    large = SamplingRun(
        source=SampleSource(upsampler, seed, chosen, stream=STREAM),
        folder=folder,
        format=format,
        record={**about, **upsampler.record, "classes": recorded, BASE: {**base.record, "rounding": CUT}},
        notes={**upsampler.notes, "base_files": files},
        animation=animation,
        **shared,
    )
    with join() as job:
        report = report if job.is_main else _silent
        writer = large.open()  # fail before the first stage, which may take hours
        report(f"stage 1 of 2: {Path(str(base.config.model)).name}")
        npz = small.run(report=report)
        report(f"stage 2 of 2: {Path(str(upsampler.config.model)).name}")
        large.source.low = LowRes.of_npz(npz, cascade.size, upsampler.shape[0])
        return large.run(writer, report=report)


def source_of_record(
    record: Mapping[str, Any],
    index: int,
    seed: int,
    labels: Any,
    *,
    where: str,
    device: str,
    base: Mapping[str, Any],
    upsampler: str | None = None,
    low_size: Any = None,
) -> SampleSource:
    """Makes the small image of a cascade's record again, and returns the source of the large one.

    Args:
        record: The record of the large image, with its notes.
        index: The image's number.
        seed: Its random seed.
        labels: Returns the class of the image, given the base's pipeline.
        where: What messages call the record.
        device: As in `Pipeline.load`.
        base: Where the base's models are now, see `SamplerConfig.from_record`.
        upsampler: Where the upsampler is now.
        low_size: As in `Cascade`.

    Raises:
        ValueError: If the record is not whole, or the models are others.
    """
    recorded, files = record[BASE], record.get("base_files")
    if not isinstance(recorded, dict) or not isinstance(files, dict):
        raise ValueError(f"{where} is of a cascade, but its {BASE} and base_files are not whole")
    inner = f"the base in {where}"
    if recorded.get("rounding") != CUT:
        raise ValueError(f"{inner} has rounding = {shown(recorded.get('rounding'))}; expected {CUT}")
    small = Pipeline.from_record({**recorded, **files}, device=device, where=inner, **base)
    classes = labels(small)
    with Progress("sampling the small image", 1, "image") as progress:
        pixels = SampleSource(small, seed, classes, rounding=CUT).make([index], progress)
    named = upsampler_of(str(small.config.model)) if upsampler == AUTO else upsampler
    large = Pipeline.load(SamplerConfig.from_record(record, model=named, where=where), device)
    large.check_identity(record, where, "upsampler")
    cascade = Cascade(small, large, low_size)
    cascade.check_classes(labelled=classes is not None)
    return SampleSource(large, seed, classes, FixedLowRes(from_uint8(pixels)), stream=STREAM)


def upsampler_of(reference: str) -> str:
    """Returns the published upsampler of a published model, by name, or as a file beside the model's file.

    Raises:
        ConfigError: If there is none.
    """
    file, like = split_reference(reference)
    entry = published.ENTRIES.get(like or file) or published.of_file(file)
    found = published.upsamplers_of(entry.name) if entry is not None else []
    if len(found) != 1:
        raise ConfigError("upsampler", f"none is published for {reference}; give the name or file of one")
    beside = Path(file).parent / found[0].file
    return str(beside) if os.path.isfile(file) and beside.is_file() else found[0].name


def _check_stages(base: Pipeline, upsampler: Pipeline, given: Any = None) -> tuple[int, int]:
    """(height, width) of the small images; ValueError unless the one model enlarges the images of the other."""
    up, below = upsampler.config.model, base.config.model
    if base.model.spec.super_resolution:
        raise ValueError(f"{below} enlarges images; the model before an upsampler must make them from noise")
    if not upsampler.model.spec.super_resolution:
        raise ValueError(f"{up} does not enlarge images: an upsampler must be a super-resolution model")
    size = low_size(upsampler.model, given)
    wanted, made = (upsampler.shape[0], *size), base.shape
    if wanted != made:
        shapes = ["x".join(map(str, shape)) for shape in (wanted, made)]
        raise ValueError(f"{up} enlarges images of {shapes[0]} (channels x height x width), {below} makes {shapes[1]}")
    return size
