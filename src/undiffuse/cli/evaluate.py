"""`undiffuse evaluate`: computes metrics of samples against a reference."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli.console import say
from undiffuse.cli.evaluating import OPTION_NAMES, sampler_config, settings
from undiffuse.evaluation import evaluate
from undiffuse.evaluation.inputs import is_model
from undiffuse.evaluation.text import report_text
from undiffuse.pictures.names import safe
from undiffuse.util.text import duration

__all__ = ["FOLDER", "OPTION_NAMES", "run"]

FOLDER = "evaluations"


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    config = sampler_config(args, args.samples) if is_model(args.samples) else None
    report = evaluate(
        args.samples, args.reference, config=config, training=args.training, name=args.name, out=args.out,
        folder=FOLDER, overwrite=args.overwrite, device=args.device, **settings(args),
    )  # fmt: skip
    path = Path(args.out) if args.out else Path(FOLDER) / f"{safe(report.name)}.json"
    say(report_text(report))
    say(f"\n{path} written after {duration(time.monotonic() - begin)}")
    return 0
