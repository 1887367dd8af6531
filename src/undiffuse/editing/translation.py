"""Images carried from one class to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.editing.base import Edited, EditInputs, EditOptions, EditResult, edit
from undiffuse.editing.ddib import ddib, unguided
from undiffuse.editing.methods import StepCallback, load_pipeline, mean_square
from undiffuse.editing.variation import extent
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import Images

__all__ = ["translate"]


def translate(
    images: Images,
    to: str | int,
    *,
    strength: float | None = None,
    logsnr: float | None = None,
    model: Pipeline | SamplerConfig | str | Path = "fashion-mnist-32",
    device: str = "auto",
    **options: Any,
) -> Edited:
    """Carries images from their own class to another: encodes them by DDIM and decodes under the other class.

    The way back to the own class is also taken; its error shows how well the inversion works. Guidance acts on the way
    back to images.

    Args:
        images: What `open_images` takes.
        to: The class to carry them to, by name or number.
        strength: The part of the way to noise, from 0 to 1; default 1.
        logsnr: Or the log-SNR to go to, for example -1.
        model: A model's file, run folder or name; a config that names it; or a pipeline. DDIM is the default solver.
        device: See `Pipeline.load`.
        **options: The fields of `EditOptions`; "classes" are the images' own.

    Raises:
        ConfigError: A setting does not fit, or the classes of the images are unknown.
        ValueError: The model has no classes, the images cannot be read, or `out` belongs to something else.

    References:
        Su et al. 2022, "Dual Diffusion Implicit Bridges for Image-to-Image Translation".
    """
    shared = EditOptions(**options)
    pipeline = load_pipeline(model, device, solver="ddim")
    if pipeline.model.num_classes is None:
        raise ValueError("the model has no classes to carry images between: expected one that was trained with labels")
    target = pipeline.model.class_index(to)
    steps, record, text = extent(pipeline, strength, logsnr, default=1.0)
    inputs = EditInputs.open(pipeline, images, shared)
    plain = unguided(pipeline.denoiser)

    def make(
        x0: Tensor, noise: NoiseSource, labels: list[int] | None, numbers: list[int], on_step: StepCallback
    ) -> EditResult:
        own, other = pipeline.condition(labels), pipeline.condition([target] * len(x0))
        *_, back = ddib(plain, pipeline.path, noise, x0, own, own, steps=steps)
        for step in ddib(
            plain, pipeline.path, noise, x0, own, other, steps=steps, decoder=pipeline.denoiser, solver=pipeline.solver
        ):
            on_step(step)
        errors = {
            "reconstruction, there and back under the own class, is off by": mean_square(back.x - x0),
            "the results differ from the images by": mean_square(step.x - x0),
        }
        return EditResult(step.x, errors)

    return edit(
        pipeline, inputs, make, shared, command="translate", record={**record, "to": target},
        text=f"to {pipeline.model.label_name(target)}, {text}", target=target,
    )  # fmt: skip
