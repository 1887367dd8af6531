"""Options of the commands that edit images: inpaint, restore, vary, translate. Light, as `parser` is."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.cli import options, values

_IMAGES = "IMAGES is a folder, .zip, .npz, fashion-mnist[:test], or image files."
_SAME = "Results are named as the images. The same command resumes."
_SOLVERS = "Without --solver, pigdm and mmps use dpmpp-2m, dps uses ddim."
_SHARED = ("classes", "count", "variants", "seed", "labels", "fit", "on_broken", "out", "format", "overwrite", "batch")
_METHOD = ("method", "resamples", "jump", "zeta", "iterations", "noise", "data_std")


def arguments(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Returns the arguments of an edit from parsed options: the shared ones, the method's, and `more`."""
    return {name: getattr(args, name) for name in (*_SHARED, *_METHOD, *more) if hasattr(args, name)}


def inpaint(add: Any, commands: Any) -> None:
    """`undiffuse inpaint`."""
    parser = add(commands, "inpaint", "IMAGES ... --mask PNG ", f"""\
Fills a part of images. What is outside the mask is kept, pixel for pixel. {_IMAGES} {_SAME}

  repaint   put the known part in after each step, and sample each stretch --resamples times
  dps       a gradient step towards the known part after each step of the sampler
  pigdm     guide the sampler by the likelihood of the known part
  mmps      the same with the model's own covariance: --iterations more backward passes per call

{_SOLVERS}""")  # fmt: skip
    _images(parser)
    what = parser.add_argument_group("mask and method")
    hole = what.add_mutually_exclusive_group(required=True)
    mask = (
        "picture that is white in the part to fill, of the images' or the model's size; or a folder of such pictures, "
    )
    mask += "one for each image, named as the image"
    hole.add_argument("--mask", metavar="PNG|DIR", help=mask)
    rectangle = "or a rectangle: top, left, height and width in pixels of the model's images"
    hole.add_argument("--hole", type=values.rectangle, metavar="T,L,H,W", help=rectangle)
    options.pick(what, "--method", ("repaint", "dps", "pigdm", "mmps"), "see above (default repaint)", "repaint")
    resamples = "repaint: how often each stretch is sampled (default 5)"
    what.add_argument("--resamples", type=values.positive, metavar="R", help=resamples)
    what.add_argument("--jump", type=values.positive, metavar="J", help="repaint: steps in a stretch (default 4)")
    _observation(what)
    _sampling(parser, "inpainted")


def restore(add: Any, commands: Any) -> None:
    """`undiffuse restore`."""
    parser = add(commands, "restore", "IMAGES ... --upscale F | --deblur STD ", f"""\
Enlarges or sharpens images with any model, by sampling images that look like IMAGES when they are made smaller or
blurred. {_IMAGES} {_SAME}

  mmps      guide the sampler by the likelihood of IMAGES, --iterations + 1 backward passes per call
  pigdm     the same without the model's own covariance, one backward pass per call
  dps       a gradient step towards IMAGES after each step of the sampler

{_SOLVERS}""")  # fmt: skip
    _images(parser)
    what = parser.add_argument_group("task and method")
    task = what.add_mutually_exclusive_group(required=True)
    upscale = "IMAGES are F times smaller than the model's images, each pixel the mean of F x F"
    task.add_argument("--upscale", type=values.positive, metavar="F", help=upscale)
    deblur = "IMAGES are blurred by a Gaussian of this standard deviation, in pixels of the model's images"
    task.add_argument("--deblur", type=values.rate, metavar="STD", help=deblur)
    degrade = "IMAGES are whole: degrade them first, and measure how close the results are to them"
    what.add_argument("--degrade", action="store_true", help=degrade)
    options.pick(what, "--method", ("mmps", "pigdm", "dps"), "see above (default mmps)", "mmps")
    _observation(what)
    _sampling(parser, "restored")


def vary(add: Any, commands: Any) -> None:
    """`undiffuse vary`."""
    parser = add(commands, "vary", "IMAGES ... ", f"""\
Makes variations of images, by adding noise and sampling from there (SDEdit): from sketches to images, or from an image
to others like it; with --class to images of that class. {_IMAGES} {_SAME}""")  # fmt: skip
    _images(parser)
    _strength(parser, 0.5)
    _sampling(parser, "variations")


def translate(add: Any, commands: Any) -> None:
    """`undiffuse translate`."""
    parser = add(commands, "translate", "IMAGES ... --to CLASS ", f"""\
Carries images from one class to another: encodes them by DDIM under their own class and decodes them under the other.
Prints the error of the way there and back under the own class. Guidance acts on the way back to images.
{_IMAGES} {_SAME}""")  # fmt: skip
    _images(parser)
    _strength(parser, 1.0)
    parser.add_argument("--to", required=True, metavar="CLASS", help="name or number of the class to carry to")
    _sampling(parser, "translated", ddim=True)


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="data, or image files")


def _strength(parser: argparse.ArgumentParser, default: float) -> None:
    group = parser.add_argument_group("extent")
    far = group.add_mutually_exclusive_group()
    part = f"fraction of the way to noise, from 0 (nothing changes) to 1 (default {default:g})"
    far.add_argument("--strength", type=values.fraction, metavar="S", help=part)
    far.add_argument("--logsnr", type=values.scale, metavar="L", help="or the log-SNR to go to, for example -1")


def _observation(group: Any) -> None:
    zeta = "dps: length of a step, for all pixels in [-1, 1] together (default 1)"
    group.add_argument("--zeta", type=values.rate, metavar="Z", help=zeta)
    iterations = "mmps: conjugate-gradient iterations (default 3)"
    group.add_argument("--iterations", type=values.positive, metavar="K", help=iterations)
    noise = "pigdm, mmps: standard deviation of the noise in IMAGES, in 8-bit levels (default 1)"
    group.add_argument("--noise", type=values.non_negative, metavar="STD", help=noise)
    std = "pigdm: standard deviation of the model's images in [-1, 1]; larger is weaker (default 1)"
    group.add_argument("--data-std", type=values.rate, metavar="D", help=std)


def _sampling(parser: argparse.ArgumentParser, out: str, ddim: bool = False) -> None:
    options.model_options(parser)
    options.guidance_options(parser)
    options.sampler_options(parser, solver=not ddim)
    run = parser.add_argument_group("run and output")
    known = "class of all images (default: the data's labels, a picture's record, or the name of its folder)"
    options.class_option(run, known)
    run.add_argument("--count", type=values.amount, metavar="N|all", help="N images, evenly spaced (default all)")
    if not ddim:
        several = "results for each image, with different noise (default 1)"
        run.add_argument("--variants", type=values.positive, default=1, metavar="N", help=several)
        options.seed_option(run)
    options.output_options(run, f"folder (default {out})", out)
    options.format_option(run)
    options.data_options(parser.add_argument_group("data"))
    options.device_options(parser)
