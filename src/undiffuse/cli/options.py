"""Options that several commands share, so that they mean and are called the same everywhere. Light."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from typing import Any, NoReturn

from undiffuse.cli import values
from undiffuse.methods import GRIDS, METHODS

SHIPPED = "fashion-mnist-32"
SHIPPED_CLASSIFIER = "fashion-mnist-32-classifier"
LABELS = "auto (default), none, folder, prefix, or a CSV, TSV or JSONL table"
STEPS = '"250", sections "90,60,60,20,20", "ddim25", "leading25", "trailing25", or "at:0,10,999"'


class Parser(argparse.ArgumentParser):
    """argparse with 100 columns, whole option names only, and errors of one line that suggest the right word."""

    def __init__(self, **keywords: Any) -> None:
        keywords.setdefault("formatter_class", Formatter)
        super().__init__(allow_abbrev=False, **keywords)
        # An interval such as -1,3 is a value, as -1 is, not an option.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf)[\d.,e+\-inf]*$")

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message:
            message = self._unknown_choice(message)
        elif message.startswith("unrecognized"):
            words = [word for word in message.split()[2:] if word.startswith("-")]
            message += _nearest(words, list(self._option_string_actions))
        print(f"undiffuse: error: {message}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def _unknown_choice(self, message: str) -> str:
        """What argparse says of a wrong choice, which versions of Python word and quote differently, in our words."""
        found = re.match(r"argument (.+?): invalid choice: (.+?)(?: \(choose from .*)?$", message, re.DOTALL)
        name, word = found.groups() if found else ("", "")
        word = word[1:-1] if word[:1] in ("'", '"') and word[:1] == word[-1:] else word
        mine = [a for a in self._actions if name in ("/".join(a.option_strings), a.metavar, a.dest) and a.choices]
        known = [str(choice) for action in mine for choice in action.choices or ()]
        what, where = ("command", "") if name == "COMMAND" else ("choice", f"argument {name}: ")
        return f"{where}there is no {what} {word!r}; expected {', '.join(known)}{_nearest([word], known)}"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Unknown options are told by the command they were given to, which knows what was probably meant."""
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        return found, extra


def _nearest(words: list[str], known: list[str]) -> str:
    near = [match for word in words for match in difflib.get_close_matches(word.split("=")[0], known, 1)]
    return f". Did you mean {near[0]}?" if near else ""


class Formatter(argparse.HelpFormatter):
    """Help texts in 100 columns: paragraphs are filled, indented lines stay as they are, words stay whole."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(p if p.startswith(" ") or "\n " in p else textwrap.fill(p, width) for p in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def pick(group: Any, name: str, choices: tuple[str, ...], help: str, default: str | None = None) -> None:
    """An option with a few words as values, shown in the help as "one|another"."""
    group.add_argument(name, type=values.choice(*choices), metavar="|".join(choices), help=help, default=default)


def device_option(group: Any, default: str = "auto", help: str = "cpu, cuda, mps, or auto (default): the best") -> None:
    """--device."""
    group.add_argument("--device", default=default, metavar="DEV", help=help)


def device_options(parser: argparse.ArgumentParser) -> None:
    """--device, --precision."""
    group = parser.add_argument_group("where and how it runs")
    device_option(group)
    precision = "of the network (default fp32); fp16 on GPUs only"
    pick(group, "--precision", ("fp32", "bf16", "fp16"), precision, "fp32")
    compiled = "torch.compile the network: minutes at first, faster after that; on GPUs with CUDA graphs"
    group.add_argument("--compile", action="store_true", help=compiled)


def model_options(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """--model, --weights, --like, --offline; with `positional` the model may also be given without --model."""
    group = parser.add_argument_group("model")
    what = "model file, run or diffusers folder, hf:OWNER/NAME, name of `undiffuse models`, or the shipped "
    what += f"{SHIPPED} (default)"
    if positional:
        parser.add_argument("model", nargs="?", action=_Model, default=argparse.SUPPRESS, metavar="MODEL", help=what)
        what = "the same"
    group.add_argument("--model", action=_Model, default=SHIPPED, metavar="M", help=what)
    which = "net (as trained) or an average such as 0.999 (default: the slowest)"
    group.add_argument("--weights", metavar="W", help=which)
    like = "of weights that do not say: the published model, or the flags (or a text file with the flags), they were "
    like += "trained with"
    group.add_argument("--like", metavar="NAME|FLAGS|FILE", help=like)
    offline_option(group)


def offline_option(group: Any) -> None:
    """--offline."""
    group.add_argument("--offline", action="store_true", help="use what is here, download nothing")


class _Model(argparse.Action):
    """The model, which may be given once, with or without --model."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        if getattr(namespace, "model_given", False):
            parser.error(f"two models are given, {namespace.model} and {value}")
        namespace.model, namespace.model_given = value, True


