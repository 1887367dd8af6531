"""`undiffuse sample`: images from a model, streamed to disk, continued where it was stopped."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli import writing
from undiffuse.cli.console import Progress, duration, say
from undiffuse.cli.job import Frames, Job
from undiffuse.cli.low_res import LowRes
from undiffuse.cli.sampler import Sampler, Settings, class_names, classes_to_guide
from undiffuse.pictures import save_animation, save_png

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

    made = (
        f"{len(missing):,} image{'s' if len(missing) != 1 else ''} made" if missing else "all images were there already"
    )
    kept = f" ({count - len(missing):,} were there already)" if missing and len(missing) < count else ""
    say(f"{made}{kept} in {duration(time.monotonic() - begin)} on {sampler.device.type}: {sampler.text()}")
    say(f"  images  {result}")
    say(f"  grid    {folder / GRID}")
    if path is not None:
        say(f"  path    {path}")
    return 0
