"""`undiffuse tune-steps`: the noise levels on which a solver errs least in a number of steps, chosen by the model."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import undiffuse
from undiffuse.cli.console import Progress, duration, say, table
from undiffuse.cli.evaluate import refuse_existing
from undiffuse.cli.job import Job
from undiffuse.cli.reporting import number
from undiffuse.cli.sampler import Sampler, Settings, classes_to_guide
from undiffuse.methods import method
from undiffuse.noise import NoiseSource
from undiffuse.pictures.files import atomic_file
from undiffuse.tuning import Batch, Measured, Tuned, tune

_STREAM = "tune-steps"  # noise of its own: the images of `sample` are not those the grid was chosen by
SIGNIFICANT = 2.0  # standard errors


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    path = Path(args.out or f"steps-{args.solver}-{args.steps}.json")
    refuse_existing(path, args.overwrite)
    settings = Settings.of_args(argparse.Namespace(**{**vars(args), "steps": str(args.steps), "grid": "logsnr"}))
    if (settings.guiding.guidance_interval or "").startswith("steps:"):
        raise ValueError(
            "levels are compared at which guidance acts alike: give --guidance-interval in log-SNR or sigma"
        )
    if settings.guidance and settings.guidance_at == "mean":
        raise ValueError("--guidance-at mean exists for ancestral sampling only, whose steps draw noise")
    sampler = Sampler.load(settings, args.device)
    count = max(2, min(args.count, sampler.batch_size(None)))
    classes = classes_to_guide(sampler, args.classes)
    job = Job(sampler, args.seed, classes)
    told = "y" in sampler.denoiser.conditions

    def batch(first: int) -> Batch:
        indices = list(range(first, first + count))
        noise = NoiseSource(args.seed, indices, _STREAM)
        return Batch(noise, sampler.condition(job.labels(indices) if told else None))

    with Progress("tuning", 1, "runs") as progress:
        found = tune(
            sampler.denoiser, sampler.solver, args.steps, batch(0), batch(count), sampler.shape,
            device=sampler.device, progress=progress.advance,
        )  # fmt: skip
    usual = method(args.solver).grid
    about = {
        "kind": "tuned-steps",
        "grid": found.spec,
        "solver": args.solver,
        "solver_options": sampler.settings.solver_options,
        "steps": args.steps,
        "calls": found.calls,
        "tried": {spec: asdict(measured) for spec, measured in found.tried.items()},
        "images": count,
        "seed": args.seed,
        "sampler": {k: v for k, v in sampler.record.items() if k not in ("grid", "steps", "solver", "solver_options")},
        "version": undiffuse.__version__,
    }
    with atomic_file(path, overwrite=args.overwrite) as file:
        file.write(json.dumps(about, indent=1).encode() + b"\n")
    say(_table(found))
    say(verdict(found, usual, args.solver))
    say(f"\nuse it by --solver {args.solver} --steps {args.steps} --grid {found.spec}")
    say(f"{path} written after {duration(time.monotonic() - begin)}")
    return 0


def verdict(found: Tuned, usual: str, solver: str) -> str:
    """In a sentence: what the grid gains over the solver's own one, if that is more than the measurement's error."""
    ours, theirs = found.tried[found.spec], found.tried.get(usual)
    if found.spec == usual:
        return f"nothing gained: {usual}, which is the default of {solver}, was the best of all"
    if theirs is None:
        return f"the default grid of {solver}, {usual}, does not exist for so many steps"
    noise = (ours.stderr**2 + theirs.stderr**2) ** 0.5
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
