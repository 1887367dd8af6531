"""`undiffuse tune-steps`: finds the noise levels with the smallest error for a model, solver and number of steps."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli.console import say, table
from undiffuse.cli.options import sampler_config
from undiffuse.evaluation.evaluator import refuse_existing
from undiffuse.evaluation.text import number
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.grids import quoted
from undiffuse.tuning import Measured, Tuned
from undiffuse.tuning.cache import described, tune_pipeline, verdict
from undiffuse.util.files import atomic_file
from undiffuse.util.text import count_of, duration


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    path = Path(args.out or f"steps-{args.solver}-{args.steps}.json")
    refuse_existing(path, args.overwrite)
    config = sampler_config(args).replace(grid="logsnr")
    if (args.guidance_interval or "").startswith("steps:"):
        raise ValueError(
            "--guidance-interval must be in log-SNR or sigma here, because a fraction of the steps depends on the grid"
        )
    if config.guidance.strength and config.guidance.at == "mean":
        raise ValueError("--guidance-at mean works with the solver ddpm only, which cannot be tuned: leave it out")
    pipeline = Pipeline.load(config, args.device, keep_weights=False)
    found, count = tune_pipeline(pipeline, args.steps, args.count, args.seed, args.classes)
    with atomic_file(path, overwrite=args.overwrite) as file:
        file.write(described(found, pipeline, args.steps, count, args.seed))
    if count < args.count:
        say(f"tuned on {count_of(count, 'image')} instead of {args.count:,}, which is what fits in memory")
    say(_table(found))
    say(verdict(found, args.solver))
    model = quoted(str(config.model))
    grid = quoted(found.spec)
    say(f"\nTo use it:\n  undiffuse sample {model} --solver {args.solver} --steps {args.steps} --grid {grid}")
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
    note = f"{found.nfe} network calls per image; the error is the root mean square"
    return f"{table(rows, head=heads, right=(1, 2))}\n  {note}"
