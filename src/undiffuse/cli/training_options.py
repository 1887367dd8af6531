"""The options of `train`, `train-classifier`, `ema` and `recipes`, and their names in errors. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from undiffuse.cli import evaluation_options, options, values

HINTS = {
    "max-epochs": ("images", "for N epochs, give N times the number of your images"),
    "num-epochs": ("images", "for N epochs, give N times the number of your images"),
    "num-train-epochs": ("images", "for N epochs, give N times the number of your images"),
    "max-train-steps": ("steps", ""),
    "total-training-steps": ("steps", ""),
    "num-samples": ("set", "for previews: --set train.preview_count=N; to sample: undiffuse sample MODEL --count N"),
    "num-channels": ("width", "--width sets the network's channels, --channels those of the images"),
    "dim": ("width", ""),
    "schedule-sampler": ("timesteps", ""),
    "noise-schedule": ("set", "--set process.schedule=cosine"),
    "diffusion-steps": ("set", "--set process.steps=N"),
    "learn-sigma": ("set", "--set process.variance=learned_range"),
    "dropout": ("set", "--set net.dropout=0.1"),
    "class-cond": ("unconditional", "models of labelled data are class-conditional; --unconditional ignores labels"),
    "resume-from-checkpoint": ("resume", "--resume RUN, or repeat the command"),
    "resume-checkpoint": ("resume", "--resume RUN, or repeat the command"),
    "ckpt": ("resume", "--resume RUN resumes a run; --init-from MODEL starts a new run from its weights"),
    "tensorboard": ("log", "--log tensorboard"),
    "report-to": ("log", "--log tensorboard,wandb"),
    "wandb": ("log", "--log wandb"),
    "bf16": ("precision", "--precision bf16"),
    "gradient-accumulation-steps": ("microbatch", "--microbatch N splits each --batch into passes of N images"),
    "save-interval": ("set", "--set train.save_every=IMAGES"),
    "log-interval": ("set", "--set train.log_every=IMAGES"),
}
"""Maps option names of other training programs, without dashes, to the option here and a note."""

NAMES = {
    "data": "DATA", "partner": "--for", "init_from": "--init-from", "label_dropout": "--label-dropout",
    "clean_fraction": "--clean-fraction", "on_broken": "--on-broken", "on_tiny": "--on-tiny",
}  # fmt: skip
"""Options of the arguments that have another name."""


@contextmanager
def naming_options(**names: str) -> Iterator[None]:
    """Replaces the library's argument names in errors by the names of options.

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
        path = getattr(error, "path", None)  # set if a run folder was given as data
        if path is not None:
            text = f"{path} is a training run, not a data set; to resume it: undiffuse train --resume {path}"
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
Trains a diffusion model, class-conditional if the data has labels. Writes checkpoints, previews, a loss curve and
finally model.safetensors to the run folder. The same command again, or --resume RUN, resumes a stopped run. Run it
with torchrun to train on several devices.{options.DATA}""",
    )
    what, data = training_options(parser)
    labelled = what.add_mutually_exclusive_group()
    labelled.add_argument("--unconditional", action="store_true", default=None, help="ignore the labels")
    dropped = "drop labels and other conditions with probability P, for classifier-free guidance (sample --cfg)"
    labelled.add_argument("--label-dropout", type=values.fraction, metavar="P", help=dropped)
    condition = (
        "condition the model on labels, numbers:COLUMN[,COLUMN], image:PATH or map:PATH; repeatable (default: classes, "
        "if there are any)"
    )
    what.add_argument("--condition", action="append", metavar="KIND[:WHERE]", help=condition)
    validation = "held-out images: other data, or a share of DATA, for example 0.05 (default: none)"
    data.add_argument("--validation", metavar="DATA|SHARE", help=validation)
    evaluation_options.while_training(parser)


def train_classifier(add: Any, commands: Any) -> None:
    """The options of `train-classifier`."""
    parser = add(commands, "train-classifier", "DATA | --resume RUN ", f"""\
Trains a classifier of noisy images for guidance (`undiffuse sample --classifier`) and prints its accuracy by noise
level. With --condition numbers:COLUMN it trains a regressor, which guides towards numbers (`undiffuse sample
--classifier FILE --condition COLUMN=VALUE`). The same command again, or --resume RUN, resumes a stopped run. Run it
with torchrun to train on several devices.{options.DATA}""", module="train")  # fmt: skip
    what, data = training_options(parser)
    partner = "diffusion model to guide; the classifier takes its size, noise levels and classes"
    what.add_argument("--for", dest="partner", metavar="MODEL", help=partner)
    numbers = "predict these numbers of each image instead of its class: numbers:COLUMN[,COLUMN]"
    what.add_argument("--condition", action="append", metavar="numbers:COLUMN", help=numbers)
    noise = what.add_mutually_exclusive_group()
    clean = "train on clean images only (not for guidance)"
    noise.add_argument("--clean", action="store_true", default=None, help=clean)
    share = "train on clean images with probability P (default: from the recipe)"
    noise.add_argument("--clean-fraction", type=values.fraction, metavar="P", help=share)
    validation = "held-out images: other data, a share of DATA (default 0.05), or none"
    data.add_argument("--validation", metavar="DATA|SHARE", help=validation)


def _network_options(group: Any) -> None:
    size = "image size (default: from the recipe or the data)"
    group.add_argument("--size", type=values.size, metavar="S|HxW", help=size)
    channels = "image channels: 1 grey, 3 RGB, 4 RGBA, or more for multi-channel data (default: as for --size)"
    group.add_argument("--channels", type=values.positive, metavar="N", help=channels)
    width = "channels of the network's first level; fewer make it smaller and faster (default: from the recipe)"
    group.add_argument("--width", type=values.positive, metavar="N", help=width)


def rerun(add: Any, commands: Any) -> None:
    """The options of `rerun`."""
    parser = add(
        commands,
        "rerun",
        "RUN ",
        """\
