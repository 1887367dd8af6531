"""Levels chosen by a model, for `tune-steps` and for `sweep --grids tuned`: by which images, and where they are kept.

What a sweep found lies in the cache ($UNDIFFUSE_CACHE/tuned) under the weights, guidance, solver, steps, classes,
precision, images and seed that decide it, so that a sweep that was stopped goes on with the same levels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import undiffuse
from undiffuse.downloads import cache_dir
from undiffuse.methods import METHODS
from undiffuse.noise import NoiseSource
from undiffuse.pipelines.pipeline import Pipeline, classes_to_guide
from undiffuse.pipelines.source import SampleSource
from undiffuse.tuning import FINE, Batch, Measured, Tuned, tune
from undiffuse.util.files import atomic_file
from undiffuse.util.progress import Progress

WORD = "tuned"
IMAGES = 32
_STREAM = "tune-steps"  # noise of its own: the images of `sample` are not those the levels were chosen by
_VARIED = ("grid", "steps")


def images_of(spec: str) -> int | None:
    """Of how many images a grid "tuned" or "tuned:images=N" is to be chosen; None for any other grid.

    ValueError for options that it does not have.
    """
    name, colon, rest = spec.replace(" ", "").partition(":")
    if name != WORD:
        return None
    key, _, value = rest.partition("=")
    if not colon:
        return IMAGES
    if key != "images" or not (value.isascii() and value.isdecimal()) or not 2 <= int(value[:9]) <= 4096:
        raise ValueError(f"the grid {spec!r}: expected tuned, or tuned:images=N with N from 2 to 4096")
    return int(value)


def check(solver: str, steps: int) -> None:
    """ValueError, with the reason, for a solver or a number of steps that no levels can be chosen for."""
    if METHODS[solver].kind != "ode":
        raise ValueError("it draws noise, so its images cannot be compared with those the flow makes of the same start")
    if not 2 <= steps < FINE:
        raise ValueError(f"levels are chosen for 2 to {FINE - 1} steps, not {steps}")


def choose(sampler: Pipeline, steps: int, images: int, seed: int, classes: Sequence[str] | None) -> tuple[Tuned, int]:
    """The levels of `steps` steps for the sampler's solver, denoiser and guidance, and by how many images they were
    chosen: `images`, or as many as are made at once (but 2).
    """
    if sampler.model.spec.super_resolution:
        raise ValueError("a super-resolution model enlarges images; levels are chosen for models that begin with noise")
    count = _count(sampler, images)
    job = SampleSource(sampler, seed, classes_to_guide(sampler, classes))
    told = "y" in sampler.denoiser.conditions

    def batch(first: int) -> Batch:
        indices = list(range(first, first + count))
        noise = NoiseSource(seed, indices, _STREAM)
        return Batch(noise, sampler.condition(job.labels(indices) if told else None))

    with Progress(f"tuning {sampler.settings.solver} {steps}", 1, "runs") as progress:
        found = tune(
            sampler.denoiser, sampler.solver, steps, batch(0), batch(count), sampler.shape,
            device=sampler.device, progress=progress.advance,
        )  # fmt: skip
    return found, count


def kept(
    sampler: Pipeline, steps: int, images: int, seed: int, classes: Sequence[str] | None, cache: bool = True
) -> Tuned:
    """As `choose`, from the cache where they were chosen before."""
    decides = [undiffuse.__version__, _decided(sampler), steps, _count(sampler, images), seed,
               classes_to_guide(sampler, classes)]  # fmt: skip
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    path = cache_dir("tuned", f"{key[:40]}.json")
    if cache:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return read(json.loads(path.read_bytes()))
    found, count = choose(sampler, steps, images, seed, classes)
    if cache:
        with contextlib.suppress(OSError), atomic_file(path, overwrite=True) as file:
            file.write(described(found, sampler, steps, count, seed))
    return found


def described(found: Tuned, sampler: Pipeline, steps: int, images: int, seed: int) -> bytes:
    """The JSON file of a tuned grid: the grid, what it is for, and every grid that was tried with its errors."""
    about = {
        "kind": "tuned-steps",
        "grid": found.spec,
        "solver": sampler.settings.solver,
        "solver_options": sampler.settings.solver_options,
        "steps": steps,
        "calls": found.calls,
        "tried": {spec: asdict(measured) for spec, measured in found.tried.items()},
        "images": images,
        "seed": seed,
        "sampler": {k: v for k, v in _decided(sampler).items() if k not in ("solver", "solver_options")},
        "version": undiffuse.__version__,
    }
    return json.dumps(about, indent=1).encode() + b"\n"


def read(about: dict[str, Any]) -> Tuned:
    """Back from `described`; KeyError, TypeError or ValueError for anything else."""
    tried = {spec: Measured(**measured) for spec, measured in about["tried"].items()}
    found = Tuned(about["grid"], tried, about["calls"])
    if about["kind"] != "tuned-steps" or found.spec not in tried:
        raise ValueError("not a tuned grid")
    return found


def _decided(sampler: Pipeline) -> dict[str, Any]:
    """What of a sampler's record the levels depend on: all but the levels themselves."""
    return {name: value for name, value in sampler.record.items() if name not in _VARIED}


def _count(sampler: Pipeline, images: int) -> int:
    return min(images, max(2, sampler.batch_size(None)))


__all__ = ["check", "choose", "described", "images_of", "kept"]
