"""Restoring: images from smaller or blurred ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.editing.base import Edited, EditInputs, EditOptions, EditResult, edit
from undiffuse.editing.blur import Blur
from undiffuse.editing.downsampling import Downsampling
from undiffuse.editing.methods import StepCallback, load_pipeline, mean_square, method_settings, sample_observed
from undiffuse.editing.operators import Operator
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import Images
from undiffuse.pixels import from_uint8, to_uint8
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import one_line

__all__ = ["restore"]

METHODS = ("mmps", "pigdm", "dps", "projection")


def restore(
    images: Images,
    *,
    upscale: int | None = None,
    deblur: float | None = None,
    degrade: bool = False,
    model: Pipeline | SamplerConfig | str | Path = "fashion-mnist-32",
    method: str = "mmps",
    zeta: float | None = None,
    iterations: int | None = None,
    noise: float | None = None,
    data_std: float | None = None,
    device: str = "auto",
    **options: Any,
) -> Edited:
    """Enlarges or sharpens images with any model, by sampling images that look like them when degraded again.

    Args:
        images: What `open_images` takes.
        upscale: The images are this many times smaller than the model's, each pixel the mean of upscale x upscale.
        deblur: Or they are blurred by a Gaussian of this standard deviation, in pixels of the model's images.
        degrade: Whether the images are whole: they are degraded first, and the results are compared with them.
        model: A model's file, run folder or name; a config that names it; or a pipeline.
        method: "mmps" (Rozet et al. 2024), "pigdm" (Song et al. 2023), "dps" (Chung et al. 2023) or "projection" (see
            `inpaint`).
        zeta: See `inpaint`.
        iterations: See `inpaint`.
        noise: See `inpaint`.
        data_std: See `inpaint`.
        device: See `Pipeline.load`.
        **options: The fields of `EditOptions`: classes, out, seed, variants...

    Raises:
        ConfigError: A setting does not fit.
        ValueError: The images cannot be read or have another size, or `out` belongs to something else.
    """
    settings = method_settings(method, METHODS, zeta=zeta, iterations=iterations, noise=noise, data_std=data_std)
    shared = EditOptions(**options)
    if (upscale is None) == (deblur is None):
        raise ConfigError("upscale", "give either a factor or `deblur`")
    operator: Operator = Downsampling(upscale) if upscale is not None else Blur(deblur or 0)
    pipeline = load_pipeline(model, device, method)
    factor, size = upscale or 1, None
    if upscale is not None:
        height, width = pipeline.shape[1:]
        if height % factor or width % factor:
            raise ConfigError(
                "upscale", f"{factor} does not divide the model's images of {height}x{width} (height x width)"
            )
        size = None if degrade else (height // factor, width // factor)
    inputs = EditInputs.open(pipeline, images, shared, size)
    if size is not None and shared.fit is None:
        check_sizes(inputs, size, factor)

    def observed(x0: Tensor) -> Tensor:
        """The images as they are given to the method, in 8 bits where the model's images have 8."""
        if not degrade:
            return x0
        seen_x0 = operator(x0)
        return from_uint8(to_uint8(seen_x0), x0.device) if pipeline.model.value_range is None else seen_x0

    def seen(x0: Tensor, numbers: list[int] | None = None) -> Tensor:
        return observed(x0).repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    def make(
        x0: Tensor, noise: NoiseSource, labels: list[int] | None, numbers: list[int], on_step: StepCallback
    ) -> EditResult:
        y = observed(x0)
        x = sample_observed(pipeline, settings, operator, y, noise, labels, on_step).clamp(-1, 1)
        again = "the results, made smaller again, differ by" if upscale else "the results, blurred, differ by"
        errors = {again: mean_square(operator(x) - y)}
        if degrade:
            errors["the results differ from the whole images by"] = mean_square(x - x0)
            errors["what they were made from differed by"] = mean_square(seen(x0) - x0)
        return EditResult(x, errors)

    task = {"upscale": upscale} if upscale else {"deblur": deblur}
    text = f"{method}, " + (f"{upscale} times larger" if upscale else f"blur {deblur:g}")
    whole = size is None and not degrade  # what was read is what was seen
    return edit(
        pipeline, inputs, make, shared, command="restore", record={**settings, **task, "degrade": degrade}, text=text,
        seen=None if whole else seen,
    )  # fmt: skip


def check_sizes(inputs: EditInputs, size: tuple[int, int], factor: int) -> None:
    """Raises ValueError unless the images have the size (height, width) that is enlarged; others would be resized."""
    source = inputs.dataset.source
    for i in range(len(source)):
        width, height = source.stored_size(i)
        if (height, width) != size:
            raise ConfigError(
                "upscale",
                f"{factor} takes images of {size[1]}x{size[0]} (width x height), but {one_line(source.name(i))} is "
                f"{width}x{height}: use `degrade` if the images are whole and should be made smaller first, or `fit` "
                "to bring them to that size",
            )
