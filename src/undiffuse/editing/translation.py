"""Images carried from one class to another: encoded under the one, decoded under the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.denoiser import Condition, Denoiser
from undiffuse.editing.edit import Edited, EditInputs, EditOptions, EditResult, edit
from undiffuse.editing.methods import StepCallback, load_pipeline, mean_square
from undiffuse.editing.variation import extent, shortened
from undiffuse.grids import Path
from undiffuse.guidance import Guided
from undiffuse.noise import Noise, NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import Images
from undiffuse.sampling import Step, encode, sample
from undiffuse.solvers import DDIM, Solver

__all__ = ["ddib", "translate", "unguided"]


def translate(
    images: Images,
    to: str | int,
    *,
    strength: float | None = None,
    logsnr: float | None = None,
    model: Pipeline | SamplerConfig | str | File = "fashion-mnist-32",
    device: str = "auto",
    **options: Any,
) -> Edited:
    """Carries images from their own class to another: encodes them by DDIM and decodes under the other class.

    The way back to the own class is also taken; its error tells how well the inversion works. Guidance acts on the way
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


def ddib(
    denoiser: Denoiser,
    path: Path,
    noise: Noise,
    x0: Tensor,
    source: Condition | None,
    target: Condition | None,
    *,
    steps: int | None = None,
    decoder: Denoiser | None = None,
    solver: Solver | None = None,
) -> Iterator[Step]:
    """Encodes images under one condition by DDIM and decodes them under another, without noise.

    Both ways are deterministic flows, and the latent between them keeps what the classes share. With equal conditions
    it is reconstruction, and what differs from x0 is the error of the two ways, of first order in 1 / steps.

    Args:
        denoiser: The denoiser of the way up.
        path: The noise levels.
        noise: Numbers the images; none is drawn.
        x0: The images, [B, C, H, W] in [-1, 1].
        source: Their conditions.
        target: The conditions of the results.
        steps: How many of the path's last steps to take, see `steps_for`; by default all.
        decoder: The denoiser of the way back, for example a guided one; by default the same.
        solver: The solver of the way back; by default DDIM.

    Yields:
        Each step of the way back, as `sampling.sample` does.

    References:
        Song et al. 2021, "Denoising Diffusion Implicit Models", section 5.4; Su et al. 2022, "Dual Diffusion Implicit
        Bridges for Image-to-Image Translation".
    """
    way = shortened(path, path.steps if steps is None else steps, denoiser.chain)
    latent = encode(denoiser, way, x0, cond=source)
    return sample(
        decoder or denoiser, way, solver or DDIM(), noise, tuple(x0.shape[1:]), cond=target, x_T=latent,
        device=x0.device,
    )  # fmt: skip


def unguided(denoiser: Denoiser) -> Denoiser:
    """Returns the denoiser within all guidance."""
    while isinstance(denoiser, Guided):
        denoiser = denoiser.denoiser
    return denoiser
