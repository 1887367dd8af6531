"""`undiffuse sample`: samples images from a model, batch by batch, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path

from undiffuse.cli.console import fields, say
from undiffuse.cli.options import SHIPPED, given_settings, sampler_config
from undiffuse.config import SamplerConfig
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.cascade import Cascade, run_cascade
from undiffuse.pipelines.low_res import LowRes
from undiffuse.pipelines.record import ROUNDING, regenerate
from undiffuse.pipelines.run import SamplingRun
from undiffuse.util.errors import ConfigError
from undiffuse.util.launch import is_main_process


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.from_record is not None:
        return _regenerate(args) if is_main_process() else 0
    out = {"count": args.count, "classes": args.classes, "seed": args.seed, "format": args.format}
    out |= {"animation": args.animation, "batch": args.batch, "overwrite": args.overwrite}
    folder, config = Path(args.out or "samples"), sampler_config(args)
    if args.upsampler is not None:
        if args.low_res is not None:
            raise ConfigError("low_res", "cannot be combined with `upsampler`, which enlarges new samples: omit one")
        upsampler = SamplerConfig(model=args.upsampler, solver=args.upsampler_solver, steps=args.upsampler_steps)
        run_cascade(Cascade.load(config, upsampler, args.device, args.low_size), folder, **out, report=say)
        return 0
    for name in ("upsampler_solver", "upsampler_steps"):
        if getattr(args, name) is not None:
            raise ConfigError(name, "has no effect without `upsampler`")
    pipeline = Pipeline.load(config, args.device, keep_weights=False)
    if "measured" in pipeline.notes:
        say(fields([("budget", pipeline.notes["measured"])]))
    for difference in pipeline.model.differences:
        say(f"note: this differs from diffusers: {difference}")
    low = LowRes.open(pipeline.model, args.low_res, args.low_size, labelled=not args.classes)
    notes = {"low_res_data": args.low_res} if low else {}
    SamplingRun.of(pipeline, folder, low=low, notes=notes, **out).run(report=say)
    return 0


def _regenerate(args: argparse.Namespace) -> int:
    """Makes the image of a file again and compares; returns 0 if all pixels agree up to rounding, else 1."""
    for name in given_settings(args):
        if name not in ("model", "classifier", "autoguide"):
            raise ConfigError(
                name, "cannot be combined with `from_record`, which repeats the settings of the record: omit it"
            )
    original = Path(args.from_record)
    again = regenerate(
        original,
        model=args.model if args.model != SHIPPED else None,
        classifier=args.classifier or (),
        autoguide=args.autoguide,
        upsampler=args.upsampler,
        low_res=args.low_res,
        low_size=args.low_size,
        device=args.device,
    )
    target = Path(args.out or f"again-{original.name}")
    again.save(target, args.overwrite)
    say(f"  image {again.index} of seed {again.seed}, {again.text}")
    say(f"  written to {target}")
    for remark in again.remarks:
        say(f"  note: the record used {remark}")
    if again.difference is None:
        sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (again.image, again.original)]
        say(f"  different size: {sizes[0]} pixels; the original has {sizes[1]}")
        return 1
    if again.difference == 0:
        say("  identical to the original, pixel for pixel")
        return 0
    say(f"  {100 * again.share:.2g}% of the values differ, by at most {again.difference:.3g} of 255")
    if again.difference <= ROUNDING:
        say("  (rounding: the batch size, the device and the version of torch change the order of sums)")
        return 0
    there = f"{again.record.get('torch', '?')} on {again.record.get('device', '?')}"
    say(f"  this is more than rounding; the original was made with torch {there}")
    return 1
