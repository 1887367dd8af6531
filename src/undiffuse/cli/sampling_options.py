"""Options of the commands that sample with a model, measure its likelihood or tune its steps."""

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
Samples all classes of a shipped model, with and without classifier guidance on the same noise.
Writes one labelled page with both grids and the denoising path. Needs no network connection, and runs on the CPU unless
--device names another device.""",
    )
    models = (options.SHIPPED, "emoji-32")
    options.pick(parser, "--model", models, "shipped model: grey clothes (default) or emoji in colour", models[0])
    parser.add_argument("--out", default="quickstart", metavar="DIR", help="output folder (default quickstart)")
    scale = "scale of classifier guidance (default 2)"
    parser.add_argument("--guidance", type=values.scale, default=2.0, metavar="SCALE", help=scale)
    count = "images per class (default 4)"
    parser.add_argument("--per-class", type=values.positive, default=4, metavar="N", help=count)
    methods = ("dpmpp-2m-sde", "ddpm", "ddim")
    options.pick(parser, "--solver", methods, "sampling method (default dpmpp-2m-sde)", methods[0])
    steps = "default 20; use 100 with ddpm and ddim50 with ddim"
    parser.add_argument("--steps", default="20", metavar="SPEC", help=f"number or list of steps: {STEPS} ({steps})")
    options.seed_option(parser)
    options.device_option(parser, "cpu", "cpu (default), cuda, mps or auto")


def studio(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "studio",
        "[MODEL] ",
        """\
Opens a web page to sample and watch the path, compare settings, interpolate, edit pictures, train models and look at
data. Serves this computer only, works offline, and sends nothing anywhere. Needs pip install "undiffuse[studio]".""",
    )
    what = f"model to begin with: a file, run folder or name (default {options.SHIPPED})"
    parser.add_argument("model", nargs="?", default=options.SHIPPED, metavar="MODEL", help=what)
    parser.add_argument("--out", default="studio", metavar="DIR", help="folder of the pictures (default studio)")
    page = parser.add_argument_group("page")
    page.add_argument("--port", type=values.positive, metavar="N", help="port (default: the first free one from 7860)")
    host = "address to listen on (default 127.0.0.1: this computer only); anyone who reaches it can use the page"
    page.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host)
    page.add_argument("--open", action="store_true", help="open the page in the browser")
    workers = "model processes; several users then do not wait for each other (default 1)"
    page.add_argument("--workers", type=values.positive, default=1, metavar="N", help=workers)
    run = parser.add_argument_group("device")
    options.device_option(run)
    options.offline_option(run)


def sample(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "sample",
        "[MODEL] ",
        """\
Samples images and writes each batch as soon as it is done; the same command again resumes a stopped run. Image i
depends only on the seed and i, not on --batch or --count. Every PNG records how it was made (--from-record repeats it).
""",
    )
    options.model_options(parser, positional=True)
    options.guidance_options(parser)
    options.sampler_options(parser, budget=True)
    options.upsampler_options(parser)
    run = parser.add_argument_group("run and output")
    options.seed_option(run)
    run.add_argument("--count", type=values.positive, metavar="N", help="number of images in total (default 20)")
    options.class_option(run, 'classes to cycle through, comma-separated (default "all")')
    options.output_options(run, "output folder (default samples), or file with --from-record")
    options.format_option(run)
    options.pick(run, "--animation", ("gif", "apng"), "also animate the denoising of the grid's images")
    condition = (
        "condition: age=30,angle=45, labels=hat|scarf, image:FILE_OR_FOLDER, or a table with a row for each image; "
        "repeatable"
    )
    run.add_argument("--condition", action="append", metavar="WHAT", help=condition)
    run.add_argument("--low-res", metavar="DATA", help="images to enlarge with a super-resolution model")
    low_size = "size of the --low-res images, if the model does not record it"
    run.add_argument("--low-size", type=values.size, metavar="S|HxW", help=low_size)
    run.add_argument("--from-record", metavar="FILE", help="repeat the image of a PNG or TIFF written here and compare")
    options.device_options(parser)


def encode(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "encode",
        "IMAGES ... ",
        """\
Encodes images into the noise from which DDIM reproduces them, and stores it with all settings for `undiffuse decode`.
IMAGES is data as for `undiffuse train` (DATA:test selects the test split), or image files.""",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="data or image files to encode")
    options.model_options(parser)
    options.sampler_options(parser, solver=False)
    run = parser.add_argument_group("run and output")
    options.class_option(run, "class of all images (default: from the data's labels or the pictures' records)")
    run.add_argument("--count", type=values.amount, metavar="N|all", help="encode N evenly spaced images (default all)")
    options.output_options(run, "file to write the latents to (default latents.safetensors)", "latents.safetensors")
    run.add_argument("--check", action="store_true", help="also decode, and print the reconstruction error")
    options.data_options(parser.add_argument_group("data"))
    options.device_options(parser)


def decode(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "decode",
        "LATENTS ",
        """\
Decodes latents written by `undiffuse encode`, with the settings stored in the file.""",
    )
    parser.add_argument("latents", metavar="LATENTS", help="file of `undiffuse encode`")
    run = parser.add_argument_group("run and output")
    run.add_argument("--model", metavar="M", help="model file or folder, if it has moved since encoding")
    options.class_option(run, "decode under another class: one for all images, or one per image")
    options.output_options(run, "output folder (default decoded)", "decoded")
    options.format_option(run)
    options.device_option(run)


def interpolate(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "interpolate",
        "A B | --seeds A,B ",
        """\
