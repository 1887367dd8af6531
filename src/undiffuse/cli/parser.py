"""All commands and their options. Light: importing this costs argparse and nothing else (see `undiffuse.cli`)."""

from __future__ import annotations

import argparse
from typing import Any

import undiffuse
from undiffuse.cli import editing_options, evaluation_options, options, training_options, values
from undiffuse.config.sampler import STEPS
from undiffuse.solvers.registry import SOLVERS

COMMANDS = {
    "quickstart": "sample the shipped model, guided and not: a minute, offline, on a CPU",
    "train": "train a diffusion model on your images",
    "train-classifier": "train a noisy-image classifier, for guidance",
    "ema": "the average of any width of a run's weights, after training",
    "sample": "images from a model",
    "encode": "images to latents, by DDIM inversion",
    "decode": "latents back to images",
    "interpolate": "the way between two images or two seeds, through the latents",
    "inpaint": "fill a part of images",
    "restore": "enlarge or sharpen images with any model",
    "vary": "variations of images, by way of noise",
    "translate": "images carried from one class to another",
    "nll": "likelihood of images, in bits per dimension",
    "evaluate": "FID, sFID, IS, precision, recall, KID and more, with errors and provenance",
    "reference": "a reference file to evaluate against",
    "compare": "evaluations side by side",
    "sweep": "the trade-off of guidance, or of quality and network calls, as table and plot",
    "tune-steps": "the noise levels on which a solver errs least, for a number of steps",
    "inspect": "what a file, a run, a picture or your data is",
    "convert": "images in any format, written in one that other programs read",
    "recipes": "the recipes, with published and measured results",
    "models": "the published models and ImageNet's classes, to find and to look up",
    "export": "a model for other programs: guided-diffusion, diffusers, ONNX, torch.export",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser; `args.module` is the module whose `run(args)` does the work."""
    about = "Train, guide, sample and evaluate pixel-space diffusion models: DDPM, DDIM, Improved DDPM, ADM."
    listed = "commands:\n" + "\n".join(f"  {name:18}{text}" for name, text in COMMANDS.items())
    epilog = "`undiffuse COMMAND --help` tells a command's options. New here? Type `undiffuse quickstart`."
    parser = options.Parser(
        prog="undiffuse", usage="undiffuse COMMAND [options]", description=f"{about}\n\n{listed}", epilog=epilog
    )
    parser.add_argument("--version", action="version", version=f"undiffuse {undiffuse.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=options.Parser, prog="undiffuse", help=argparse.SUPPRESS
    )
    _quickstart(commands)
    for training in (training_options.train, training_options.train_classifier, training_options.ema):
        training(_add, commands)
    for define in (_sample, _encode, _decode, _interpolate):
        define(commands)
    for command in ("inpaint", "restore", "vary", "translate"):
        getattr(editing_options, command)(_add, commands)
    _nll(commands)
    for command in ("evaluate", "reference", "compare", "sweep"):
        getattr(evaluation_options, command)(_add, commands)
    for define in (_tune_steps, _inspect, _convert):
        define(commands)
    training_options.recipes(_add, commands)
    for define in (_models, _export):
        define(commands)
    return parser


def _add(commands: Any, name: str, takes: str, about: str, module: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, description=about, usage=f"undiffuse {name} {takes}[options]"
    )
    parser.set_defaults(module=module or name)
    parser.add_argument("--help-all", action=options.HelpAll, help="show all options and exit")
    return parser


def _quickstart(commands: Any) -> None:
    parser = _add(
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


def _sample(commands: Any) -> None:
    parser = _add(
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
    options.output_options(run, "folder (default samples; with --from-record the PNG to write)")
    options.format_option(run)
    options.pick(run, "--animation", ("gif", "apng"), "also the denoising path of the grid's images")
    run.add_argument("--low-res", metavar="DATA", help="images to enlarge, for a super-resolution model")
    low_size = "their size, where the model does not know it"
    run.add_argument("--low-size", type=values.size, metavar="S|HxW", help=low_size)
    run.add_argument("--from-record", metavar="PNG", help="make the image of a PNG again, and compare")
    options.device_options(parser)


def _encode(commands: Any) -> None:
    parser = _add(
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


def _decode(commands: Any) -> None:
    parser = _add(
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


def _interpolate(commands: Any) -> None:
    parser = _add(
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


def _nll(commands: Any) -> None:
    parser = _add(
        commands,
        "nll",
        "DATA ",
        f"""\
Measures the likelihood of images in bits per dimension: by the variational bound, term by term, by the probability
flow, or by both beside each other. Prints the total with its standard error, writes bits.json and bits.png. The same
command again goes on where it was stopped.{training_options.DATA}""",
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


def _tune_steps(commands: Any) -> None:
    parser = _add(
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


def _inspect(commands: Any) -> None:
    parser = _add(
        commands,
        "inspect",
        "[WHAT] ",
        """\
Tells what something is: a model, checkpoint or run folder; a PNG or GIF written here (its record); latents; samples;
images to train on (sizes, classes, broken and tiny files, the command to type). Without WHAT: versions and devices.""",
    )
    parser.add_argument("what", nargs="?", metavar="WHAT", help="file, folder, or a known name")
    parser.add_argument("--labels", default="auto", metavar="HOW", help=f"of data: {options.LABELS}")
    options.container_options(parser)
    count = "images of data that are looked at (default 2000)"
    parser.add_argument("--count", type=values.amount, default=2000, metavar="N|all", help=count)
    parser.add_argument("--json", action="store_true", help="a model's manifest or a picture's record as JSON")


def _convert(commands: Any) -> None:
    parser = _add(
        commands,
        "convert",
        "SRC DST ",
        """\
Reads images in any format that is known and writes them in one that other programs read. DST must not exist.

  folder      image files with metadata.jsonl, as Hugging Face's imagefolder (the default)
  zip         as NVIDIA's dataset_tool (StyleGAN, EDM) writes it: all images of one size (DST.zip)
  webdataset  a folder of tar shards with .cls and .json
  parquet     a folder of shards as on the Hugging Face hub, or one file (DST.parquet)""",
    )
    parser.add_argument("source", metavar="SRC", help="images, as for `undiffuse train`; SRC:test is a part of them")
    parser.add_argument("target", metavar="DST", help="what to write")
    forms = ("folder", "zip", "webdataset", "parquet")
    options.pick(parser, "--to", forms, "the format (default: by the ending of DST)")
    parser.add_argument("--labels", default="auto", metavar="HOW", help=options.LABELS)
    options.container_options(parser)
    what = "prepare the images to this size, as for training (default: as they are)"
    parser.add_argument("--size", type=values.size, metavar="S|HxW", help=what)
    options.pick(parser, "--on-broken", ("refuse", "skip"), "unreadable images (default refuse)", "refuse")
    shard = "images of a shard (default 1000)"
    parser.add_argument("--shard-size", type=values.positive, default=1000, metavar="N", help=shard)


def _models(commands: Any) -> None:
    parser = _add(
        commands,
        "models",
        "[NAME] ",
        """\
Lists the models that are published or come with this package, or with a NAME all about one and how to sample from it.
With --classes it looks up classes: undiffuse models --classes retriever""",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model of the list")
    classes = "ImageNet's classes (with NAME that model's): all, or those that TEXT is in"
    parser.add_argument("--classes", nargs="*", metavar="TEXT", help=classes)
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def _export(commands: Any) -> None:
    parser = _add(
        commands,
        "export",
        "MODEL --to FORMAT ",
        """\
Writes a model for other programs, reads back what was written, and tells how far its outputs differ from the model's
and how to use it there. What a format cannot express is listed, and then nothing is written.

  safetensors  one file with weights and configuration, as undiffuse reads it without any option
  openai       a .pt of guided-diffusion, with the flags for its scripts in a .json beside it
  diffusers    a pipeline folder: UNet2DModel and DDPMScheduler
  onnx, torch  one call of the network as a graph, for any batch size (.onnx, torch.export's .pt2);
               noise levels and how to take a step are in a .json beside it""",
    )
    parser.add_argument("model", metavar="MODEL", help="model file, run folder, or the name of a known model")
    formats = ("safetensors", "openai", "diffusers", "onnx", "torch")
    parser.add_argument(
        "--to", required=True, type=values.choice(*formats), metavar="FORMAT", help=f"one of {', '.join(formats)}"
    )
    which = "net (as trained) or an average such as 0.999 (default: the slowest)"
    parser.add_argument("--weights", metavar="W", help=which)
    options.offline_option(parser)
    out = "file or folder (default: the model's name with the format's ending, here)"
    parser.add_argument("--out", metavar="PATH", help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export wrote there")
