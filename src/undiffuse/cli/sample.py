"""`undiffuse sample`: images from a model, streamed to disk, continued where it was stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from undiffuse.cli.console import fields, say
from undiffuse.cli.job import Job
from undiffuse.cli.low_res import LowRes
from undiffuse.cli.producing import Run, produce
from undiffuse.cli.sampler import Sampler, Settings, class_names, classes_to_guide

COUNT = 20


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.from_record is not None:
        from undiffuse.cli.regenerate import regenerate

        return regenerate(args)
    if args.upsampler is not None:
        from undiffuse.cli.cascade import cascade

        return cascade(args)
    for name in ("upsampler_solver", "upsampler_steps"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of an upsampler: give --upsampler, or leave it out")
    sampler = Sampler.load(Settings.of_args(args), args.device)
    if "measured" in sampler.notes:
        say(fields([("budget", sampler.notes["measured"])]))
    for difference in sampler.model.differences:
        say(f"note: otherwise than in diffusers: {difference}")
    low = LowRes.of_args(args, sampler.model)
    classes = classes_to_guide(sampler, args.classes) if args.classes or low is None or low.labels is None else None
    record = {"command": "sample", "seed": args.seed, **sampler.record, "classes": listed(classes, sampler)}
    if low is not None:
        record["low_res"] = low.fingerprint
    order = Run(
        job=Job(sampler, args.seed, classes, low),
        folder=Path(args.out or "samples"),
        count=args.count or (len(low) if low is not None else COUNT),
        format=args.format,
        names=class_names(sampler),
        record=record,
        notes={**sampler.notes, **({"low_res_data": args.low_res} if low else {})},
        batch=args.batch,
        overwrite=args.overwrite,
        animation=args.animation,
    )
    produce(order, order.open())
    return 0


def listed(classes: list[int] | None, sampler: Sampler) -> list[int] | str | None:
    """A run's classes as its record has them: "all" where it cycles through every one."""
    names = class_names(sampler)
    return "all" if names is not None and classes == list(range(len(names))) else classes
