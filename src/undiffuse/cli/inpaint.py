"""`undiffuse inpaint`: fill a part of images."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.cli.edits import Given, Heard, Result, mean_square, method_settings, produce, sample_observed, sampler_of
from undiffuse.data import prepare
from undiffuse.editing import Mask, repaint
from undiffuse.noise import NoiseSource
from undiffuse.pictures.png import open_picture


def run(args: argparse.Namespace) -> int:
    """The command."""
    settings = method_settings(args)
    by_gradient = settings["method"] != "repaint"
    sampler = sampler_of(args)
    given = Given.of_args(args, sampler)
    mask = Mask(rectangle(args.hole, sampler.shape[1:]) if args.hole else read_mask(args.mask, given))
    filled = 100 * float((~mask.seen).float().mean())

    def make(x0: Tensor, noise: NoiseSource, labels: list[int] | None, heard: Heard) -> Result:
        errors = {}
        if by_gradient:
            x = sample_observed(sampler, settings, mask, mask(x0), noise, labels, heard)
            part = mask.seen.float().mean().to(x.device)
            errors["the known part, before it was put back, was off by"] = mean_square(mask(x) - mask(x0)) / part
        else:
            x = x0
            for step in repaint(
                sampler.denoiser, sampler.chain, sampler.solver, noise, x0, mask,
                cond=sampler.condition(labels), jump=settings["jump"], resamples=settings["resamples"],
            ):  # fmt: skip
                heard(step)
                x = step.x
        return Result(mask.merged(x0, x), errors)

    digest = hashlib.sha256(np.packbits(mask.seen.numpy()).tobytes()).hexdigest()
    record = {**settings, "mask": digest, "hole": list(args.hole) if args.hole else None}
    produce(args, sampler, given, make, mask, record, f"{settings['method']}, {filled:.3g}% filled")
    return 0


def rectangle(hole: tuple[int, int, int, int], size: tuple[int, ...]) -> Tensor:
    """What is seen [1, 1, H, W] around a hole (top, left, height, width). ValueError unless it lies in the image."""
    top, left, height, width = hole
    if top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"--hole {','.join(map(str, hole))} (top, left, height, width) reaches beyond the images of "
            f"{size[0]}x{size[1]} (height x width)"
        )
    seen = torch.ones(1, 1, *size, dtype=torch.bool)
    seen[..., top : top + height, left : left + width] = False
    return seen


def read_mask(path: str, given: Given) -> Tensor:
    """What is seen [1, 1, H, W]: where a picture is not white. One of the images' own size is prepared as they are.

    ValueError if its size is neither theirs nor the model's, or it cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    height, width, _ = given.dataset.shape
    config, source = given.dataset.config, given.dataset.source
    try:
        with open_picture(path) as picture:
            picture.load()
            if picture.size != (width, height):
                sizes = {source.stored_size(i) for i in range(len(source))}
                if sizes != {picture.size}:
                    theirs = " and ".join("x".join(map(str, size)) for size in sorted(sizes)[:3])
                    raise ValueError(
                        f"the mask {path} is {picture.width}x{picture.height} (width x height), the images are {theirs}"
                        f"{' and more' if len(sizes) > 3 else ''}, the model's {width}x{height}: give a mask of one "
                        "of these sizes, that all images have"
                    )
            pixels = prepare(picture, (height, width), 1, fit=config.fit, background=0, pad_value=0)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from error
    return torch.from_numpy(pixels <= 127).permute(2, 0, 1)[None]
