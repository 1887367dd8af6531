"""All commands, and the parser of one of them. Light: help must answer at once (see `undiffuse.cli`)."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

import undiffuse
from undiffuse.cli import options, values

COMMANDS = {
    "quickstart": "sample the shipped model with and without guidance: offline, one minute on a CPU",
    "studio": "open a web page to sample, guide, edit, train and look at data",
    "train": "train a diffusion model on your images",
    "train-classifier": "train a noisy-image classifier for guidance",
    "distill": "train a student of 1 to 4 network calls from a model of hundreds",
    "rerun": "train a finished run again and compare the result",
    "ema": "compute an EMA of any width from the snapshots of a run (post-hoc EMA)",
    "sample": "sample images from a model",
    "encode": "encode images to latents by DDIM inversion",
    "decode": "decode latents to images",
    "interpolate": "interpolate between two images or two seeds in latent space",
    "inpaint": "fill in masked parts of images",
    "restore": "upscale or deblur images with any model",
    "vary": "make variations of images (SDEdit)",
    "translate": "translate images from one class to another (DDIB)",
    "nll": "measure the likelihood of images in bits per dimension",
    "evaluate": "compute FID, sFID, IS, precision, recall, KID and more, with standard errors",
    "reference": "make a reference file to evaluate against",
    "compare": "compare evaluations side by side",
    "sweep": "measure guidance scales, or quality against network calls, as a table and a plot",
    "report": "write an HTML report of runs, evaluations, sweeps and samples",
    "tune-steps": "find the best noise levels for a solver and a number of steps",
    "inspect": "describe a model, run, picture, evaluation or data set",
    "doctor": "check the installation, a data set or a run, and say what to do",
    "convert": "convert a data set to a folder, .zip, WebDataset or parquet",
    "reproduce": "run published claims about diffusion models and give each a verdict",
    "recipes": "list the recipes with published and measured results",
    "models": "list the published models, and search ImageNet's classes",
    "export": "export a model to guided-diffusion, diffusers, ONNX or torch.export",
    "completion": "print a script that completes commands in bash, zsh or fish",
}

SHARED = {"train", "train-classifier", "sample", "encode", "decode", "inpaint", "restore", "vary", "translate", "nll"}
SHARED |= {"distill", "rerun", "evaluate", "reference", "sweep"}
"""The commands that several processes share. Of the others only rank 0 does the work."""

_DEFINED_IN = {
    **dict.fromkeys(("quickstart", "studio", "sample", "encode", "decode", "interpolate"), "sampling_options"),
    **dict.fromkeys(("nll", "tune-steps"), "sampling_options"),
    **dict.fromkeys(("train", "train-classifier", "rerun", "ema", "recipes"), "training_options"),
    "distill": "distillation_options",
    **dict.fromkeys(("inpaint", "restore", "vary", "translate"), "editing_options"),
    **dict.fromkeys(("evaluate", "reference", "compare", "sweep", "report"), "evaluation_options"),
    **dict.fromkeys(("inspect", "doctor", "convert", "models", "export"), "file_options"),
    **dict.fromkeys(("completion", "reproduce"), "file_options"),
}
"""The module whose function of the command's name adds its options."""


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Returns the parser; `args.module` is the module whose `run(args)` does the work.

    Args:
        argv: The command line. Only the options of its command are added; None adds those of all commands.
    """
    about = "Train, guide, sample and evaluate pixel-space diffusion models: DDPM, DDIM, Improved DDPM, ADM."
    listing = "commands:\n" + "\n".join(f"  {name:18}{text}" for name, text in COMMANDS.items())
    epilog = "`undiffuse COMMAND --help` shows the options of a command. New here? Run `undiffuse quickstart`."
    parser = options.Parser(
        prog="undiffuse", usage="undiffuse COMMAND [options]", description=f"{about}\n\n{listing}", epilog=epilog
    )
    parser.add_argument("--version", action="version", version=f"undiffuse {undiffuse.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=options.Parser, prog="undiffuse", help=argparse.SUPPRESS
    )
    named = next((word for word in argv or () if not word.startswith("-")), None)
    for command in COMMANDS:
        if argv is None or command == named:
            defined = importlib.import_module(f"undiffuse.cli.{_DEFINED_IN[command]}")
            getattr(defined, command.replace("-", "_"))(_add, commands)
        else:
            commands.add_parser(command)
    return parser


def _add(commands: Any, name: str, takes: str, about: str, module: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, description=about, usage=f"undiffuse {name} {takes}[options]"
    )
    parser.set_defaults(module=module or name)
    parser.add_argument("--help-all", action=options.HelpAll, help="show all options and exit")
    if name in SHARED:
        about = "share the work among N processes of this machine, one for each GPU (default 1)"
        parser.add_argument("--processes", type=values.positive, metavar="N", help=about)
    return parser
