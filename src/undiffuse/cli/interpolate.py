"""`undiffuse interpolate`: interpolates between two images or two seeds on the sphere of latents."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli.console import say
from undiffuse.cli.options import sampler_config
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.interpolation import GRID, MOVIE, check_absent, interpolate
from undiffuse.util.text import count_of, duration


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin, folder = time.monotonic(), Path(args.out)
    if (args.seeds is None) == (not args.images) or (args.images and len(args.images) != 2):
        raise ValueError("give two image files, or --seeds A,B")
    if args.images and all(word.isdecimal() and not Path(word).exists() for word in args.images):
        raise ValueError(
            f"there are no files {' and '.join(args.images)}; did you mean --seeds {','.join(args.images)}?"
        )
    check_absent(folder, args.overwrite)
    pipeline = Pipeline.load(sampler_config(args, solver="ddim"), args.device, keep_weights=False)
    found = interpolate(
        pipeline, args.images or None, seeds=args.seeds, classes=args.classes, frames=args.frames, batch=args.batch,
        fit=args.fit, on_broken=args.on_broken,
    )  # fmt: skip
    found.save(folder, overwrite=args.overwrite)
    made = found.images.shape[0] * found.images.shape[1]
    between = " to ".join(found.ends)
    say(f"{count_of(made, 'image')} from {between} in {duration(time.monotonic() - begin)}: {pipeline.text()}")
    say(f"  grid       {folder / GRID}\n  animation  {folder / MOVIE}")
    return 0
