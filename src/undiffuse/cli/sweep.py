"""`undiffuse sweep`: evaluates guidance scales; with --solvers, --nfe, --grids or --students quality
against network calls."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from undiffuse.cli.console import say
from undiffuse.cli.evaluating import OPTION_NAMES, sampler_config, settings
from undiffuse.config import GuidanceConfig
from undiffuse.config.fields import settings_of
from undiffuse.evaluation import FrontierSweep, GuidanceSweep, frontier, sweep
from undiffuse.evaluation.points import OVER
from undiffuse.pipelines.grids import quoted
from undiffuse.util.text import duration

__all__ = ["OPTION_NAMES", "run"]

SWEPT = {"guidance": ("guidance", 0.0), "cfg": ("cfg", 1.0), "autoguide": ("autoguide_scale", 1.0)}
"""The setting of each swept kind of guidance, and its value without guidance."""


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    by_calls = bool(args.solvers or args.nfe or args.grids or args.students)
    # A frontier varies only the scale of one classifier; --against and --by have a meaning only there.
    own = ("classifier", "guidance", "guidance_at")
    names = [declared.name for _, declared in settings_of(GuidanceConfig) if declared.name not in own]
    others = [name for name in names if getattr(args, name, None) is not None]
    others += ["over"] if args.over != "guidance" else []
    for name in others if by_calls else [name for name in ("against", "by") if getattr(args, name) is not None]:
        what = "cannot be used with" if by_calls else "requires"
        raise ValueError(f"--{name.replace('_', '-')} {what} a frontier (--solvers, --nfe, --grids or --students)")
    option, neutral = SWEPT[args.over]
    if getattr(args, option):
        raise ValueError(f"--{option.replace('_', '-')} is swept: use --scales to give its values")
    if args.over == "guidance" and len(args.classifier or ()) > 1:
        raise ValueError("a sweep takes one classifier: give --classifier once")
    if args.over == "autoguide" and not (args.autoguide or args.autoguide_weights):
        raise ValueError("--over autoguide requires a guiding model: add --autoguide WEAK")
    folder = Path(args.out or "sweep")
    shared: dict[str, Any] = {
        "floor": args.floor, "out": folder, "overwrite": args.overwrite, "device": args.device, "notify": say,
    } | settings(args)  # fmt: skip
    scales = args.scales or ((0.0,) if by_calls else OVER[args.over][1])
    # Options of guidance are checked for the strongest scale; each point keeps those that act at its scale.
    strongest = max(scales, key=lambda scale: abs(scale - neutral))
    config = sampler_config(args, args.model, **{option: [strongest] if option == "guidance" else strongest})
    result = (_frontier if by_calls else _guidance)(args, config, scales, shared)
    say(result.table())
    say(f"\n{folder}: tables, plot and a report per row, written after {duration(time.monotonic() - begin)}")
    if by_calls:
        budget = max(args.nfe or (20,))
        say(f"To sample with the best of these:\n  undiffuse sample {quoted(args.model)} --budget {budget}")
    return 0


def _guidance(args: argparse.Namespace, config: Any, scales: Any, shared: dict[str, Any]) -> GuidanceSweep:
    return sweep(args.model, args.reference, over=args.over, scales=scales, config=config, **shared)


def _frontier(args: argparse.Namespace, config: Any, scales: Any, shared: dict[str, Any]) -> FrontierSweep:
    given = {
        name: value for name in ("solvers", "nfe", "grids", "students", "against") if (value := getattr(args, name))
    }
    given |= {"against": None} if args.against == "none" else {}
    return frontier(args.model, args.reference, scales=scales, by=args.by, config=config, **given, **shared)
