"""Options of the commands that sample with a model, and of those that measure and tune it."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.cli import options, values
from undiffuse.config.sampler import STEPS
from undiffuse.solvers.registry import SOLVERS


def quickstart(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "quickstart",
        "",
        """\
Samples all ten classes of Fashion-MNIST from the model shipped with this package, without and with classifier guidance
(the same noise for both), and writes one labelled page with both grids and the denoising path. Offline, on the CPU
unless another --device is named.""",
    )
    parser.add_argument("--out", default="quickstart", metavar="DIR", help="folder (default quickstart)")
    parser.add_argument("--guidance", type=values.scale, default=2.0, metavar="SCALE", help="its strength (default 2)")
    parser.add_argument("--per-class", type=values.positive, default=4, metavar="N", help="images a class (default 4)")
    methods = ("dpmpp-2m-sde", "ddpm", "ddim")
    options.pick(parser, "--solver", methods, "the method (default dpmpp-2m-sde)", methods[0])
    steps = "default 20; for ddpm take 100, with ddim a grid that begins later, such as ddim50"
    parser.add_argument("--steps", default="20", metavar="SPEC", help=f"{STEPS} ({steps})")
    options.seed_option(parser)
    options.device_option(parser, "cpu", "cpu (default), cuda, mps or auto")


def sample(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "sample",
        "[MODEL] ",
        """\
Samples images, written as they come; the same command again makes only what is missing. Image number i depends on the
seed and i, not on --batch or --count. Every PNG carries the record to make it again (--from-record).""",
    )
    options.model_options(parser, positional=True)
    options.guidance_options(parser)
    options.sampler_options(parser, budget=True)
    options.upsampler_options(parser)
    run = parser.add_argument_group("run and output")
    options.seed_option(run)
    run.add_argument("--count", type=values.positive, metavar="N", help="images of the whole run (default 20)")
    options.class_option(run, 'classes, repeatable or a comma list, which the images cycle through (default "all")')
    options.output_options(run, "folder (default samples; with --from-record the file to write)")
    options.format_option(run)
    options.pick(run, "--animation", ("gif", "apng"), "also the denoising path of the grid's images")
    run.add_argument("--low-res", metavar="DATA", help="images to enlarge, for a super-resolution model")
    low_size = "their size, where the model does not know it"
    run.add_argument("--low-size", type=values.size, metavar="S|HxW", help=low_size)
    run.add_argument("--from-record", metavar="FILE", help="make the image of a PNG or TIFF again, and compare")
    options.device_options(parser)


def encode(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "encode",
        "IMAGES ... ",
        """\
Encodes images into the noise that DDIM turns back into them, and stores it with all settings for `undiffuse decode`.
IMAGES is a folder, .zip, .npz, fashion-mnist[:test], or image files.""",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="data, or image files")
    options.model_options(parser)
    options.sampler_options(parser, solver=False)
    run = parser.add_argument_group("run and output")
    options.class_option(run, "class of all images (default: the data's labels, or the pictures' records)")
    run.add_argument("--count", type=values.amount, metavar="N|all", help="N images, evenly spaced (default all)")
    options.output_options(run, "the latents' file (default latents.safetensors)", "latents.safetensors")
    run.add_argument("--check", action="store_true", help="also decode, and print the error of reconstruction")
    options.data_options(parser.add_argument_group("data"))
    options.device_options(parser)


def decode(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "decode",
        "LATENTS ",
        """\
Decodes what `undiffuse encode` wrote, with the settings stored in it.""",
    )
    parser.add_argument("latents", metavar="LATENTS", help="file of `undiffuse encode`")
    run = parser.add_argument_group("run and output")
    run.add_argument("--model", metavar="M", help="where the model is now (default: where it was)")
    options.class_option(run, "decode under another class: one for all images, or as many as there are")
    options.output_options(run, "folder (default decoded)", "decoded")
    options.format_option(run)
    options.device_option(run)


def interpolate(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "interpolate",
        "A B | --seeds A,B ",
        """\
Walks from one image to another along the sphere of latents (slerp) and decodes every point with DDIM. Two images are
encoded first; with --seeds the two ends are samples. Writes a grid and an animation.""",
    )
    parser.add_argument("images", nargs="*", metavar="A B", help="two image files")
    parser.add_argument("--seeds", type=values.seed_pair, metavar="A,B", help="two seeds instead of images")
    options.model_options(parser)
    options.sampler_options(parser, solver=False)
    run = parser.add_argument_group("run and output")
    options.class_option(run, 'classes, a row each (default: "all" with --seeds, else the pictures\' records)')
    run.add_argument("--frames", type=values.positive, default=9, metavar="N", help="points on the way (default 9)")
    options.output_options(run, "folder (default interpolation)", "interpolation")
    options.data_options(parser.add_argument_group("data"), labels=False)
    options.device_options(parser)


def nll(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "nll",
        "DATA ",
        f"""\
