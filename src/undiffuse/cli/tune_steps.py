"""`undiffuse tune-steps`: the noise levels on which a solver errs least in a number of steps, chosen for the model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli.console import say, table
from undiffuse.cli.options import sampler_config
from undiffuse.evaluation.evaluator import refuse_existing
from undiffuse.evaluation.text import number
from undiffuse.pipelines import Pipeline
from undiffuse.tuning import Measured, Tuned
from undiffuse.tuning.cache import described, tune_pipeline, verdict
from undiffuse.util.files import atomic_file
from undiffuse.util.text import duration


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    path = Path(args.out or f"steps-{args.solver}-{args.steps}.json")
    refuse_existing(path, args.overwrite)
    config = sampler_config(args).replace(grid="logsnr")
    if (args.guidance_interval or "").startswith("steps:"):
        raise ValueError(
            "levels are compared at which guidance acts alike: give --guidance-interval in log-SNR or sigma"
        )
    if config.guidance.strength and config.guidance.at == "mean":
        raise ValueError("--guidance-at mean exists for ancestral sampling only, whose steps draw noise")
    pipeline = Pipeline.load(config, args.device, keep_weights=False)
    found, count = tune_pipeline(pipeline, args.steps, args.count, args.seed, args.classes)
    with atomic_file(path, overwrite=args.overwrite) as file:
        file.write(described(found, pipeline, args.steps, count, args.seed))
    if count < args.count:
        say(f"chosen by {count} images and measured by {count}, not {args.count:,}: no more are made at once")
    say(_table(found))
    say(verdict(found, args.solver))
    say(f"\nuse it by --solver {args.solver} --steps {args.steps} --grid {found.spec}")
    say(f"{path} written after {duration(time.monotonic() - begin)}")
    return 0


def _table(found: Tuned) -> str:
    def row(spec: str, measured: Measured) -> list[str]:
        name = f"{'* ' if spec == found.spec else '  '}{'optimised' if spec.startswith('at:') else spec}"
        return [name, number(measured.choice), f"{number(measured.check, measured.stderr)}",
                f"+- {number(measured.stderr, measured.stderr)}"]  # fmt: skip

    ordered = sorted(found.tried.items(), key=lambda item: item[1].choice)
    rows = [row(spec, measured) for spec, measured in ordered]
    heads = ("grid", "error", "on fresh noise", "")
    return table(rows, head=heads, right=(1, 2)) + f"\n  {found.nfe} network calls an image; error: root mean square"
