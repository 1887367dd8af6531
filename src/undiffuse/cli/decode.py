"""`undiffuse decode`: latents back to images, under their own class or another."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from undiffuse.cli.console import duration, say
from undiffuse.noise import NoiseSource
from undiffuse.pictures import save_png
from undiffuse.pipelines import grids as writing
from undiffuse.pipelines import latents
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, choose_classes, class_names
from undiffuse.pixels import to_uint8
from undiffuse.util.progress import Progress


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    stored = latents.read(args.latents)
    record = {**stored.about["record"], **stored.about["notes"]}
    where = f"the record in {args.latents}"
    sampler = Pipeline.load(SamplerConfig.of_record(record, args.model, where=where), args.device)
    sampler.check_identity(record, where)
    if stored.latents.shape[1:] != sampler.shape:
        sizes = ["x".join(map(str, shape)) for shape in (stored.latents.shape[1:], sampler.shape)]
        raise ValueError(f"{args.latents} holds latents of {sizes[0]}, but the model makes images of {sizes[1]}")
    labels = None if stored.labels is None else stored.labels.tolist()
    given = choose_classes(sampler.model, args.classes, default=None)
    if given is not None:
        if len(given) not in (1, len(stored)):
            raise ValueError(f"--class takes one class, or one for each of the {len(stored)} images; got {len(given)}")
        labels = given * len(stored) if len(given) == 1 else given
    _check_labels(labels, sampler.model.num_classes, args.latents)
    folder = Path(args.out)
    # No noise is drawn on the way; the seed is part of file names only.
    run_record = {**sampler.record, "command": "decode", "seed": 0, "latents": stored.digest, "told": given}
    notes = {**sampler.notes, "latents_file": str(args.latents)}
    names = class_names(sampler)
    writer = writing.open_writer(
        folder, args.format, args.overwrite, ("grid.png",), run=run_record, notes=notes, label_names=names
    )
    todo = writer.missing(len(stored))
    size = sampler.batch_size(args.batch)
    with Progress("decoding", len(todo), "images") as progress:
        for start in range(0, len(todo), size):
            indices = todo[start : start + size]
            classes = None if labels is None else [labels[i] for i in indices]
            x_T = stored.latents[indices].to(sampler.device)
            x = sampler.steps_of(NoiseSource(0, indices), classes, x_T=x_T, progress=progress)
            writer.write(indices, to_uint8(x.float()).cpu(), classes)
    result = writer.finish(len(stored))
    shown = writing.grid_count(len(stored), None)
    title = f"{len(stored):,} decoded images" + (f", the first {shown}" if shown < len(stored) else "")
    grid = writing.class_grid(writing.first_images(folder, 0, shown), None, names, title, sampler.text())
    save_png(folder / "grid.png", grid, {**run_record, **notes}, overwrite=True)
    said = f"{len(todo):,} images decoded" if todo else "all images were there already"
    say(f"{said} in {duration(time.monotonic() - begin)}: {sampler.text()}")
    say(f"  images  {result}\n  grid    {folder / 'grid.png'}")
    return 0


def _check_labels(labels: Sequence[int] | None, classes: int | None, file: str) -> None:
    """ValueError unless the images have labels if and only if the model is told classes, and such as it has."""
    if classes is None:
        if labels is not None:
            raise ValueError(f"{file} has labels, but the model has no classes")
    elif labels is None:
        raise ValueError(f"{file} has no labels, and the model is told a class: give --class")
    elif min(labels) < 0 or max(labels) >= classes:
        raise ValueError(
            f"{file} has labels {min(labels)} to {max(labels)}, but the model has classes 0 to {classes - 1}"
        )