Trains a finished run again, with the settings and data kept in its folder, and compares the weights and the loss. The
exit status is 0 if they are equal up to rounding and 1 if not; versions and hardware that differ are listed. The same
command again resumes a repetition that was stopped.""",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--out", metavar="DIR", help="folder of the repetition (default: RUN-rerun)")


def ema(add: Any, commands: Any) -> None:
    """The options of `ema`."""
    parser = add(
        commands,
        "ema",
        "RUN --width W --out FILE ",
        """\
Computes a power-function EMA of relative width W after training (post-hoc EMA, Karras et al. 2024) and writes it as a
model. The run must have stored snapshots: train it with --set train.posthoc_widths=0.05,0.1 and --set
train.posthoc_every=IMAGES.""",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    width = "width of the EMA as a fraction of the run's length, at most 0.288 (the mean of all weights)"
    parser.add_argument("--width", required=True, type=values.rate, metavar="W", help=width)
    at = "end the EMA after this number of images; a snapshot must exist there (default: the last)"
    parser.add_argument("--at", type=values.positive, metavar="IMAGES", help=at)
    parser.add_argument("--out", required=True, metavar="FILE", help="model file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def recipes(add: Any, commands: Any) -> None:
    """The options of `recipes`."""
    about = "Lists the recipes with published and measured results; with NAME prints all settings of one."
    parser = add(commands, "recipes", "[NAME] ", about)
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to print in full")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def training_options(parser: argparse.ArgumentParser, resume: bool = True) -> tuple[Any, Any]:
    """Adds the options of a training and returns the groups "model" and "data".

    The options have no defaults here: the request, or that of the resumed run, supplies what is not given.

    Args:
        parser: The parser of a command.
        resume: Whether a run folder can be given in place of the data; without, the network is that of a given model.
    """
    setattr(parser, "hints", HINTS)  # noqa: B010 - an attribute of our own parser
    if resume:
        begin_or_resume = parser.add_mutually_exclusive_group(required=True)
        begin_or_resume.add_argument("data", nargs="?", metavar="DATA", help="images to train on")
        folder = "resume the run in this folder with its own data and options"
        begin_or_resume.add_argument("--resume", metavar="RUN", help=folder)
    what = parser.add_argument_group("model")
    recipe = "recipe, see `undiffuse recipes` (default: chosen to fit the data)"
    what.add_argument("--recipe", metavar="NAME", help=recipe)
    if resume:
        begin = "fine-tune this model: a name from `undiffuse models`, a file or a run folder"
        what.add_argument("--init-from", metavar="MODEL", help=begin)
        _network_options(what)
    what.add_argument(
        "--set", dest="sets", type=values.assignment, action="append", default=[], metavar="FIELD=VALUE",
        help="set any field of the recipe, for example net.dropout=0.1 or train.weight_decay=0.01; repeatable",
    )  # fmt: skip
    data = parser.add_argument_group("data")
    options.data_options(data, fit="from the recipe", tiny=True)
    options.container_options(data)
    patches = "train on patches of this size cut from the images at random, or as tiles with 256,tiled"
    data.add_argument("--patches", type=values.patches, metavar="S|HxW[,HOW]", help=patches)
    flip = "mirror half of the images at random (default: from the recipe)"
    data.add_argument("--flip", action=argparse.BooleanOptionalAction, help=flip)
    workers = "number of decoding threads (default: from the number of cores)"
    data.add_argument("--workers", type=values.natural, metavar="N", help=workers)
    parser.set_defaults(labels=None, on_broken=None, on_tiny=None, frames=None, layout=None)
    length = parser.add_argument_group("length and optimization (defaults come from the recipe)")
    ends = length.add_mutually_exclusive_group()
    ends.add_argument("--images", type=values.positive, metavar="N", help="train for N images, for example 400k")
    ends.add_argument("--steps", type=values.positive, metavar="N", help="train for N updates")
    length.add_argument("--batch", type=values.positive, metavar="N", help="images per update, over all processes")
    micro = "images per forward and backward pass (default: as many as fit in memory)"
    length.add_argument("--microbatch", type=values.positive, metavar="N", help=micro)
    length.add_argument("--lr", type=values.rate, metavar="RATE", help="learning rate")
    length.add_argument("--ema", type=values.decays, metavar="D[,D]", help="EMA decays, for example 0.9999, or none")
    how = ("uniform", "antithetic", "stratified", "loss-second-moment")
    length.add_argument(
        "--timesteps", type=values.choice(*how), metavar="HOW", help=f"sampling of noise levels: {', '.join(how)}"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="run folder (default runs/NAME)")
    log = "also log to tensorboard, wandb or tensorboard,wandb; requires the package"
    run.add_argument("--log", type=values.words, metavar="NAMES", default=[], help=log)
    seed = "random seed for weights, order and noise (default 0)"
    run.add_argument("--seed", type=values.seed, metavar="N", help=seed)
    run.add_argument("--device", metavar="DEV", help="cpu, cuda, mps or auto (default: auto)")
    options.kernels_option(run)
    options.offline_option(run)
    options.pick(run, "--precision", ("fp32", "bf16", "fp16"), "precision of the network (default: from the recipe)")
    limit = "save and end with status 75 within this time of the start, for example 3h50m (default: the Slurm job's)"
    run.add_argument("--time-limit", type=values.time_span, metavar="TIME", help=limit)
    run.add_argument("--compile", action="store_true", default=None, help="compile the network with torch.compile")
    return what, data
