"""`undiffuse restore`: images from smaller or blurred ones."""

from __future__ import annotations

import argparse

from torch import Tensor

from undiffuse.cli.edits import Given, Heard, Result, mean_square, method_settings, produce, sample_observed, sampler_of
from undiffuse.editing import Blur, Downsampling, Operator
from undiffuse.noise import NoiseSource
from undiffuse.pixels import from_uint8, to_uint8


def run(args: argparse.Namespace) -> int:
    """The command."""
    settings = method_settings(args)
    operator: Operator = Blur(args.deblur) if args.upscale is None else Downsampling(args.upscale)
    sampler = sampler_of(args)
    height, width = sampler.shape[1:]
    size = None
    if args.upscale is not None:
        if height % args.upscale or width % args.upscale:
            raise ValueError(
                f"--upscale {args.upscale} does not divide the model's images of {height}x{width} (height x width)"
            )
        size = None if args.degrade else (height // args.upscale, width // args.upscale)
    given = Given.of_args(args, sampler, size)
    if size is not None and args.fit is None:
        check_sizes(given, size, args.upscale)

    def observed(x0: Tensor) -> Tensor:
        """The images as they are given to the method, in 8 bits."""
        return from_uint8(to_uint8(operator(x0)), x0.device) if args.degrade else x0

    def seen(x0: Tensor) -> Tensor:
        y = observed(x0)
        factor = args.upscale or 1
        return y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    def make(x0: Tensor, noise: NoiseSource, labels: list[int] | None, heard: Heard) -> Result:
        y = observed(x0)
        x = sample_observed(sampler, settings, operator, y, noise, labels, heard).clamp(-1, 1)
        again = "the results, made smaller again, differ by" if args.upscale else "the results, blurred, differ by"
        errors = {again: mean_square(operator(x) - y)}
        if args.degrade:
            errors["the results differ from the whole images by"] = mean_square(x - x0)
            errors["what they were made from did by"] = mean_square(seen(x0) - x0)
        return Result(x, errors)

    task = {"upscale": args.upscale} if args.upscale else {"deblur": args.deblur}
    record = {**settings, **task, "degrade": args.degrade}
    text = f"{settings['method']}, " + (f"{args.upscale} times larger" if args.upscale else f"blur {args.deblur:g}")
    whole = size is None and not args.degrade  # what was read is what was seen
    produce(args, sampler, given, make, None if whole else seen, record, text)
    return 0


def check_sizes(given: Given, size: tuple[int, int], factor: int) -> None:
    """ValueError unless the images are of the size (height, width) that is enlarged: others would be resized first."""
    source = given.dataset.source
    for i in range(len(source)):
        width, height = source.stored_size(i)
        if (height, width) != size:
            raise ValueError(
                f"{source.name(i)} is {width}x{height} (width x height), but what the model enlarges {factor} times is "
                f"{size[1]}x{size[0]}: give --degrade if they are whole and to be made smaller first, or --fit to "
                "bring them to that size"
            )
