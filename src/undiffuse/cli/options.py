"""Options that several commands share, so that they have one name and one meaning. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from undiffuse.cli import values
from undiffuse.config import GuidanceConfig, SamplerConfig
from undiffuse.config.fields import settings_of
from undiffuse.config.kinds import Flag
from undiffuse.config.sampler import RUNTIME, SAMPLER
from undiffuse.grid_specs import GRIDS
from undiffuse.solvers.registry import SOLVERS
from undiffuse.util.launch import is_main_process
from undiffuse.util.text import printable

SHIPPED = "fashion-mnist-32"
SHIPPED_CLASSIFIER = "fashion-mnist-32-classifier"
DATA = """

DATA is a folder or .zip of images, a file or folder in another format (npz, WebDataset tars, parquet, LMDB, HDF5,
TFRecord, CIFAR, ...: docs/formats.md), or a known name (fashion-mnist, fashion-mnist:test). DATA:test selects the test
split. Labels come from the format, sub-folders, file-name prefixes or a table."""
LABELS = "source of labels: auto (default), none, folder, prefix, or a CSV, TSV or JSONL table"


HINTS = {
    "epochs": ("images", "for N epochs, give N times the number of your images"),
    "num-samples": ("count", ""),
    "num-images": ("count", ""),
    "n-samples": ("count", ""),
    "image-size": ("size", ""),
    "resolution": ("size", ""),
    "learning-rate": ("lr", ""),
    "batch-size": ("batch", ""),
    "train-batch-size": ("batch", ""),
    "model-path": ("model", ""),
    "model-name-or-path": ("model", ""),
    "checkpoint": ("model", ""),
    "classifier-path": ("classifier", ""),
    "classifier-scale": ("guidance", ""),
    "guidance-scale": ("cfg", "--cfg sets classifier-free guidance, --guidance classifier guidance"),
    "cfg-scale": ("cfg", ""),
    "timestep-respacing": ("steps", ""),
    "num-inference-steps": ("steps", ""),
    "num-steps": ("steps", ""),
    "sampler": ("solver", ""),
    "scheduler": ("solver", ""),
    "use-ddim": ("solver", "--solver ddim"),
    "output-dir": ("out", ""),
    "output": ("out", ""),
    "outdir": ("out", ""),
    "logdir": ("out", ""),
    "class-cond": ("class", "the model file records whether the model is class-conditional"),
    "class-labels": ("class", ""),
    "mixed-precision": ("precision", ""),
    "use-fp16": ("precision", "--precision fp16"),
    "fp16": ("precision", "--precision fp16"),
    "compile": ("runtime", "--runtime inductor"),
    "torch-compile": ("runtime", "--runtime inductor"),
    "ema-rate": ("ema", ""),
    "ema-decay": ("ema", ""),
    "resume": ("out", "repeat the command to resume a stopped run"),
    "resume-checkpoint": ("out", "repeat the command to resume a stopped run"),
    "num-workers": ("workers", ""),
    "gpus": ("processes", "one process uses one GPU"),
    "num-gpus": ("processes", "one process uses one GPU"),
    "nproc-per-node": ("processes", ""),
    "wandb": ("log", "--log wandb"),
    "data-dir": ("data", "the data is a positional argument: undiffuse COMMAND DATA"),
    "train-data-dir": ("data", "the data is a positional argument: undiffuse COMMAND DATA"),
    "dataset": ("data", "the data is a positional argument: undiffuse COMMAND DATA"),
    "nfe": ("budget", ""),
}
"""Maps option names of other programs, without dashes, to the option here and a note."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with 100 columns, without abbreviated options, whose one-line errors suggest the right word."""

    def __init__(self, **keywords: Any) -> None:
        keywords.setdefault("formatter_class", Formatter)
        super().__init__(allow_abbrev=False, **keywords)
        # An interval such as -1,3 is a value, as -1 is, not an option.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf)[\d.,e+\-inf]*$")

    def error(self, message: str) -> NoReturn:
        """Prints one line that says what is wrong, and exits with status 2."""
        if "invalid choice" in message:
            message = self._unknown_choice(message)
        if is_main_process():
            print(f"undiffuse: error: {printable(message)}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def _unknown_choice(self, message: str) -> str:
        """Rewords argparse's message about a wrong choice, which differs between versions of Python."""
        found = re.match(r"argument (.+?): invalid choice: (.+?)(?: \(choose from .*)?$", message, re.DOTALL)
        name, word = found.groups() if found else ("", "")
        word = word[1:-1] if word[:1] in ("'", '"') and word[:1] == word[-1:] else word
        mine = [a for a in self._actions if name in ("/".join(a.option_strings), a.metavar, a.dest) and a.choices]
        known = [str(choice) for action in mine for choice in action.choices or ()]
        what, where = ("command", "") if name == "COMMAND" else ("choice", f"argument {name}: ")
        return f"{where}there is no {what} {word!r}; expected {', '.join(known)}{_nearest([word], known)}"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parses the arguments. Reports unknown options first, before their values are taken for positionals."""
        words = list(sys.argv[1:] if args is None else args)
        if self.get_default("module") is not None:  # a command, not `undiffuse` itself
            self._check_options(words)
        found, extra = super().parse_known_args(words, namespace)
        if extra:
            self.error(f"unexpected argument{'s' if len(extra) > 1 else ''}: {' '.join(extra)}")
        return found, extra

    def _check_options(self, words: list[str]) -> None:
        known = self._option_string_actions
        for word in words[: words.index("--")] if "--" in words else words:
            option = word.split("=")[0]
            if re.match(r"--?[A-Za-z]", option) and option not in known and not self._is_value(words, word):
                self.error(f"there is no option {option}{self._suggestion(option)}")

    def _is_value(self, words: list[str], word: str) -> bool:
        """Whether a word with a single dash, for example -inf,3, is a number and therefore the value of an option."""
        return bool(self._negative_number_matcher.match(word))

    def _suggestion(self, option: str) -> str:
        plain = option.lstrip("-").replace("_", "-").lower()
        known = [name for name in self._option_string_actions if name.startswith("--")]
        if f"--{plain}" in known:
            return f"; did you mean --{plain}?"
        ours, note = {**HINTS, **getattr(self, "hints", {})}.get(plain, ("", ""))
        if ours and f"--{ours}" in known:
            return f"; did you mean --{ours}?" + (f" ({note})" if note else "")
        return f"; {note}" if note and ours == "data" else _nearest([f"--{plain}"], known)


def advanced(action: argparse.Action) -> argparse.Action:
    """Hides an option from `--help`; `--help-all` still shows it."""
    action.full_help = action.help  # type: ignore[attr-defined]
    action.help = argparse.SUPPRESS
    return action


class HelpAll(argparse.Action):
    """The action of --help-all, which prints the help with the advanced options."""

    def __init__(self, option_strings: Any, dest: str, **keywords: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **keywords)

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Prints the full help and exits."""
        for action in parser._actions:
            action.help = getattr(action, "full_help", action.help)
        parser.epilog = parser.get_default("help_all_epilog") or parser.epilog
        parser.print_help()
        raise SystemExit(0)


def _nearest(words: list[str], known: list[str]) -> str:
    import difflib  # needed after a mistake only

    near = [match for word in words for match in difflib.get_close_matches(word.split("=")[0], known, 1, 0.65)]
    return f"; did you mean {near[0]}?" if near else ""


class Formatter(argparse.HelpFormatter):
    """Formats help in 100 columns: fills paragraphs, keeps indented lines, and breaks no words."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(p if p.startswith(" ") or "\n " in p else textwrap.fill(p, width) for p in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def pick(group: Any, name: str, choices: tuple[str, ...], help: str, default: str | None = None) -> None:
    """Adds an option with a few words as values, shown in the help as "one|another"."""
    group.add_argument(name, type=values.choice(*choices), metavar="|".join(choices), help=help, default=default)


def device_option(group: Any, default: str = "auto", help: str = "cpu, cuda, mps or auto (default: auto)") -> None:
    """Adds --device."""
    group.add_argument("--device", default=default, metavar="DEV", help=help)


def kernels_option(group: Any) -> None:
    """Adds --kernels."""
    help = "implementations of operations, as in UNDIFFUSE_KERNELS: auto, pure, compiled, timed, rule, measure, or "
    help += "pins such as conv3x3=torch, with commas between (default: that variable, or auto,timed)"
    advanced(group.add_argument("--kernels", metavar="WORDS", help=help))


def device_options(parser: argparse.ArgumentParser) -> None:
    """Adds --device, --kernels, --precision and --runtime."""
    group = parser.add_argument_group(RUNTIME)
    device_option(group)
    kernels_option(group)
    add_settings(parser, SamplerConfig, only=("precision", "runtime"))


def model_options(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Adds --model, --weights, --like and --offline; with `positional` also the positional argument MODEL."""
    group = parser.add_argument_group("model")
    what = "model file, run folder, diffusers folder, hf:OWNER/NAME, or a name from `undiffuse models` (default: "
    what += f"{SHIPPED})"
    if positional:
        parser.add_argument("model", nargs="?", action=_Model, default=argparse.SUPPRESS, metavar="MODEL", help=what)
        what = "alias of MODEL"
    group.add_argument("--model", action=_Model, default=SHIPPED, metavar="M", help=what)
    which = "weights to use: net (no EMA) or an EMA decay, for example 0.999 (default: the largest decay)"
    group.add_argument("--weights", metavar="W", help=which)
    like = "for weights of another program: the published model they match, or the flags they were trained with (as "
    like += "text or in a file)"
    advanced(group.add_argument("--like", metavar="NAME|FLAGS|FILE", help=like))
    advanced(offline_option(group))


def offline_option(group: Any) -> argparse.Action:
    """Adds --offline."""
    return group.add_argument("--offline", action="store_true", help="do not download anything")


class _Model(argparse.Action):
    """Stores the model, which may be given once, with or without --model."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        if getattr(namespace, "model_given", False):
            parser.error(f"two models were given, {namespace.model} and {value}; give one")
        namespace.model, namespace.model_given = value, True


def settle(args: argparse.Namespace) -> None:
    """Folds --like into the model's reference, FILE@LIKE, which every function that loads models understands.

    Raises:
        ValueError: --like is given without a model.
    """
    like = getattr(args, "like", None)
    if like is not None:
        if not getattr(args, "model_given", False):
            raise ValueError(f"--like {like} describes a weights file: add --model FILE")
        args.model = f"{args.model}@{like}"
        args.like = None


def add_settings(parser: argparse.ArgumentParser, *configs: Any, only: Collection[str] = ()) -> None:
    """Adds an option for each declared field of config classes, under the headings that the fields name.

    Args:
        parser: The command's parser.
        configs: Config classes, see `undiffuse.config.fields`.
        only: Names of the settings to add; all if it is empty.
    """
    groups: dict[str, Any] = {str(group.title): group for group in parser._action_groups}
    for config in configs:
        for f, declared in settings_of(config):
            if only and declared.name not in only:
                continue
            group = groups.get(declared.group) or groups.setdefault(
                declared.group, parser.add_argument_group(declared.group)
            )
            flag = f"--{declared.off or declared.name.replace('_', '-')}"
            how: dict[str, Any] = {"dest": declared.name, "default": None, "help": declared.help}
            if isinstance(declared.kind, Flag):
                how |= {"action": "store_const", "const": not f.default}
            else:
                choices = getattr(declared.kind, "words", ())
                how |= {"type": option_type(declared.kind.parse), "metavar": declared.metavar or "|".join(choices)}
                how |= {"action": "append"} if declared.many else {}
            action = group.add_argument(flag, **how)
            if declared.advanced:
                advanced(action)


def option_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wraps a parser that raises ValueError for argparse, which would drop the message."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def sampler_config(args: argparse.Namespace, **defaults: Any) -> SamplerConfig:
    """Returns the sampler's settings from parsed options; `defaults` hold for settings that were not given."""
    return SamplerConfig().replace(**{**defaults, **given_settings(args)})


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the sampler's settings that were given as options."""
    declared = [d.name for config in (SamplerConfig, GuidanceConfig) for _, d in settings_of(config)]
    names = ["model", "weights", *declared]
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def guidance_options(parser: argparse.ArgumentParser) -> None:
    """The options of `GuidanceConfig`."""
    add_settings(parser, GuidanceConfig)


def sampler_options(parser: argparse.ArgumentParser, solver: bool = True, budget: bool = False) -> None:
    """The options of `SamplerConfig`; without `solver` those of deterministic DDIM."""
    names = {"steps", "clip"}
    if solver:
        names = {d.name for _, d in settings_of(SamplerConfig) if d.group == SAMPLER} - (
            set() if budget else {"budget"}
        )
        parser.set_defaults(help_all_epilog=methods_text())
    add_settings(parser, SamplerConfig, only=names)


def methods_text() -> str:
    """Lists the solvers and grids, one per line, for the end of a command's full help."""
    lines = ["solvers (--solver) with their default --steps and --grid, and their --solver-options:"]
    for name, method in SOLVERS.items():
        lines.append(f"  {name:14}{method.line:56}{method.steps:>4} {method.grid}")
        lines += [f"      {key}={option.default}  {option.line}" for key, option in method.options.items()]
    lines += ["", "grids (--grid), used when --steps is a plain number:"]
    return "\n".join([*lines, *(f"  {name:14}{line}" for name, line in GRIDS.items())])


def upsampler_options(parser: argparse.ArgumentParser) -> None:
    """Adds --upsampler, --upsampler-solver and --upsampler-steps."""
    group = parser.add_argument_group("upsampler")
    what = "enlarge the samples with this super-resolution model (given like MODEL), or auto for the published one; "
    what += "the small images stay in OUT/base"
    advanced(group.add_argument("--upsampler", metavar="UP", help=what))
    what = "solver of the upsampler (default: chosen as for --solver)"
    solver = group.add_argument("--upsampler-solver", type=values.solver, metavar="NAME", help=what)
    what = "steps of the upsampler (default: chosen as for --steps)"
    steps = group.add_argument("--upsampler-steps", metavar="SPEC", help=what)
    advanced(solver), advanced(steps)


def clip_option(group: Any) -> None:
    """Adds --clip."""
    clip = "clamp the denoised image (static, default), threshold it by quantile (dynamic), or leave it (none)"
    pick(group, "--clip", ("static", "dynamic", "none"), clip)


def data_options(group: Any, labels: bool = True, fit: str = "as in training", tiny: bool = False) -> None:
    """Adds the options of reading images: --labels, --fit, --on-broken, and with `tiny` --on-tiny."""
    if labels:
        group.add_argument("--labels", default="auto", metavar="HOW", help=LABELS)
    pick(group, "--fit", ("crop", "pad"), f"crop the centre, or pad to keep the whole image (default: {fit})")
    broken = "unreadable images: stop with an error (refuse, default) or leave them out (skip)"
    pick(group, "--on-broken", ("refuse", "skip"), broken, "refuse")
    if tiny:
        how = "images smaller than --size: enlarge them (default), stop with an error, or leave them out"
        pick(group, "--on-tiny", ("upscale", "refuse", "skip"), how, "upscale")


def container_options(group: Any) -> None:
    """Adds --frames, --layout, --range and --max-pixels."""
    frames = "frames to read from TIFF, GIF and WebP files with several (default first)"
    pick(group, "--frames", ("first", "all"), frames, "first")
    pick(group, "--layout", ("auto", "hwc", "chw"), "order of the axes in image arrays (default auto)", "auto")
    what = "values of black and white in images that are not 8-bit; auto takes percentiles of the data"
    group.add_argument("--range", dest="value_range", type=values.value_range, metavar="LOW,HIGH|auto", help=what)
    limit = "refuse images with more than N pixels (default 100M)"
    group.add_argument("--max-pixels", type=values.pixels, metavar="N", help=limit)


def seed_option(group: Any, what: str = "random seed") -> None:
    """Adds --seed."""
    group.add_argument("--seed", type=values.seed, default=0, metavar="N", help=f"{what} (default 0)")


def output_options(group: Any, out: str, default: str | None = None) -> None:
    """Adds --batch, --out and --overwrite."""
    batch = "batch size (default: chosen from free memory)"
    group.add_argument("--batch", type=values.positive, metavar="N", help=batch)
    group.add_argument("--out", default=default, metavar="PATH", help=out)
    group.add_argument("--overwrite", action="store_true", help="replace existing results")


def format_option(group: Any) -> None:
    """Adds --format."""
    what = "format: png or npz (8 bits); png16, tiff (float32) or npy with the values of the training images (default "
    what += "png, or tiff if PNG cannot hold the channels)"
    pick(group, "--format", ("png", "npz", "both", "png16", "tiff", "npy"), what)


def class_option(group: Any, text: str) -> None:
    """Adds --class, which may be repeated."""
    group.add_argument("--class", dest="classes", action="append", metavar="NAME|NUMBER", help=text)
