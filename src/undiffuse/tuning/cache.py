"""Levels tuned to a pipeline, for `tune-steps` and for frontiers with the grid "tuned", and where they are kept.

Levels lie in the cache ($UNDIFFUSE_CACHE/tuned) under everything that decides them: weights, guidance, solver, steps,
classes, precision, images and seed. A sweep that was stopped resumes with the same levels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import undiffuse
from undiffuse.downloads import cache_dir
from undiffuse.noise import NoiseSource
from undiffuse.solvers.registry import SOLVERS, solver_info
from undiffuse.tuning.search import FINE, Batch, Measured, Tuned, tune
from undiffuse.util.files import atomic_file
from undiffuse.util.progress import NoProgress, Progress

if TYPE_CHECKING:
    from undiffuse.pipelines.pipeline import Pipeline

__all__ = ["cached_levels", "check_tunable", "described", "read", "tune_pipeline", "tuned_images", "verdict"]

WORD = "tuned"
IMAGES = 32
SIGNIFICANT = 2.0  # standard errors
_STREAM = "tune-steps"  # noise of its own: the images of `sample` are not those that the levels were chosen by
_VARIED = ("grid", "steps")


def tuned_images(spec: str) -> int | None:
    """Returns the images that a grid "tuned" or "tuned:images=N" is chosen by; None for any other grid.

    Raises:
        ValueError: An option that the grid does not have, or N outside 2 to 4096.
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


def check_tunable(solver: str, steps: int) -> None:
    """Raises ValueError, with the reason, for a solver or a number of steps that no levels can be chosen for."""
    if SOLVERS[solver].kind != "ode":
        raise ValueError("it draws noise, so its images cannot be compared with those the flow makes of the same start")
    if not 2 <= steps < FINE:
        raise ValueError(f"levels are chosen for 2 to {FINE - 1} steps, not {steps}")


def tune_pipeline(
    pipeline: Pipeline,
    steps: int,
    images: int = IMAGES,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> tuple[Tuned, int]:
    """Chooses the levels of a number of steps for a pipeline's solver, model and guidance.

    Args:
        pipeline: The model with its solver, which must draw no noise.
        steps: Number of steps.
        images: Images to choose by.
        seed: Seed of their noise.
        classes: Their classes, by name or number; None takes all.
        progress: Shows a progress bar.

    Returns:
        The levels, and the number of images they were chosen by: `images`, or as many as are made at once.

    Raises:
        ValueError: A solver or a number of steps that no levels can be chosen for, or a super-resolution model.
    """
    from undiffuse.pipelines.classes import choose_classes
    from undiffuse.pipelines.source import SampleSource

    if pipeline.model.spec.super_resolution:
        raise ValueError("a super-resolution model enlarges images; levels are chosen for models that begin with noise")
    count = _count(pipeline, images)
    source = SampleSource(pipeline, seed, choose_classes(pipeline, classes))
    conditional = "y" in pipeline.denoiser.conditions

    def batch(first: int) -> Batch:
        indices = list(range(first, first + count))
        noise = NoiseSource(seed, indices, _STREAM)
        return Batch(noise, pipeline.condition(source.labels(indices) if conditional else None))

    what = f"tuning {pipeline.config.solver} {steps}"
    with Progress(what, 1, "runs") if progress else NoProgress(1) as bar:
        found = tune(
            pipeline.denoiser, pipeline.solver, steps, batch(0), batch(count), pipeline.shape,
            device=pipeline.device, progress=bar.advance,
        )  # fmt: skip
    return found, count


def cached_levels(
    pipeline: Pipeline,
    steps: int,
    images: int = IMAGES,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    cache: bool = True,
    progress: bool = True,
) -> Tuned:
    """Returns what `tune_pipeline` chooses, from the cache where it was chosen before.

    Args:
        pipeline: See `tune_pipeline`, as for `steps`, `images`, `seed`, `classes` and `progress`.
        cache: Looks up and keeps levels on the disk.
    """
    from undiffuse.pipelines.classes import choose_classes

    decides = [undiffuse.__version__, _decided(pipeline), steps, _count(pipeline, images), seed,
               choose_classes(pipeline, classes)]  # fmt: skip
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    path = cache_dir("tuned", f"{key[:40]}.json")
    if cache:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return read(json.loads(path.read_bytes()))
    found, count = tune_pipeline(pipeline, steps, images, seed, classes, progress)
    if cache:
        with contextlib.suppress(OSError), atomic_file(path, overwrite=True) as file:
            file.write(described(found, pipeline, steps, count, seed))
    return found


def described(found: Tuned, pipeline: Pipeline, steps: int, images: int, seed: int) -> bytes:
    """Returns the JSON file of tuned levels: what they are for, and every grid that was tried with its errors."""
    about = {
        "kind": "tuned-steps",
        "grid": found.spec,
        "solver": pipeline.config.solver,
        "solver_options": pipeline.config.solver_options,
        "steps": steps,
        "nfe": found.nfe,
        "tried": {spec: asdict(measured) for spec, measured in found.tried.items()},
        "images": images,
        "seed": seed,
        "sampler": {k: v for k, v in _decided(pipeline).items() if k not in ("solver", "solver_options")},
        "version": undiffuse.__version__,
    }
    return json.dumps(about, indent=1).encode() + b"\n"


def read(about: dict[str, Any]) -> Tuned:
    """Reads what `described` wrote; KeyError, TypeError or ValueError for anything else."""
    tried = {spec: Measured(**measured) for spec, measured in about["tried"].items()}
    found = Tuned(about["grid"], tried, about["nfe"])
    if about["kind"] != "tuned-steps" or found.spec not in tried:
        raise ValueError("not a tuned grid")
    return found


def verdict(found: Tuned, solver: str) -> str:
    """Says in a sentence what the levels gain over the solver's own grid, if that is more than the error."""
    usual = solver_info(solver).grid
    ours, theirs = found.tried[found.spec], found.tried.get(usual)
    if found.spec == usual:
        return f"nothing gained: {usual}, which is the default of {solver}, was the best of all"
    if theirs is None:
        return f"the default grid of {solver}, {usual}, does not exist for so many steps"
    noise = (ours.stderr**2 + theirs.stderr**2) ** 0.5
    if ours.check - theirs.check > SIGNIFICANT * noise:
        return f"nothing gained: on fresh noise {usual}, the default of {solver}, was better; more images choose better"
    if not theirs.check - ours.check > SIGNIFICANT * noise:
        return f"nothing gained for certain: on fresh noise it differs from {usual} by less than {SIGNIFICANT:g} errors"
    return f"{theirs.check / ours.check:.2f} times less error than {usual}, the default of {solver}, on fresh noise"


def _decided(pipeline: Pipeline) -> dict[str, Any]:
    """What the levels depend on: all of a pipeline's record but the levels themselves."""
    return {name: value for name, value in pipeline.record.items() if name not in _VARIED}


def _count(pipeline: Pipeline, images: int) -> int:
    return min(images, max(2, pipeline.batch_size(None)))
