"""The options of `inspect`, `convert`, `models` and `export`. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from undiffuse.cli import options, values


def inspect(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "inspect",
        "[WHAT] ",
        """\
Describes a model, checkpoint or run folder; a picture written by undiffuse (its record); latents; samples; evaluations;
or images to train on (sizes, classes, broken and tiny files, the command to train). Without WHAT: versions and devices.
""",
    )
    parser.add_argument("what", nargs="?", metavar="WHAT", help="file, folder, or a name from `undiffuse models`")
    parser.add_argument("--labels", default="auto", metavar="HOW", help=options.LABELS)
    options.container_options(parser)
    count = "check N evenly spaced images of a data set (default 2000)"
    parser.add_argument("--count", type=values.amount, default=2000, metavar="N|all", help=count)
    parser.add_argument("--json", action="store_true", help="print the manifest, record or report as JSON")


def doctor(add: Any, commands: Any) -> None:
    """Adds `undiffuse doctor`."""
    parser = add(commands, "doctor", "[WHAT] ", """\
Checks the installation, or the data set or training run WHAT, and says in plain words what is wrong and what to do. The
exit status is 1 if there is a problem.""")  # fmt: skip
    parser.add_argument("what", nargs="?", metavar="WHAT", help="images to train on, or a run folder")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def convert(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "convert",
        "SRC DST ",
        """\
Converts a data set in any supported format to one that other programs read. DST must not exist.

  folder      image files with metadata.jsonl, like Hugging Face's imagefolder (the default)
  zip         a .zip as NVIDIA's dataset_tool writes it (StyleGAN, EDM), all images of one size
  webdataset  a folder of tar shards with .cls and .json
  parquet     a folder of shards as on the Hugging Face hub, or one file (DST.parquet)""",
    )
    source = "images, as for `undiffuse train`; SRC:test selects the test split"
    parser.add_argument("source", metavar="SRC", help=source)
    parser.add_argument("target", metavar="DST", help="file or folder to write")
    forms = ("folder", "zip", "webdataset", "parquet")
    options.pick(parser, "--to", forms, "output format (default: from the suffix of DST)")
    parser.add_argument("--labels", default="auto", metavar="HOW", help=options.LABELS)
    options.container_options(parser)
    what = "resize and crop the images to this size, as for training (default: unchanged)"
    parser.add_argument("--size", type=values.size, metavar="S|HxW", help=what)
    broken = "unreadable images: stop with an error (refuse, default) or leave them out (skip)"
    options.pick(parser, "--on-broken", ("refuse", "skip"), broken, "refuse")
    shard = "images per shard (default 1000)"
    parser.add_argument("--shard-size", type=values.positive, default=1000, metavar="N", help=shard)


def models(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "models",
        "[NAME] ",
        """\
Lists the shipped and published models; with NAME describes one and shows how to sample from it. With --classes it
searches class names: undiffuse models --classes retriever""",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="model to describe")
    classes = "list the classes of ImageNet, or of NAME, whose names contain TEXT (default: all)"
    parser.add_argument("--classes", nargs="*", metavar="TEXT", help=classes)
    parser.add_argument("--json", action="store_true", help="print as JSON")


def export(add: Any, commands: Any) -> None:
    parser = add(
        commands,
        "export",
        "MODEL --to FORMAT ",
        """\
Writes a model for other programs, reads it back, and prints the largest difference of its outputs and how to use it. If
the format cannot express the model, the command lists the reasons and writes nothing.

  safetensors  one file with weights and configuration, for undiffuse
  openai       a .pt for guided-diffusion, with the flags for its scripts in a .json next to it
  diffusers    a pipeline folder with UNet2DModel and DDPMScheduler
  onnx, torch  one network call as a graph for any batch size (.onnx, or .pt2 of torch.export), with
               noise levels and the sampling step described in a .json next to it""",
    )
    parser.add_argument("model", metavar="MODEL", help="model file, run folder, or a name from `undiffuse models`")
    formats = ("safetensors", "openai", "diffusers", "onnx", "torch")
    to = f"output format: {', '.join(formats)}"
    parser.add_argument("--to", required=True, type=values.choice(*formats), metavar="FORMAT", help=to)
    which = "weights to export: net (no EMA) or an EMA decay, for example 0.999 (default: the largest decay)"
    parser.add_argument("--weights", metavar="W", help=which)
    options.offline_option(parser)
    out = "file or folder to write (default: MODEL's name with the suffix of the format)"
    parser.add_argument("--out", metavar="PATH", help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")