Interpolates between two latents on the sphere (slerp) and decodes every point with DDIM. Two images are encoded first;
with --seeds both ends are random latents. Writes a grid and an animation.""",
    )
    parser.add_argument("images", nargs="*", metavar="A B", help="two image files")
    parser.add_argument("--seeds", type=values.seed_pair, metavar="A,B", help="two seeds instead of images")
    options.model_options(parser)
    options.sampler_options(parser, solver=False)
    run = parser.add_argument_group("run and output")
    options.class_option(run, 'classes, one row each (default: "all" with --seeds, else from the pictures\' records)')
    frames = "points of the interpolation, ends included (default 9)"
    run.add_argument("--frames", type=values.positive, default=9, metavar="N", help=frames)
    options.output_options(run, "output folder (default interpolation)", "interpolation")
    options.data_options(parser.add_argument_group("data"), labels=False)
    options.device_options(parser)


def nll(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "nll",
        "DATA ",
        f"""\
Measures the likelihood of images in bits per dimension by the variational bound, by the probability-flow ODE, or by
both. Prints the total with its standard error and writes bits.json and, for the bound, bits.png with the terms of each
step. The same command again resumes a stopped measurement.{options.DATA}""",
    )
    parser.add_argument("data", metavar="DATA", help="images that the model was not trained on")
    options.model_options(parser)
    group = parser.add_argument_group("measurement")
    count = "measure N evenly spaced images of DATA (default 256)"
    group.add_argument("--count", type=values.amount, default=256, metavar="N|all", help=count)
    method = "variational bound (default), probability-flow ODE, or both"
    options.pick(group, "--method", ("bound", "flow", "both"), method, "bound")
    terms = "noise levels per image: K random ones for an unbiased estimate (default 50), or all for the exact bound"
    unset = argparse.SUPPRESS  # tells an option that was given from its default
    group.add_argument("--terms", type=values.amount, default=unset, metavar="K|all", help=terms)
    sub_chain = f"measure the bound of fewer steps: {STEPS} (default: all steps)"
    group.add_argument("--steps", metavar="SPEC", help=sub_chain)
    decoder = "likelihood of 8-bit pixels: exact (default), or OpenAI's tanh approximation of the normal CDF"
    options.pick(group, "--decoder", ("exact", "tanh"), decoder, "exact")
    clip = "clamp the denoised image (static), threshold it by quantile (dynamic), or leave it (none); default: "
    clip += "static as in OpenAI's code, none for the flow with uniform dequantization"
    options.pick(group, "--clip", ("static", "dynamic", "none"), clip, unset)
    flow = parser.add_argument_group("probability flow")
    probes = "Hutchinson probes for the divergence, one backward pass each (default 1); all: exact, for small images"
    flow.add_argument("--probes", type=values.amount, default=unset, metavar="K|all", help=probes)
    draws = "dequantization samples per image; each is a full measurement (default 1)"
    flow.add_argument("--draws", type=values.positive, default=unset, metavar="K", help=draws)
    dequantise = "dequantization noise: uniform (default), or the model's first noise level with the bound's decoder"
    options.pick(flow, "--dequantise", ("uniform", "noise"), dequantise, unset)
    tol = "error tolerance per ODE step, for x and for nats per dimension (default 1e-3)"
    flow.add_argument("--tol", type=values.rate, default=unset, metavar="X", help=tol)
    run = parser.add_argument_group("run and output")
    options.class_option(run, "class of all images (default: from the data's labels)")
    options.seed_option(run)
    options.output_options(run, "output folder (default nll)", "nll")
    options.data_options(parser.add_argument_group("data"))
    options.device_options(parser)


def tune_steps(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "tune-steps",
        "[MODEL] --steps N ",
        """\
Finds the noise levels at which an ODE solver comes closest in N steps to an accurate solution from the same noise.
Compares levels optimised for the model with the standard grids, and measures their errors on fresh noise. Prints and
writes the best, for use as --grid.""",
        module="tune_steps",
    )
    options.model_options(parser, positional=True)
    options.guidance_options(parser)
    group = parser.add_argument_group("what to tune")
    flow = tuple(name for name, method in SOLVERS.items() if method.kind == "ode" and name != "bosh3")
    group.add_argument("--steps", type=values.positive, required=True, metavar="N", help="number of steps")
    group.add_argument(
        "--solver", type=values.choice(*flow), default="dpmpp-2m", metavar="NAME",
        help=f"ODE solver: {', '.join(flow)} (default dpmpp-2m)",
    )  # fmt: skip
    group.add_argument("--solver-options", default="", metavar="KEY=VALUE,...", help="options of the solver")
    group.add_argument(
        "--no-clip-after-guidance",
        dest="clip_after_guidance",
        action="store_false",
        help="do not clamp the denoised image again after guidance",
    )
    options.clip_option(group)
    run = parser.add_argument_group("run and output")
    options.seed_option(run)
    count = "images to tune on, and as many again to measure on (default 32, or as many as fit in memory)"
    run.add_argument("--count", type=values.positive, default=32, metavar="N", help=count)
    options.class_option(run, 'classes to cycle through (default "all")')
    run.add_argument("--out", metavar="FILE", help="JSON file to write (default steps-SOLVER-N.json)")
    run.add_argument("--overwrite", action="store_true", help="replace FILE")
    options.device_options(parser)
