"""`undiffuse translate`: images carried from one class to another."""

from __future__ import annotations

import argparse

from torch import Tensor

from undiffuse.cli.edits import Given, Heard, Result, mean_square, produce
from undiffuse.cli.vary import how_far
from undiffuse.denoiser import Denoiser
from undiffuse.editing import translate
from undiffuse.guidance import Guided
from undiffuse.noise import NoiseSource
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig


def run(args: argparse.Namespace) -> int:
    """The command."""
    sampler = Pipeline.load(SamplerConfig.of_args(args), args.device)
    if sampler.model.num_classes is None:
        raise ValueError("the model has no classes to carry images between: give one that was trained with labels")
    target = sampler.model.class_index(args.to)
    steps, record, text = how_far(args, sampler)
    given = Given.of_args(args, sampler)
    plain = unguided(sampler.denoiser)

    def make(x0: Tensor, noise: NoiseSource, labels: list[int] | None, heard: Heard) -> Result:
        own, other = sampler.condition(labels), sampler.condition([target] * len(x0))
        *_, back = translate(plain, sampler.chain, noise, x0, own, own, steps=steps)
        for step in translate(
            plain, sampler.chain, noise, x0, own, other, steps=steps, decoder=sampler.denoiser, solver=sampler.solver
        ):
            heard(step)
        errors = {
            "reconstruction, there and back under the own class, is off by": mean_square(back.x - x0),
            "the results differ from the images by": mean_square(step.x - x0),
        }
        return Result(step.x, errors)

    name = sampler.model.label_name(target)
    produce(
        args, sampler, given, make, None, {**record, "to": target}, f"to {name}, {text}",
        classes=lambda labels: None if labels is None else [target] * len(labels),
    )  # fmt: skip
    return 0


def unguided(denoiser: Denoiser) -> Denoiser:
    """The denoiser within all guidance."""
    while isinstance(denoiser, Guided):
        denoiser = denoiser.denoiser
    return denoiser
