"""`undiffuse vary`: variations of images, by way of noise."""

from __future__ import annotations

import argparse
from typing import Any

from torch import Tensor

from undiffuse.cli.edits import Given, Heard, Result, mean_square, produce
from undiffuse.editing import steps_for, vary
from undiffuse.noise import NoiseSource
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig


def run(args: argparse.Namespace) -> int:
    """The command."""
    sampler = Pipeline.load(SamplerConfig.of_args(args), args.device)
    steps, record, text = how_far(args, sampler)
    given = Given.of_args(args, sampler)

    def make(x0: Tensor, noise: NoiseSource, labels: list[int] | None, heard: Heard) -> Result:
        cond = sampler.condition(labels)
        for step in vary(sampler.denoiser, sampler.chain, sampler.solver, noise, x0, steps, cond=cond):
            heard(step)
        return Result(step.x, {"the results differ from the images by": mean_square(step.x - x0)})

    produce(args, sampler, given, make, None, record, text)
    return 0


def how_far(args: argparse.Namespace, sampler: Pipeline) -> tuple[int, dict[str, Any], str]:
    """The steps that are gone, what a record says of them, and that in words: --strength or --logsnr."""
    strength = args.strength
    if strength is None and args.logsnr is None:
        strength = args.usual_strength
    steps = steps_for(sampler.chain, strength, args.logsnr)
    given = {"strength": strength} if strength is not None else {"logsnr": args.logsnr}
    text = f"strength {strength:g}" if strength is not None else f"log-SNR {args.logsnr:g}"
    return steps, {**given, "steps_gone": steps}, f"{text} ({steps} steps)"