Measures the likelihood of images in bits per dimension: by the variational bound, term by term, by the probability
flow, or by both beside each other. Prints the total with its standard error, writes bits.json and bits.png. The same
command again resumes where it was stopped.{options.DATA}""",
    )
    parser.add_argument("data", metavar="DATA", help="images that the model was not trained on")
    options.model_options(parser)
    group = parser.add_argument_group("measurement")
    count = "images, evenly spaced over DATA (default 256)"
    group.add_argument("--count", type=values.amount, default=256, metavar="N|all", help=count)
    method = "the variational bound (default), the probability flow, or both"
    options.pick(group, "--method", ("bound", "flow", "both"), method, "bound")
    terms = "noise levels evaluated for each image: K give an unbiased estimate (default 50), all the bound itself"
    unset = argparse.SUPPRESS  # so that an option of what is not measured is told from a default
    group.add_argument("--terms", type=values.amount, default=unset, metavar="K|all", help=terms)
    sub_chain = f"the bound of a sub-chain: {STEPS} (default: all steps)"
    group.add_argument("--steps", metavar="SPEC", help=sub_chain)
    decoder = "probability of 8-bit pixels: exact (default), or the original's approximation"
    options.pick(group, "--decoder", ("exact", "tanh"), decoder, "exact")
    clip = "the denoised image is clamped (static), thresholded by quantile (dynamic), or left (none); default: "
    clip += "static, as in the original; none for the flow with uniform noise"
    options.pick(group, "--clip", ("static", "dynamic", "none"), clip, unset)
    flow = parser.add_argument_group("the flow")
    probes = "random probes of its divergence (default 1), a backward pass each; all: exact, for small images"
    flow.add_argument("--probes", type=values.amount, default=unset, metavar="K|all", help=probes)
    draws = "draws of the noise that makes pixels continuous, a whole measurement each (default 1)"
    flow.add_argument("--draws", type=values.positive, default=unset, metavar="K", help=draws)
    dequantise = "that noise: uniform (default), or the model's first level with its decoder, as in the bound"
    options.pick(flow, "--dequantise", ("uniform", "noise"), dequantise, unset)
    tol = "error of a step: of x, and of nats per dimension (default 1e-3)"
    flow.add_argument("--tol", type=values.rate, default=unset, metavar="X", help=tol)
    run = parser.add_argument_group("run and output")
    options.class_option(run, "class of all images (default: the data's labels)")
    options.seed_option(run)
    options.output_options(run, "folder (default nll)", "nll")
    options.data_options(parser.add_argument_group("data"))
    options.device_options(parser)


def tune_steps(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "tune-steps",
        "[MODEL] --steps N ",
        """\
Chooses the noise levels at which a solver of the flow makes N steps, so that its images are nearest to those of a fine
solution from the same noise. Levels optimised for the model and the grids by name are tried on some noise, and measured
on fresh noise. Prints and writes the best one, for --grid.""",
        module="tune_steps",
    )
    options.model_options(parser, positional=True)
    options.guidance_options(parser)
    group = parser.add_argument_group("what is tuned")
    flow = tuple(name for name, method in SOLVERS.items() if method.kind == "ode" and name != "bosh3")
    group.add_argument("--steps", type=values.positive, required=True, metavar="N", help="steps, such as 10")
    group.add_argument(
        "--solver", type=values.choice(*flow), default="dpmpp-2m", metavar="NAME",
        help=f"one of {', '.join(flow)} (default dpmpp-2m)",
    )  # fmt: skip
    group.add_argument("--solver-options", default="", metavar="KEY=VALUE,...", help="settings of the method")
    group.add_argument(
        "--no-clip-after-guidance",
        dest="clip_after_guidance",
        action="store_false",
        help="with guidance: as for `sample`",
    )
    options.clip_option(group)
    run = parser.add_argument_group("run and output")
    options.seed_option(run)
    count = "images to choose by, and as many to measure by (default 32, or what fits)"
    run.add_argument("--count", type=values.positive, default=32, metavar="N", help=count)
    options.class_option(run, 'classes, which the images cycle through (default "all")')
    run.add_argument("--out", metavar="FILE", help="JSON file (default steps-SOLVER-N.json)")
    run.add_argument("--overwrite", action="store_true", help="replace FILE")
    options.device_options(parser)