def settle(args: argparse.Namespace) -> None:
    """Fold --like into the model's reference, where all that loads models understands it: FILE@LIKE."""
    like = getattr(args, "like", None)
    if like is not None:
        if not getattr(args, "model_given", False):
            raise ValueError(f"--like {like} says what a file of weights is: give the file by --model")
        args.model = f"{args.model}@{like}"
        args.like = None


def guidance_options(parser: argparse.ArgumentParser) -> None:
    """--classifier, --guidance and what shapes it; --cfg, --autoguide; where and how often guidance acts."""
    group = parser.add_argument_group("guidance by a classifier")
    what = "noisy-image classifier: as --model (default: the model's own, if it has one); several may guide together"
    group.add_argument("--classifier", action="append", metavar="C", help=what)
    strength = "its strength (default: 1 with --classifier, else 0, none); once for each of several"
    group.add_argument("--guidance", action="append", type=values.scale, metavar="SCALE", help=strength)
    at = "where its gradient is taken: x_t (as released, default), the mean (the paper; ancestral only), or x0 (the "
    at += "denoised image, through the network)"
    pick(group, "--guidance-at", ("x_t", "mean", "x0"), at, "x_t")
    temperature = "of the classifier: its scores are divided by T (default 1)"
    group.add_argument("--guidance-temperature", type=values.rate, metavar="T", help=temperature)
    normalize = "bring every gradient to one size: SCALE is then the shift against noise of size 1"
    group.add_argument("--guidance-normalize", action="store_true", default=None, help=normalize)
    group = parser.add_argument_group("guidance by comparison")
    cfg = "classifier-free guidance: 1 none (default), 0 the model without class (needs train --label-dropout)"
    group.add_argument("--cfg", type=values.scale, metavar="SCALE", help=cfg)
    two = "the passes with and without class one after the other: half the memory"
    group.add_argument("--cfg-two-passes", action="store_true", default=None, help=two)
    auto = "a smaller or less trained version of the model, to be led away from: as --model"
    group.add_argument("--autoguide", metavar="WEAK", help=auto)
    weights = "its weights, as --weights; without --autoguide those of the model itself"
    group.add_argument("--autoguide-weights", metavar="W", help=weights)
    how = "strength: 1 none, default 2"
    group.add_argument("--autoguide-scale", type=values.scale, metavar="SCALE", help=how)
    rescale = "bring the contrast back to that without guidance, from 0 (default, not) to 1 (all of it)"
    group.add_argument("--cfg-rescale", type=values.fraction, metavar="PHI", help=rescale)
    group = parser.add_argument_group("where all guidance acts")
    interval = "only at these noise levels: log-SNR such as -1,3, or sigma:0.2,1.6, or steps:0.2,0.8 (parts of the way)"
    group.add_argument("--guidance-interval", type=values.interval_text, metavar="LO,HI", help=interval)
    schedule = "constant (default), or growing from noise to image with the same mean strength"
    pick(group, "--guidance-schedule", ("constant", "linear", "cosine"), schedule)
    every = "computed at every K-th call, its last shift of the noise used again in between (default 1)"
    group.add_argument("--guidance-every", type=values.positive, metavar="K", help=every)


