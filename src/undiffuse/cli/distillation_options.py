"""The options of `distill`. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from undiffuse.cli import options, values
from undiffuse.cli.training_options import training_options
from undiffuse.config import GuidanceConfig
from undiffuse.distillation.registry import ANY, DEFAULT, METHODS


def distill(add: Any, commands: Any) -> None:
    """The options of `distill`."""
    parser = add(
        commands,
        "distill",
        "MODEL [DATA] ",
        f"""\
Trains a student that makes images in 1, 2, 4 or another small number of network calls from a model that needs hundreds.
DATA should be the images that MODEL was trained on; moment matching and progressive distillation can do without, on
noise alone. Guidance of MODEL becomes part of the student, which needs none.
The same command again resumes a stopped run.{options.DATA}""",
    )
    parser.add_argument("model", metavar="MODEL", help="model to distil: a name, file or run folder")
    parser.add_argument("data", nargs="?", metavar="DATA", help="images to train on (default: none, noise alone)")
    what, _ = training_options(parser, resume=False)
    calls = "network calls of the student's sampler (default 4)"
    what.add_argument("--calls", type=values.positive, default=4, metavar="N", help=calls)
    options.pick(what, "--method", tuple(METHODS), f"method (default {DEFAULT}); --help-all describes them", DEFAULT)
    what.add_argument(
        "--settings", default="", metavar="KEY=VALUE,...", help="settings of the method, see --help-all"
    )  # fmt: skip
    begin = "start from this student instead of MODEL, for example one of more calls"
    what.add_argument("--init-from", metavar="STUDENT", help=begin)
    adapt = "images of the first stage, in which a model that predicts noise learns to predict v (default: half)"
    what.add_argument("--adapt-images", type=values.positive, metavar="N", help=adapt)
    options.add_settings(parser, GuidanceConfig)
    parser.set_defaults(resume=None, help_all_epilog=methods_text())


def methods_text() -> str:
    """Lists the methods with their settings, for the end of the full help."""
    lines = ["methods (--method) with their --settings:"]
    for name, method in METHODS.items():
        lines.append(f"  {name}: {method.line}")
        for key, setting in method.settings.items():
            words = f" ({', '.join(setting.words)})" if setting.words not in ((), ANY) else ""
            lines.append(f"      {key}={setting.default}  {setting.line}{words}")
    return "\n".join(lines)
