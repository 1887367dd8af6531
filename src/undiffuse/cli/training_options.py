"""The options of `train`, `train-classifier`, `ema` and `recipes`, and what they are called in errors. Light."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from undiffuse.cli import evaluation_options, options, values

HINTS = {
    "max-epochs": ("images", "--images counts images: N epochs are N times the size of your data"),
    "num-epochs": ("images", "--images counts images: N epochs are N times the size of your data"),
    "num-train-epochs": ("images", "--images counts images: N epochs are N times the size of your data"),
    "max-train-steps": ("steps", ""),
    "total-training-steps": ("steps", ""),
    "num-samples": ("set", "previews: --set train.preview_count=N; to sample use `undiffuse sample MODEL --count N`"),
    "num-channels": ("width", "--channels are those of the images"),
    "dim": ("width", ""),
    "schedule-sampler": ("timesteps", ""),
    "noise-schedule": ("set", "--set process.schedule=cosine"),
    "diffusion-steps": ("set", "--set process.steps=N"),
    "learn-sigma": ("set", "--set process.variance=learned_range"),
    "dropout": ("set", "--set net.dropout=0.1"),
    "class-cond": ("unconditional", "with labels a model is class-conditional; --unconditional leaves them out"),
    "resume-from-checkpoint": ("resume", "--resume RUN, or the same command again"),
    "resume-checkpoint": ("resume", "--resume RUN, or the same command again"),
    "ckpt": ("resume", "--resume RUN resumes a run; --init-from MODEL starts from its weights"),
    "tensorboard": ("log", "--log tensorboard"),
    "report-to": ("log", "--log tensorboard,wandb"),
    "wandb": ("log", "--log wandb"),
    "bf16": ("precision", "--precision bf16"),
    "gradient-accumulation-steps": ("microbatch", "--microbatch N is the number of images at once; --batch stays"),
    "save-interval": ("set", "--set train.save_every=IMAGES"),
    "log-interval": ("set", "--set train.log_every=IMAGES"),
}
"""Options of other training programs, without dashes: ours, and what else to say."""

NAMES = {
    "data": "DATA", "partner": "--for", "init_from": "--init-from", "label_dropout": "--label-dropout",
    "clean_fraction": "--clean-fraction", "on_broken": "--on-broken", "on_tiny": "--on-tiny",
}  # fmt: skip
"""Names of options for the arguments that are not called alike."""


@contextmanager
def naming_options(**names: str) -> Iterator[None]:
    """Puts the names of options in the place of the library's arguments in errors.

    Args:
        **names: Options by argument, besides `NAMES`.
    """
    from undiffuse.util.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        known = {**NAMES, **names}
        fields = error.field.split(", ")
        dotted = [field for field in fields if "." in field]
        where = ", ".join(_option(f, known) for f in fields if f not in dotted)
        where = f"--set {', '.join(dotted)}" if dotted else where
        text = error.text.replace("kind='classifier'", "`undiffuse train-classifier`")
        text = text.replace("kind='diffusion'", "`undiffuse train`")
        text = re.sub(r"`([a-z_]+)`", lambda found: _option(found[1], known), text)
        path = getattr(error, "path", None)  # of a run that was given as data
        if path is not None:
            text = f"{path} is a training run, not images; to resume it: undiffuse train --resume {path}"
        raise ValueError(f"{where}: {text}") from error


def _option(name: str, known: Mapping[str, str]) -> str:
    return known.get(name, f"--{name.replace('_', '-')}")


def train(add: Any, commands: Any) -> None:
    """The options of `train`."""
    parser = add(
        commands,
        "train",
        "DATA | --resume RUN ",
        f"""\
Trains a diffusion model; with labels it is class-conditional. Writes checkpoints, previews, a loss curve and at the end
model.safetensors into the run folder. The same command again, or --resume RUN, resumes a stopped run. Started by
torchrun, it trains on several devices.{options.DATA}""",
    )
    what, data = _training(parser)
    labelled = what.add_mutually_exclusive_group()
    labelled.add_argument("--unconditional", action="store_true", default=None, help="leave the labels out")
    dropped = "train on a share P of the images without their label, for classifier-free guidance (sample --cfg)"
    labelled.add_argument("--label-dropout", type=values.fraction, metavar="P", help=dropped)
    validation = "held-out images: other data, or a share of these, for example 0.05"
    data.add_argument("--validation", metavar="DATA|SHARE", help=validation)
    evaluation_options.while_training(parser)


def train_classifier(add: Any, commands: Any) -> None:
    """The options of `train-classifier`."""
    parser = add(commands, "train-classifier", "DATA | --resume RUN ", f"""\
Trains a classifier of noisy images, which guides sampling (`undiffuse sample --classifier`), and prints its accuracy by
noise level. The same command again, or --resume RUN, resumes a stopped run. Started by torchrun, it trains on several
devices.{options.DATA}""", module="train")  # fmt: skip
    what, data = _training(parser)
    partner = "diffusion model that the classifier will guide; its size, noise levels and classes are taken"
    what.add_argument("--for", dest="partner", metavar="MODEL", help=partner)
    noise = what.add_mutually_exclusive_group()
    noise.add_argument("--clean", action="store_true", default=None, help="train on clean images only (not to guide)")
    noise.add_argument("--clean-fraction", type=values.fraction, metavar="P", help="share of clean images")
    validation = "held-out images: other data, a share of these (default 0.05), or none"
    data.add_argument("--validation", metavar="DATA|SHARE", help=validation)


def ema(add: Any, commands: Any) -> None:
    """The options of `ema`."""
    parser = add(
        commands,
        "ema",
        "RUN --width W --out FILE ",
        """\
