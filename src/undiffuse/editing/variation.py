"""Variations of an image: part of the way to noise, and back (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.denoiser import Condition, Denoiser
from undiffuse.editing.edit import Edited, EditInputs, EditOptions, EditResult, edit
from undiffuse.editing.methods import StepCallback, load_pipeline, mean_square
from undiffuse.grids import Grid, Path
from undiffuse.levels import Chain, diffuse
from undiffuse.noise import Noise, NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import Images
from undiffuse.sampling import Step, sample
from undiffuse.solvers import Solver

__all__ = ["extent", "sdedit", "shortened", "steps_for", "vary"]


def vary(
    images: Images,
    *,
    strength: float | None = None,
    logsnr: float | None = None,
    model: Pipeline | SamplerConfig | str | File = "fashion-mnist-32",
    device: str = "auto",
    **options: Any,
) -> Edited:
    """Makes variations of images, by taking them part of the way to noise and sampling from there (SDEdit).

    From sketches to images, or from an image to others like it; with `classes` to images of that class.

    Args:
        images: What `open_images` takes.
        strength: The part of the way to noise, from 0 (nothing changes) to 1 (nothing is kept); default 0.5.
        logsnr: Or the log-SNR to go to, for example -1.
        model: A model's file, run folder or name; a config that names it; or a pipeline.
        device: See `Pipeline.load`.
        **options: The fields of `EditOptions`: classes, out, seed, variants...

    Raises:
        ConfigError: A setting does not fit.
        ValueError: The images cannot be read, or `out` belongs to something else.
    """
    shared = EditOptions(**options)
    pipeline = load_pipeline(model, device)
    steps, record, text = extent(pipeline, strength, logsnr, default=0.5)
    inputs = EditInputs.open(pipeline, images, shared)

    def make(
        x0: Tensor, noise: NoiseSource, labels: list[int] | None, numbers: list[int], on_step: StepCallback
    ) -> EditResult:
        cond = pipeline.condition(labels)
        for step in sdedit(pipeline.denoiser, pipeline.path, pipeline.solver, noise, x0, steps, cond=cond):
            on_step(step)
        return EditResult(step.x, {"the results differ from the images by": mean_square(step.x - x0)})

    return edit(pipeline, inputs, make, shared, command="vary", record=record, text=text)


def extent(
    pipeline: Pipeline, strength: float | None, logsnr: float | None, default: float
) -> tuple[int, dict[str, Any], str]:
    """Returns the steps that are taken up and down, what a record says of them, and that in words.

    Args:
        pipeline: The pipeline whose path is meant.
        strength, logsnr: See `vary`.
        default: The strength if neither is given.
    """
    if strength is None and logsnr is None:
        strength = default
    steps = steps_for(pipeline.path, strength, logsnr)
    record = {"strength": strength} if strength is not None else {"logsnr": logsnr}
    text = f"strength {strength:g}" if strength is not None else f"log-SNR {logsnr:g}"
    return steps, {**record, "steps_gone": steps}, f"{text} ({steps} steps)"


def steps_for(path: Path, strength: float | None = None, logsnr: float | None = None) -> int:
    """Counts the last steps of a path that an image is taken up and down again.

    Args:
        path: The path.
        strength: The part of all steps, from 0 to 1.
        logsnr: Or the log-SNR to go to: the steps from the noisiest level that is no noisier.

    Raises:
        ValueError: Both or neither is given, or that is less than one step.
    """
    if (strength is None) == (logsnr is None):
        raise ValueError("give either a strength from 0 to 1 or a log-SNR")
    if strength is not None:
        if not 0 <= strength <= 1:
            raise ValueError(f"a strength is a part of the way to noise, from 0 to 1; got {strength:g}")
        steps = round(strength * path.steps)
        given = f"strength {strength:g}"
    else:
        steps = sum(float(path.level(k).logsnr) >= float(logsnr or 0) for k in range(path.steps))
        given = f"log-SNR {logsnr:g}"
    if steps == 0:
        raise ValueError(f"{given} is less than one of {path.steps} steps, which changes nothing: give more of either")
    return steps


def shortened(path: Path, steps: int, chain: Chain) -> Path:
    """Returns the last `steps` steps of a path, through the levels of `chain`, as a path of its own."""
    if not 1 <= steps <= path.steps:
        raise ValueError(f"a path of {path.steps} steps has no last {steps}")
    if steps == path.steps:
        return path
    if isinstance(path, Chain):
        return Chain(path.betas[:steps], path.indices[:steps].tolist(), path.parent_steps, path.alphas_cumprod[:steps])
    levels = [path.level(k) for k in reversed(range(steps))] + [path.transition(0).target]
    alpha, sigma = [float(level.alpha) for level in levels], [float(level.sigma) for level in levels]
    return Grid(alpha, sigma, None if path.parent_steps is None else chain, path.spec)


def sdedit(
    denoiser: Denoiser,
    path: Path,
    solver: Solver,
    noise: Noise,
    x0: Tensor,
    steps: int,
    *,
    cond: Condition | None = None,
) -> Iterator[Step]:
    """Diffuses images to a level of the path and samples from there (SDEdit, Meng et al. 2022).

    Few steps keep the image, many keep its coarse parts. All of them use nothing of it: that is `sampling.sample`.

    Args:
        denoiser: The denoiser, guided or not.
        path: The noise levels.
        solver: The sampling method.
        noise: The noise of the B images.
        x0: The images, [B, C, H, W] in [-1, 1].
        steps: How many of the path's steps are left at the level that they are taken to, see `steps_for`.
        cond: The conditions of the denoiser.

    Yields:
        Each step, as `sampling.sample` does.
    """
    way, shape = shortened(path, steps, denoiser.chain), tuple(x0.shape[1:])
    start = noise.normal(shape, step=0, purpose="x_T", device=x0.device).to(x0.dtype)
    if steps < path.steps:
        start = diffuse(x0, way.level(steps - 1), start)
    return sample(denoiser, way, solver, noise, shape, cond=cond, x_T=start, device=x0.device)
