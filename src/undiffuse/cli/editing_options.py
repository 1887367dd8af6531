"""The options of `inpaint`, `restore`, `vary` and `translate`. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.cli import options, values

_IMAGES = "IMAGES is data as for `undiffuse train` (DATA:test selects the test split), or image files."
_SAME = "Results have the names of the images. The same command again resumes a stopped run."
_SOLVERS = "The default --solver is dpmpp-2m for pigdm and mmps, and ddim for dps."
_SHARED = ("classes", "count", "variants", "seed", "labels", "fit", "on_broken", "out", "format", "overwrite", "batch")
_METHOD = ("method", "resamples", "jump", "zeta", "iterations", "noise", "data_std")


def arguments(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Returns the arguments of an edit from parsed options: the shared ones, the method's, and `more`."""
    return {name: getattr(args, name) for name in (*_SHARED, *_METHOD, *more) if hasattr(args, name)}


def inpaint(add: Any, commands: Any) -> None:
    """`undiffuse inpaint`."""
    parser = add(commands, "inpaint", "IMAGES ... --mask PNG ", f"""\
Fills in the masked part of images. Pixels outside the mask do not change. {_IMAGES} {_SAME}

  repaint   insert the known part after each step; sample each stretch of steps --resamples times
  dps       take a gradient step towards the known part after each step
  pigdm     guide by the likelihood of the known part (PiGDM)
  mmps      as pigdm, with the model's own covariance: --iterations more backward passes per call
  projection  insert the known part into every denoised image; also for students

{_SOLVERS}""")  # fmt: skip
    _images(parser)
    what = parser.add_argument_group("mask and method")
    hole = what.add_mutually_exclusive_group(required=True)
    mask = "mask, white where to fill, of the size of the image or of the model; or a folder with one mask per image, "
    mask += "of the same name"
    hole.add_argument("--mask", metavar="PNG|DIR", help=mask)
    rectangle = "fill a rectangle: top, left, height and width in pixels of the model's images"
    hole.add_argument("--hole", type=values.rectangle, metavar="T,L,H,W", help=rectangle)
    method = "method, described above (default repaint)"
    options.pick(what, "--method", ("repaint", "dps", "pigdm", "mmps", "projection"), method, "repaint")
    resamples = "repaint: number of times to sample each stretch (default 5)"
    what.add_argument("--resamples", type=values.positive, metavar="R", help=resamples)
    what.add_argument("--jump", type=values.positive, metavar="J", help="repaint: steps per stretch (default 4)")
    _observation(what)
    _sampling(parser, "inpainted")


def restore(add: Any, commands: Any) -> None:
    """`undiffuse restore`."""
    parser = add(commands, "restore", "IMAGES ... --upscale F | --deblur STD ", f"""\
Upscales or deblurs images with any model: samples images that match IMAGES when they are downscaled or blurred.
{_IMAGES} {_SAME}

  mmps      guide by the likelihood of IMAGES: --iterations + 1 backward passes per call
  pigdm     as mmps, without the model's own covariance: one backward pass per call
  dps       take a gradient step towards IMAGES after each step
  projection  make every denoised image agree with IMAGES; for consistency models and other students

{_SOLVERS}""")  # fmt: skip
    _images(parser)
    what = parser.add_argument_group("task and method")
    task = what.add_mutually_exclusive_group(required=True)
    upscale = "upscale images F times smaller than the model's, whose pixels are means of F x F pixels"
    task.add_argument("--upscale", type=values.positive, metavar="F", help=upscale)
    deblur = "deblur images blurred by a Gaussian with this standard deviation in pixels of the model's images"
    task.add_argument("--deblur", type=values.rate, metavar="STD", help=deblur)
    degrade = "downscale or blur IMAGES first, and measure the error of the results"
    what.add_argument("--degrade", action="store_true", help=degrade)
    method = "method, described above (default mmps)"
    options.pick(what, "--method", ("mmps", "pigdm", "dps", "projection"), method, "mmps")
    _observation(what)
    _sampling(parser, "restored")


def vary(add: Any, commands: Any) -> None:
    """`undiffuse vary`."""
    parser = add(commands, "vary", "IMAGES ... ", f"""\
Makes variations of images by adding noise and sampling from there (SDEdit). Turns sketches into images, or an image
into others like it; with --class into images of that class. {_IMAGES} {_SAME}""")  # fmt: skip
    _images(parser)
    _strength(parser, 0.5)
    _sampling(parser, "variations")


def translate(add: Any, commands: Any) -> None:
    """`undiffuse translate`."""
    parser = add(commands, "translate", "IMAGES ... --to CLASS ", f"""\
Translates images from one class to another: encodes them with DDIM under their own class and decodes them under the
other (DDIB). Prints the reconstruction error under their own class. Guidance acts on decoding only.
{_IMAGES} {_SAME}""")  # fmt: skip
    _images(parser)
    _strength(parser, 1.0)
    parser.add_argument("--to", required=True, metavar="CLASS", help="target class, by name or number")
    _sampling(parser, "translated", ddim=True)


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="data or image files to edit")


def _strength(parser: argparse.ArgumentParser, default: float) -> None:
    group = parser.add_argument_group("extent")
    far = group.add_mutually_exclusive_group()
    part = f"amount of noise to add, from 0 (no change) to 1 (pure noise) (default {default:g})"
    far.add_argument("--strength", type=values.fraction, metavar="S", help=part)
    far.add_argument("--logsnr", type=values.scale, metavar="L", help="add noise down to this log-SNR, for example -1")


def _observation(group: Any) -> None:
    zeta = "dps: step size, for all pixels in [-1, 1] together (default 1)"
    group.add_argument("--zeta", type=values.rate, metavar="Z", help=zeta)
    iterations = "mmps: conjugate-gradient iterations (default 3)"
    group.add_argument("--iterations", type=values.positive, metavar="K", help=iterations)
    noise = "pigdm, mmps: standard deviation of the noise in IMAGES, on a scale of 0 to 255 (default 1)"
    group.add_argument("--noise", type=values.non_negative, metavar="STD", help=noise)
    std = "pigdm: standard deviation of the model's images in [-1, 1]; larger values guide less (default 1)"
    group.add_argument("--data-std", type=values.rate, metavar="D", help=std)


def _sampling(parser: argparse.ArgumentParser, out: str, ddim: bool = False) -> None:
    options.model_options(parser)
    options.guidance_options(parser)
    options.sampler_options(parser, solver=not ddim)
    run = parser.add_argument_group("run and output")
    known = "class of all images (default: from the labels, the picture's record or the folder's name)"
    options.class_option(run, known)
    run.add_argument("--count", type=values.amount, metavar="N|all", help="edit N evenly spaced images (default all)")
    if not ddim:
        several = "results per image, each from different noise (default 1)"
        run.add_argument("--variants", type=values.positive, default=1, metavar="N", help=several)
        options.seed_option(run)
    options.output_options(run, f"output folder (default {out})", out)
    options.format_option(run)
    options.data_options(parser.add_argument_group("data"))
    options.device_options(parser)
