"""`undiffuse interpolate`: the way between two images or two seeds, through the sphere of latents."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from undiffuse.cli.console import duration, say
from undiffuse.noise import NoiseSource
from undiffuse.pictures import draw_grid, save_animation, save_png
from undiffuse.pipelines.inputs import model_images, open_images, recorded_classes
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, choose_classes
from undiffuse.pixels import to_uint8
from undiffuse.sampling import encode, slerp
from undiffuse.util.progress import Progress

GRID, MOVIE = "interpolation.png", "interpolation.gif"


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    if (args.seeds is None) == (not args.images) or (args.images and len(args.images) != 2):
        raise ValueError("give two image files, or --seeds A,B")
    if args.frames < 2:
        raise ValueError(f"--frames {args.frames}: a way has at least its two ends, so 2 or more")
    folder = Path(args.out)
    for name in (GRID, MOVIE):
        if (folder / name).exists() and not args.overwrite:
            raise FileExistsError(f"{folder / name} exists already: name another --out, or replace it with --overwrite")
    sampler = Pipeline.load(SamplerConfig.of_args(args), args.device)
    if args.classes is None and args.images and sampler.model.num_classes is not None:
        recorded = recorded_classes(args.images, sampler.model)
        if recorded is None:
            raise ValueError(
                "the model is told a class: give --class, the class of the images (several make several rows); only "
                "samples of undiffuse, whose records name a class of this model, do without"
            )
        classes: list[int] | None = list(dict.fromkeys(recorded))  # images of two classes make a row of each
    else:
        classes = choose_classes(sampler.model, args.classes)
    rows: list[int | None] = list(classes) if classes is not None else [None]
    size = sampler.batch_size(args.batch)
    weights = [k / (args.frames - 1) for k in range(args.frames)]
    pictures: list[Tensor] = []
    with Progress("interpolating", len(rows) * args.frames, "images") as progress:
        ends: tuple[Tensor, Tensor] | None = None
        for row in rows:
            if ends is None or args.images:  # an image's latent depends on the class, a seed's does not
                ends = _ends(args, sampler, row)
            way = torch.cat([slerp(ends[0], ends[1], w) for w in weights])
            for part in way.split(size):
                told = None if row is None else [row] * len(part)
                noise = NoiseSource(0, range(len(part)))  # drawn from by no deterministic step
                x = sampler.steps_of(noise, told, x_T=part, progress=progress)
                pictures.append(to_uint8(x.float()).cpu())
    images = torch.cat(pictures).numpy()
    names = [sampler.model.label_name(row) for row in rows if row is not None]
    ends_named = args.images or [f"seed {seed}" for seed in args.seeds]
    between = " to ".join(ends_named)
    record = {
        "command": "interpolate", **sampler.record, **sampler.notes, "classes": classes, "frames": args.frames,
        "ends": ends_named,
    }  # fmt: skip
    grid = draw_grid(
        images, args.frames, row_labels=names or None, column_labels=[f"{w:.2f}" for w in weights],
        title=f"From {between}", caption=f"spherical interpolation of latents, {sampler.text()}",
    )  # fmt: skip
    save_png(folder / GRID, grid, record, overwrite=True)
    # All rows move side by side, there and back.
    columns = min(len(rows), 5)
    scale = max(1, 128 // max(sampler.shape[1:]))
    there = [images[k :: args.frames] for k in range(args.frames)]
    save_animation(
        folder / MOVIE, [*there, *there[-2::-1]], columns=columns, scale=scale, frame_ms=110, hold_ms=600,
        record=record, overwrite=True,
    )  # fmt: skip
    say(f"{len(images)} images from {between} in {duration(time.monotonic() - begin)}: {sampler.text()}")
    say(f"  grid       {folder / GRID}\n  animation  {folder / MOVIE}")
    return 0


def _ends(args: argparse.Namespace, sampler: Pipeline, row: int | None) -> tuple[Tensor, Tensor]:
    """The two latents [1, C, H, W]: of the encoded images, or the starting noise of image 0 of each seed."""
    if args.seeds is not None:
        a, b = (
            NoiseSource(seed, [0]).normal(sampler.shape, step=0, purpose="x_T", device=sampler.device)
            for seed in args.seeds
        )
        return a, b
    dataset = open_images(args, args.images, sampler.model, labelled=False)
    if len(dataset) != 2:
        raise ValueError("one of the two images cannot be read")
    x0 = model_images(dataset, range(2), sampler.device)
    latents = encode(sampler.denoiser, sampler.chain, x0, cond=sampler.condition(None if row is None else [row, row]))
    return latents[:1], latents[1:]
