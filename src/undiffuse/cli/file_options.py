"""The options of `inspect`, `doctor`, `convert`, `models`, `export`, `reproduce` and `completion`."""

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


def completion(add: Any, commands: Any) -> None:
    """Adds `undiffuse completion`."""
    parser = add(
        commands,
        "completion",
        "SHELL ",
        """\
Prints a script that completes commands, options and values at Tab. To turn it on, run one of these once:

  echo 'eval "$(undiffuse completion bash)"' >> ~/.bashrc
  echo 'eval "$(undiffuse completion zsh)"' >> ~/.zshrc
  undiffuse completion fish > ~/.config/fish/completions/undiffuse.fish""",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


def reproduce(add: Any, commands: Any) -> None:
    """Adds `undiffuse reproduce`."""
    parser = add(
        commands,
        "reproduce",
        "[CLAIM ...] ",
        """\
Runs published claims about diffusion models from recipes that were written down beforehand, and gives each a verdict:
reproduced, refuted, null or untestable here. A stopped run resumes. Without CLAIM: all claims of the tier.

  arithmetic  noise schedules only: seconds
  oracle      exact scores of Gaussian mixtures: minutes
  cpu         the shipped model, and small networks trained for minutes each: hours in all
  gpu         larger networks, in pieces of ten minutes""",
    )
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="ids of claims, for example C17 C69 (default all)")
    options.pick(parser, "--tier", ("arithmetic", "oracle", "cpu", "gpu"), "tier (default all but gpu)")
    parser.add_argument("--list", action="store_true", help="show the ledger with the verdicts so far")
    parser.add_argument("--plan", action="store_true", help="show what would be run, in pieces, and how long it takes")
    parser.add_argument("--piece", type=values.positive, metavar="N", help="run piece N of the plan only")
    folder = "folder of records and trained networks (default reproduction)"
    parser.add_argument("--out", default="reproduction", metavar="DIR", help=folder)
    page = "write the page of verdicts and its figures from the records"
    parser.add_argument("--page", metavar="FILE.md", help=page)
    parser.add_argument("--json", action="store_true", help="print verdicts as JSON")
    options.device_option(parser, help="device of the tier gpu: cpu, cuda, mps or auto (default auto)")
