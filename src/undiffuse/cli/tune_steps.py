"""`undiffuse tune-steps`: the noise levels on which a solver errs least in a number of steps, chosen by the model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli import tuned
from undiffuse.cli.console import duration, say, table
from undiffuse.cli.evaluate import refuse_existing
from undiffuse.cli.reporting import number
from undiffuse.methods import method
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig
from undiffuse.tuning import Measured, Tuned
from undiffuse.util.files import atomic_file

SIGNIFICANT = 2.0  # standard errors


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    path = Path(args.out or f"steps-{args.solver}-{args.steps}.json")
    refuse_existing(path, args.overwrite)
    settings = SamplerConfig.of_args(argparse.Namespace(**{**vars(args), "steps": str(args.steps), "grid": "logsnr"}))
    if (settings.guiding.guidance_interval or "").startswith("steps:"):
        raise ValueError(
            "levels are compared at which guidance acts alike: give --guidance-interval in log-SNR or sigma"
        )
    if settings.guidance and settings.guidance_at == "mean":
        raise ValueError("--guidance-at mean exists for ancestral sampling only, whose steps draw noise")
    sampler = Pipeline.load(settings, args.device)
    found, count = tuned.choose(sampler, args.steps, args.count, args.seed, args.classes)
    with atomic_file(path, overwrite=args.overwrite) as file:
        file.write(tuned.described(found, sampler, args.steps, count, args.seed))
    if count < args.count:
        say(f"chosen by {count} images and measured by {count}, not {args.count:,}: no more are made at once")
    say(_table(found))
    say(verdict(found, args.solver))
    say(f"\nuse it by --solver {args.solver} --steps {args.steps} --grid {found.spec}")
    say(f"{path} written after {duration(time.monotonic() - begin)}")
    return 0


def verdict(found: Tuned, solver: str) -> str:
    """In a sentence: what the grid gains over the solver's own one, if that is more than the measurement's error."""
    usual = method(solver).grid
    ours, theirs = found.tried[found.spec], found.tried.get(usual)
    if found.spec == usual:
        return f"nothing gained: {usual}, which is the default of {solver}, was the best of all"
    if theirs is None:
        return f"the default grid of {solver}, {usual}, does not exist for so many steps"
    noise = (ours.stderr**2 + theirs.stderr**2) ** 0.5
    if ours.check - theirs.check > SIGNIFICANT * noise:
        return (
            f"nothing gained: on fresh noise {usual}, the default of {solver}, was better; more --count chooses better"
        )
    if not theirs.check - ours.check > SIGNIFICANT * noise:
        return f"nothing gained for certain: on fresh noise it differs from {usual} by less than {SIGNIFICANT:g} errors"
    return f"{theirs.check / ours.check:.2f} times less error than {usual}, the default of {solver}, on fresh noise"


def _table(found: Tuned) -> str:
    def row(spec: str, measured: Measured) -> list[str]:
        name = f"{'* ' if spec == found.spec else '  '}{'optimised' if spec.startswith('at:') else spec}"
        return [name, number(measured.choice), f"{number(measured.check, measured.stderr)}",
                f"+- {number(measured.stderr, measured.stderr)}"]  # fmt: skip

    ordered = sorted(found.tried.items(), key=lambda item: item[1].choice)
    rows = [row(spec, measured) for spec, measured in ordered]
    heads = ("grid", "error", "on fresh noise", "")
    return table(rows, head=heads, right=(1, 2)) + f"\n  {found.calls} network calls an image; error: root mean square"


__all__ = ["run", "verdict"]
