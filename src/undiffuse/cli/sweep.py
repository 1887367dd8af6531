"""`undiffuse sweep`: strengths of guidance, or with --solvers, --nfe or --grids quality against network calls."""

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
from undiffuse.util.text import duration

__all__ = ["OPTION_NAMES", "run"]

SWEPT = {"guidance": ("guidance", 0.0), "cfg": ("cfg", 1.0), "autoguide": ("autoguide_scale", 1.0)}
"""The option that a strength is, and its value without guidance."""


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    by_calls = bool(args.solvers or args.nfe or args.grids)
    # In a frontier only the strength of one classifier varies; --against and --by belong to one.
    own = ("classifier", "guidance", "guidance_at")
    names = [declared.name for _, declared in settings_of(GuidanceConfig) if declared.name not in own]
    others = [name for name in names if getattr(args, name, None) is not None]
    others += ["over"] if args.over != "guidance" else []
    for name in others if by_calls else [name for name in ("against", "by") if getattr(args, name) is not None]:
        what = "is not for" if by_calls else "is for"
        raise ValueError(f"--{name.replace('_', '-')} {what} a frontier (--solvers, --nfe, --grids): leave it out")
    option, neutral = SWEPT[args.over]
    if getattr(args, option):
        raise ValueError(f"--{option.replace('_', '-')} is what is swept: give its values by --scales")
    if args.over == "guidance" and len(args.classifier or ()) > 1:
        raise ValueError("a sweep is over the strengths of one classifier: give --classifier once")
    if args.over == "autoguide" and not (args.autoguide or args.autoguide_weights):
        raise ValueError("--over autoguide needs the model that guides: give --autoguide WEAK")
    folder = Path(args.out or "sweep")
    shared: dict[str, Any] = {
        "floor": args.floor, "out": folder, "overwrite": args.overwrite, "device": args.device, "notify": say,
    } | settings(args)  # fmt: skip
    scales = args.scales or ((0.0,) if by_calls else OVER[args.over][1])
    # Options that shape guidance are read as for the strongest one; each point keeps those that act at its strength.
    strongest = max(scales, key=lambda scale: abs(scale - neutral))
    config = sampler_config(args, args.model, **{option: [strongest] if option == "guidance" else strongest})
    result = (_frontier if by_calls else _guidance)(args, config, scales, shared)
    say(result.table())
    say(f"\ntables, plot and a report for each row in {folder}, written after {duration(time.monotonic() - begin)}")
    if by_calls:
        say(f"`undiffuse sample {args.model} --budget CALLS` now takes the best of these")
    return 0


def _guidance(args: argparse.Namespace, config: Any, scales: Any, shared: dict[str, Any]) -> GuidanceSweep:
    return sweep(args.model, args.reference, over=args.over, scales=scales, config=config, **shared)


def _frontier(args: argparse.Namespace, config: Any, scales: Any, shared: dict[str, Any]) -> FrontierSweep:
    given = {name: value for name in ("solvers", "nfe", "grids", "against") if (value := getattr(args, name))}
    given |= {"against": None} if args.against == "none" else {}
    return frontier(args.model, args.reference, scales=scales, by=args.by, config=config, **given, **shared)
