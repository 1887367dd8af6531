"""Variations of images: part of the way to noise, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.editing.base import Edited, EditInputs, EditOptions, EditResult, edit
from undiffuse.editing.methods import StepCallback, load_pipeline, mean_square
from undiffuse.editing.sdedit import sdedit, steps_for
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import Images

__all__ = ["extent", "vary"]


def vary(
    images: Images,
    *,
    strength: float | None = None,
    logsnr: float | None = None,
    model: Pipeline | SamplerConfig | str | Path = "fashion-mnist-32",
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
        strength: See `vary`.
        logsnr: See `vary`.
        default: The strength if neither is given.
    """
    if strength is None and logsnr is None:
        strength = default
    steps = steps_for(pipeline.path, strength, logsnr)
    record = {"strength": strength} if strength is not None else {"logsnr": logsnr}
    text = f"strength {strength:g}" if strength is not None else f"log-SNR {logsnr:g}"
    return steps, {**record, "steps_gone": steps}, f"{text} ({steps} steps)"
