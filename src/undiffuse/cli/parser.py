"""All commands, and the parser of one of them. Light: help must answer at once (see `undiffuse.cli`)."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

import undiffuse
from undiffuse.cli import options

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

_DEFINED_IN = {
    **dict.fromkeys(("quickstart", "sample", "encode", "decode", "interpolate"), "sampling_options"),
    **dict.fromkeys(("nll", "tune-steps"), "sampling_options"),
    **dict.fromkeys(("train", "train-classifier", "ema", "recipes"), "training_options"),
    **dict.fromkeys(("inpaint", "restore", "vary", "translate"), "editing_options"),
    **dict.fromkeys(("evaluate", "reference", "compare", "sweep"), "evaluation_options"),
    **dict.fromkeys(("inspect", "convert", "models", "export"), "file_options"),
}
"""The module whose function of the command's name adds its options."""


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Returns the parser; `args.module` is the module whose `run(args)` does the work.

    Args:
        argv: The command line, of which only the named command's options are made; None makes those of all commands.
    """
    about = "Train, guide, sample and evaluate pixel-space diffusion models: DDPM, DDIM, Improved DDPM, ADM."
    listed = "commands:\n" + "\n".join(f"  {name:18}{text}" for name, text in COMMANDS.items())
    epilog = "`undiffuse COMMAND --help` shows a command's options. New here? Type `undiffuse quickstart`."
    parser = options.Parser(
        prog="undiffuse", usage="undiffuse COMMAND [options]", description=f"{about}\n\n{listed}", epilog=epilog
    )
    parser.add_argument("--version", action="version", version=f"undiffuse {undiffuse.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=options.Parser, prog="undiffuse", help=argparse.SUPPRESS
    )
    named = next((word for word in argv or () if not word.startswith("-")), None)
    for command, module in _DEFINED_IN.items():
        if argv is None or command == named:
            defined = importlib.import_module(f"undiffuse.cli.{module}")
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
    return parser
