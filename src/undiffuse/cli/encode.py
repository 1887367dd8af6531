"""`undiffuse encode`: encodes images to latents by DDIM inversion."""

from __future__ import annotations

import argparse
import math
import time

from undiffuse.cli.console import say
from undiffuse.cli.options import sampler_config
from undiffuse.pipelines import Pipeline, latents
from undiffuse.pipelines.grids import quoted
from undiffuse.pipelines.inputs import open_images
from undiffuse.util.files import needed_text
from undiffuse.util.launch import is_main_process
from undiffuse.util.text import duration, join_names, one_line


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin, file = time.monotonic(), latents.latents_path(args.out)
    pipeline = Pipeline.load(sampler_config(args, solver="ddim"), args.device, keep_weights=False)
    labels = "none" if args.classes else args.labels
    images = open_images(
        args.images, pipeline.model, labels=labels, fit=args.fit, on_broken=args.on_broken, count=args.count
    )
    if is_main_process():  # finished batches lie beside the file until it is whole
        needed = 2 * 4 * len(images) * math.prod(pipeline.shape)
        say(f"  disk     {needed_text(needed, file)}, half of it at the end")
    stored = latents.encode(
        pipeline, images, classes=args.classes, out=file, overwrite=args.overwrite, batch=args.batch,
        report=lambda done: say(f"{done} in {duration(time.monotonic() - begin)}: {pipeline.text()}"),
    )  # fmt: skip
    say(f"  latents  {file} ({len(stored):,} x {'x'.join(map(str, pipeline.shape))})")
    if images.source.excluded:
        left = [f"{item.name} ({item.reason})" for item in images.source.excluded]
        say(f"  left out {len(left):,}: {join_names(left, 10)}")
    if args.check and is_main_process():
        errors = latents.reconstruction_errors(pipeline, stored, images, batch=args.batch)
        worst = int(errors.argmax())
        mean = float(errors.square().mean().sqrt())
        say(f"  check    the RMS error of decoding is {mean:.2f} of 255, at most {float(errors[worst]):.2f}")
        say(f"           ({one_line(images.source.name(worst))}); more --steps reduce it")
    say(f"To decode:\n  undiffuse decode {quoted(str(file))} --out decoded")
    return 0