Makes the average of a run's weights that a power function of relative width W would have kept (Karras et al. 2024),
from the snapshots that the run stored: train it with --set train.posthoc_widths=0.05,0.1 and --set
train.posthoc_every=IMAGES. Writes it as a model.""",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    width = "standard deviation of the average over the length of the run, at most 0.288 (the mean of all)"
    parser.add_argument("--width", required=True, type=values.rate, metavar="W", help=width)
    at = "images after which the average ends, where there is a snapshot (default: the last)"
    parser.add_argument("--at", type=values.positive, metavar="IMAGES", help=at)
    parser.add_argument("--out", required=True, metavar="FILE", help="file of the model")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def recipes(add: Any, commands: Any) -> None:
    """The options of `recipes`."""
    about = "Lists the recipes, with published results and those measured here. NAME prints all settings of one."
    parser = add(commands, "recipes", "[NAME] ", about)
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to print in full")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def _training(parser: argparse.ArgumentParser) -> tuple[Any, Any]:
    """Options of both kinds of training; returns the groups "what is trained" and "data".

    Nothing has a default here: what is not given is left to the request, or to that of the run that is resumed.
    """
    setattr(parser, "hints", HINTS)  # noqa: B010 - an attribute of our own parser
    begin_or_resume = parser.add_mutually_exclusive_group(required=True)
    begin_or_resume.add_argument("data", nargs="?", metavar="DATA", help="images to train on")
    resume = "resume the run in this folder; its data and options need not be repeated"
    begin_or_resume.add_argument("--resume", metavar="RUN", help=resume)
    what = parser.add_argument_group("what is trained")
    what.add_argument("--recipe", metavar="NAME", help="see `undiffuse recipes` (default: chosen by the data)")
    begin = "start from the weights of a model: a name of `undiffuse models`, a file or a run folder"
    what.add_argument("--init-from", metavar="MODEL", help=begin)
    size = "image size (default: by the recipe or the data)"
    what.add_argument("--size", type=values.size, metavar="S|HxW", help=size)
    channels = "1 grey, 3 RGB, 4 RGBA, or the number that multi-channel images have (default: as --size)"
    what.add_argument("--channels", type=values.positive, metavar="N", help=channels)
    width = "channels of the network's first level; fewer make a smaller, faster model (default: by the recipe)"
    what.add_argument("--width", type=values.positive, metavar="N", help=width)
    what.add_argument(
        "--set", dest="sets", type=values.assignment, action="append", default=[], metavar="FIELD=VALUE",
        help="any field of the recipe: net.dropout=0.1, process.schedule=cosine+shift:0.5, train.weight_decay=0.01",
    )  # fmt: skip
    data = parser.add_argument_group("data")
    options.data_options(data, fit="by the recipe", tiny=True)
    options.container_options(data)
    patches = "train on windows of this size cut from the images: random (default) or tiled, e.g. 256 or 256,tiled"
    data.add_argument("--patches", type=values.patches, metavar="S|HxW[,HOW]", help=patches)
    data.add_argument("--flip", action=argparse.BooleanOptionalAction, help="mirror half of the images at random")
    data.add_argument("--workers", type=values.natural, metavar="N", help="decoding threads (default: automatic)")
    parser.set_defaults(labels=None, on_broken=None, on_tiny=None, frames=None, layout=None)
    length = parser.add_argument_group("length and optimization (default: by the recipe)")
    ends = length.add_mutually_exclusive_group()
    ends.add_argument("--images", type=values.positive, metavar="N", help="end after N images, for example 400k")
    ends.add_argument("--steps", type=values.positive, metavar="N", help="end after N updates")
    length.add_argument("--batch", type=values.positive, metavar="N", help="images per update, over all processes")
    length.add_argument("--microbatch", type=values.positive, metavar="N", help="images at once (default: what fits)")
    length.add_argument("--lr", type=values.rate, metavar="RATE", help="learning rate")
    length.add_argument("--ema", type=values.decays, metavar="D[,D]", help="decays of the averages, or none")
    how = ("uniform", "antithetic", "stratified", "loss-second-moment")
    length.add_argument(
        "--timesteps", type=values.choice(*how), metavar="HOW", help=f"how noise levels are drawn: {', '.join(how)}"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="run folder (default runs/NAME)")
    log = "also log to tensorboard, wandb or both (a comma list); each needs its package"
    run.add_argument("--log", type=values.words, metavar="NAMES", default=[], help=log)
    seed = "random seed of weights, order and noise (default 0)"
    run.add_argument("--seed", type=values.seed, metavar="N", help=seed)
    run.add_argument("--device", metavar="DEV", help="cpu, cuda, mps, or auto (default): the fastest there is")
    options.offline_option(run)
    options.pick(run, "--precision", ("fp32", "bf16", "fp16"), "number format of the network (default: by the recipe)")
    run.add_argument("--compile", action="store_true", default=None, help="torch.compile the network")
    return what, data
