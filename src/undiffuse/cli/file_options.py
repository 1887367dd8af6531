"""Options of the commands that look at things, convert data and export models."""

from __future__ import annotations

from typing import Any

from undiffuse.cli import options, values


def inspect(add: Any, commands: Any) -> None:
    parser = add(
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


def convert(add: Any, commands: Any) -> None:
    parser = add(
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


def models(add: Any, commands: Any) -> None:
    parser = add(
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


def export(add: Any, commands: Any) -> None:
    parser = add(
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
