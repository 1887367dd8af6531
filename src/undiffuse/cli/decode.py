"""`undiffuse decode`: latents back to images, under their own class or another."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli import latents, writing
from undiffuse.cli.console import Progress, duration, say
from undiffuse.cli.sampler import Sampler, Settings, choose_classes, class_names
from undiffuse.noise import NoiseSource
from undiffuse.pictures import save_png
from undiffuse.pixels import to_uint8


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    stored = latents.read(args.latents)
    record = {**stored.about["record"], **stored.about["notes"]}
    sampler = Sampler.load(Settings.of_record(record, args.model), args.device)
    sampler.check_identity(record)
    labels = None if stored.labels is None else stored.labels.tolist()
    given = choose_classes(sampler.model, args.classes, default=None)
    if given is not None:
        if len(given) not in (1, len(stored)):
            raise ValueError(f"--class takes one class, or one for each of the {len(stored)} images; got {len(given)}")
        labels = given * len(stored) if len(given) == 1 else given
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
