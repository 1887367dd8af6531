"""`undiffuse decode`: decodes latents to images, under their own class or another."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli.console import say
from undiffuse.pipelines import latents
from undiffuse.util.text import count_of, duration


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin, stored = time.monotonic(), latents.read(args.latents)
    pipeline = latents.pipeline_of(stored, model=args.model, device=args.device)
    result, made = latents.decode_into(
        args.out, pipeline, stored, classes=args.classes, format=args.format, overwrite=args.overwrite,
        batch=args.batch, notes={"latents_file": str(args.latents)},
    )  # fmt: skip
    done = f"{count_of(made, 'image')} decoded" if made else "all images already exist"
    say(f"{done} in {duration(time.monotonic() - begin)}: {pipeline.text()}")
    say(f"  images  {result}\n  grid    {Path(args.out) / latents.GRID}")
    return 0