def sampler_options(parser: argparse.ArgumentParser, solver: bool = True) -> Any:
    """--solver, --steps, --grid, --solver-options, --eta, --clip; without `solver` those of deterministic DDIM. Returns
    their group."""
    group = parser.add_argument_group("sampler" if solver else "sampler (DDIM)")
    if solver:
        parser.epilog = methods_text()
    if solver:
        default = "as published, else ancestral for a model that learns its variance, else ddim"
        what = f"the method, one of those listed below (default: {default})"
        group.add_argument("--solver", type=values.choice(*METHODS), metavar="NAME", help=what)
    default = "as published, else by the method" if solver else "ddim50"
    group.add_argument("--steps", metavar="SPEC", help=f"{STEPS} (default: {default})")
    if solver:
        help = f"how N steps are laid out: {', '.join(GRIDS)} (default: by the method)"
        group.add_argument("--grid", metavar="SPEC", help=help)
        help = "settings of the method, such as churn=30,s_max=50"
        group.add_argument("--solver-options", default="", metavar="KEY=VALUE,...", help=help)
    if solver:
        help = "noise of ddim, from 0 (default, none) to 1 (as much as ancestral) and beyond"
        group.add_argument("--eta", type=values.non_negative, default=0.0, metavar="E", help=help)
        help = "with guidance: do not clip again after it, as the original does not in ddim"
        group.add_argument("--no-reclip", dest="reclip", action="store_false", help=help)
    clip_option(group)
    return group


def methods_text() -> str:
    """The methods and grids, a line each, for the end of a command's help."""
    lines = ["methods (--solver) with default steps and grid, and their --solver-options:"]
    for name, method in METHODS.items():
        lines.append(f"  {name:14}{method.line:56}{method.steps:>4} {method.grid}")
        lines += [f"      {key}={option.default}  {option.line}" for key, option in method.options.items()]
    lines += ["", "grids (--grid) of a plain number of --steps:"]
    return "\n".join([*lines, *(f"  {name:14}{line}" for name, line in GRIDS.items())])


def upsampler_options(parser: argparse.ArgumentParser) -> None:
    """--upsampler, --upsampler-solver, --upsampler-steps."""
    group = parser.add_argument_group("upsampler, which enlarges the images")
    what = "super-resolution model: as --model, or auto (the published model's own); small images go into OUT/base"
    group.add_argument("--upsampler", metavar="UP", help=what)
    what = "its method (default: found as for --solver)"
    group.add_argument("--upsampler-solver", type=values.choice(*METHODS), metavar="NAME", help=what)
    group.add_argument("--upsampler-steps", metavar="SPEC", help="its steps (default: found as for --steps)")


def clip_option(group: Any) -> None:
    """--clip."""
    clip = "the denoised image is clamped (static, static:RANGE), thresholded (dynamic, dynamic:QUANTILE), or left "
    clip += "(none); default: static, or as the model's scheduler says"
    group.add_argument("--clip", type=values.clipping, metavar="static|dynamic|none", help=clip)


def data_options(group: Any, labels: bool = True, fit: str = "as in training", tiny: bool = False) -> None:
    """How images are read: --labels, --fit, --on-broken, and with `tiny` --on-tiny."""
    if labels:
        group.add_argument("--labels", default="auto", metavar="HOW", help=LABELS)
    pick(group, "--fit", ("crop", "pad"), f"cover and cut the centre, or pad (default: {fit})")
    pick(group, "--on-broken", ("refuse", "skip"), "what to do with unreadable images (default refuse)", "refuse")
    if tiny:
        how = "what to do with images smaller than --size (default upscale)"
        pick(group, "--on-tiny", ("upscale", "refuse", "skip"), how, "upscale")


def seed_option(group: Any, what: str = "of all noise") -> None:
    """--seed."""
    group.add_argument("--seed", type=values.seed, default=0, metavar="N", help=f"{what} (default 0)")


def output_options(group: Any, out: str, default: str | None = None) -> None:
    """--batch, --out, --overwrite."""
    group.add_argument("--batch", type=values.positive, metavar="N", help="images at once (default: by itself)")
    group.add_argument("--out", default=default, metavar="PATH", help=out)
    group.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")


def format_option(group: Any) -> None:
    """--format."""
    pick(group, "--format", ("png", "npz", "both"), "of the images (default png)", "png")


def class_option(group: Any, text: str) -> None:
    """--class, repeatable or a list."""
    group.add_argument("--class", dest="classes", action="append", metavar="NAME|NUMBER", help=text)
