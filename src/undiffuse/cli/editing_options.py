"""Options of the commands that edit images: inpaint, restore, vary, translate. Light, as `parser` is."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.cli import options, values

_IMAGES = "IMAGES is a folder, .zip, .npz, fashion-mnist[:test], or image files."
_SOLVERS = "Without --solver, pigdm and mmps are used with dpmpp-2m, dps with ddim."
_SAME = "The same command again makes only what is missing; grid.png shows before and after."


def inpaint(add: Any, commands: Any) -> None:
    """`undiffuse inpaint`."""
    parser = add(commands, "inpaint", "IMAGES ... --mask PNG ", f"""\
Fills a part of images. What is outside the mask is kept, pixel for pixel. {_IMAGES} {_SAME}

  repaint   the known part is put in after every step, and every stretch gone --resamples times
  dps       a step towards the known part after every step of the sampler
  pigdm     the sampler is guided by how probable the known part is
  mmps      the same with the model's own covariance, --iterations more backward passes a call

{_SOLVERS}""")  # fmt: skip
    _images(parser)
    what = parser.add_argument_group("what is filled, and how")
    hole = what.add_mutually_exclusive_group(required=True)
    mask = "picture of the part to fill, in white, of the images' own size or the model's"
    hole.add_argument("--mask", metavar="PNG", help=mask)
    rectangle = "a rectangle instead: top, left, height and width in pixels of the model's images"
    hole.add_argument("--hole", type=values.rectangle, metavar="T,L,H,W", help=rectangle)
    options.pick(what, "--method", ("repaint", "dps", "pigdm", "mmps"), "see above (default repaint)", "repaint")
    what.add_argument("--resamples", type=values.positive, metavar="R", help="of repaint (default 5)")
    what.add_argument("--jump", type=values.positive, metavar="J", help="steps of a stretch of repaint (default 4)")
    _observation(what)
    _sampling(parser, "inpainted")


def restore(add: Any, commands: Any) -> None:
    """`undiffuse restore`."""
    parser = add(commands, "restore", "IMAGES ... --upscale F | --deblur STD ", f"""\
Enlarges or sharpens images with any model, by sampling images that look like IMAGES when made smaller or blurred.
{_IMAGES} {_SAME}

  mmps      guided by how probable IMAGES are, --iterations + 1 backward passes a call
  pigdm     the same without the model's own covariance, one backward pass a call
  dps       a step towards IMAGES after every step of the sampler

{_SOLVERS}""")  # fmt: skip
    _images(parser)
    what = parser.add_argument_group("what is restored, and how")
    task = what.add_mutually_exclusive_group(required=True)
    upscale = "IMAGES are F times smaller than the model's, every pixel the mean of F x F"
    task.add_argument("--upscale", type=values.positive, metavar="F", help=upscale)
    deblur = "IMAGES are blurred by a Gaussian of this standard deviation, in pixels of the model's images"
    task.add_argument("--deblur", type=values.rate, metavar="STD", help=deblur)
    degrade = "IMAGES are whole: make them smaller or blurred first, and measure how near the results come to them"
    what.add_argument("--degrade", action="store_true", help=degrade)
    options.pick(what, "--method", ("mmps", "pigdm", "dps"), "see above (default mmps)", "mmps")
    _observation(what)
    _sampling(parser, "restored")


def vary(add: Any, commands: Any) -> None:
    """`undiffuse vary`."""
    parser = add(
        commands,
        "vary",
        "IMAGES ... ",
        f"""\
Makes variations of images, by taking them part of the way to noise and sampling from there (SDEdit): from sketches to
images, or from an image to others like it; with --class to images of that class. {_IMAGES} {_SAME}""",
    )
    _images(parser)
    _strength(parser, 0.5)
    _sampling(parser, "variations")


def translate(add: Any, commands: Any) -> None:
    """`undiffuse translate`."""
    parser = add(
        commands,
        "translate",
        "IMAGES ... --to CLASS ",
        f"""\
Carries images from one class to another: encodes them by DDIM under their own class and decodes under the other. Tells
how far the way there and back under the own class is from the images. Guidance acts on the way back to images.
{_IMAGES} {_SAME}""",
    )
    _images(parser)
    _strength(parser, 1.0)
    parser.add_argument("--to", required=True, metavar="CLASS", help="name or number of the class to carry to")
    _sampling(parser, "translated", ddim=True)


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="data, or image files")


def _strength(parser: argparse.ArgumentParser, default: float) -> None:
    group = parser.add_argument_group("how far")
    far = group.add_mutually_exclusive_group()
    part = f"part of the way to noise, from 0 (nothing changes) to 1 (all of it; default {default:g})"
    far.add_argument("--strength", type=values.fraction, metavar="S", help=part)
    far.add_argument("--logsnr", type=values.scale, metavar="L", help="or the log-SNR to go to, such as -1")
    parser.set_defaults(usual_strength=default)


def _observation(group: Any) -> None:
    zeta = "length of a step of dps, of all pixels in [-1, 1] together (default 1)"
    group.add_argument("--zeta", type=values.rate, metavar="Z", help=zeta)
    group.add_argument("--iterations", type=values.positive, metavar="K", help="of mmps (default 3)")
    noise = "standard deviation of noise in IMAGES, in 8-bit levels; of pigdm, mmps (default 1)"
    group.add_argument("--noise", type=values.non_negative, metavar="STD", help=noise)
    std = "standard deviation of the model's images, in [-1, 1]: the larger, the weaker; of pigdm (default 1)"
    group.add_argument("--data-std", type=values.rate, metavar="D", help=std)


def _sampling(parser: argparse.ArgumentParser, out: str, ddim: bool = False) -> None:
    options.model_options(parser)
    options.guidance_options(parser)
    options.sampler_options(parser, solver=not ddim)
    run = parser.add_argument_group("run and output")
    options.class_option(run, "class of all images (default: the data's labels, or the pictures' records)")
    run.add_argument("--count", type=values.amount, metavar="N|all", help="N images, evenly spaced (default all)")
    if not ddim:
        several = "results for every image, each with noise of its own (default 1)"
        run.add_argument("--variants", type=values.positive, default=1, metavar="N", help=several)
        options.seed_option(run)
    options.output_options(run, f"folder (default {out})", out)
    options.format_option(run)
    options.data_options(parser.add_argument_group("data"))
    options.device_options(parser)
