"""Inpainting: a part of images is filled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.editing.base import Edited, EditInputs, EditOptions, EditResult, edit
from undiffuse.editing.mask import Mask, masks_for, read_mask, rectangle
from undiffuse.editing.methods import StepCallback, load_pipeline, mean_square, method_settings, sample_inpainted
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import Images
from undiffuse.util.errors import ConfigError

__all__ = ["inpaint"]


def inpaint(
    images: Images,
    mask: str | Path | np.ndarray | Tensor | None = None,
    *,
    hole: Sequence[int] | None = None,
    model: Pipeline | SamplerConfig | str | Path = "fashion-mnist-32",
    method: str = "repaint",
    resamples: int | None = None,
    jump: int | None = None,
    zeta: float | None = None,
    iterations: int | None = None,
    noise: float | None = None,
    data_std: float | None = None,
    device: str = "auto",
    **options: Any,
) -> Edited:
    """Fills a part of images. What is outside the mask is kept, pixel for pixel.

    Example:
        inpaint(["face.png"], "mask.png", model="faces.safetensors", out="filled")

    Args:
        images: What `open_images` takes.
        mask: Where to fill: a picture, white there; a folder with such a picture for each image, named as it is; or a
            bool array or tensor, True there, [H, W] or [N, H, W] of the model's size.
        hole: A rectangle to fill instead: top, left, height and width in pixels of the model's images.
        model: A model's file, run folder or name; a config that names it; or a pipeline.
        method: "repaint" (Lugmayr et al. 2022), "dps" (Chung et al. 2023), "pigdm" (Song et al. 2023), "mmps" (Rozet
            et al. 2024) or "projection" (for consistency models and other students, see `projection`).
        resamples: Of repaint: how often each stretch of `jump` steps is sampled, default 5.
        jump: Of repaint: steps in a stretch, default 4.
        zeta: Of dps: the length of a step, default 1.
        iterations: Of mmps: conjugate-gradient iterations, default 3.
        noise: Of pigdm and mmps: standard deviation of the noise in the images, in 8-bit levels, default 1.
        data_std: Of pigdm: standard deviation of the model's images in [-1, 1], default 1.
        device: See `Pipeline.load`.
        **options: The fields of `EditOptions`: classes, out, seed, variants...

    Raises:
        ConfigError: A setting or the mask does not fit.
        ValueError: The images cannot be read, or `out` belongs to something else.
    """
    settings = method_settings(
        method, resamples=resamples, jump=jump, zeta=zeta, iterations=iterations, noise=noise, data_std=data_std
    )
    shared = EditOptions(**options)
    if (mask is None) == (hole is None):
        raise ConfigError("mask", "give either a mask or `hole`")
    pipeline = load_pipeline(model, device, method)
    inputs = EditInputs.open(pipeline, images, shared)
    known = rectangle(hole, pipeline.shape[1:]) if hole is not None else _known(mask, inputs, shared.report)
    whole = Mask(known)
    filled = 100 * float((~known).float().mean())

    def part(numbers: list[int]) -> Mask:
        return whole if len(known) == 1 else Mask(known[numbers])

    def make(
        x0: Tensor, noise: NoiseSource, labels: list[int] | None, numbers: list[int], on_step: StepCallback
    ) -> EditResult:
        mask, errors = part(numbers), {}
        x = sample_inpainted(pipeline, settings, mask, x0, noise, labels, on_step)
        if settings["method"] != "repaint":
            share = mask.seen.float().flatten(1).mean(1).to(x.device)
            errors["the known part, before it was put back, was off by"] = mean_square(mask(x) - mask(x0)) / share
        return EditResult(mask.merged(x0, x), errors)

    digest = hashlib.sha256(np.packbits(known.numpy()).tobytes()).hexdigest()
    record = {**settings, "mask": digest, "hole": None if hole is None else list(hole)}
    return edit(
        pipeline, inputs, make, shared, command="inpaint", record=record, text=f"{method}, {filled:.3g}% filled",
        seen=lambda x0, numbers: part(numbers)(x0),
    )  # fmt: skip


def _known(
    mask: str | Path | np.ndarray | Tensor | None, inputs: EditInputs, report: Callable[[str], None] | None
) -> Tensor:
    """Where images are known, bool [1 or N, 1, H, W]."""
    (height, width, _), source = inputs.dataset.shape, inputs.dataset.source
    size = (height, width)
    if isinstance(mask, (np.ndarray, Tensor)):
        array = torch.as_tensor(mask)
        if array.dtype != torch.bool or array.shape[-2:] != size or array.numel() not in (
            height * width, len(inputs) * height * width
        ):  # fmt: skip
            expected = f"expected bool [{height}, {width}], or one for each image"
            raise ConfigError("mask", f"{expected}; got {array.dtype} {list(array.shape)}")
        return ~array.reshape(-1, 1, height, width)
    path, fit = Path(str(mask)), inputs.dataset.config.fit
    zero_one: list[str] = []
    if path.is_dir():
        files = masks_for([source.name(i) for i in range(len(source))], path)
        parts = [
            read_mask(file, size, stored={source.stored_size(i)}, fit=fit, zero_one=zero_one)
            for i, file in enumerate(files)
        ]
        for file, known in zip(files, parts, strict=True):
            _check(known, file)
        found = torch.cat(parts)
    elif not path.is_file():
        raise FileNotFoundError(f"there is no file or folder {path}")
    else:
        sizes = {source.stored_size(i) for i in range(len(source))}
        found = read_mask(path, size, stored=sizes, fit=fit, zero_one=zero_one)
        _check(found, path)
    if zero_one and report is not None:
        others = f" (and {len(zero_one) - 1:,} other masks)" if len(zero_one) > 1 else ""
        report(f"  note    {zero_one[0]}{others} has a brightest value of 1: 0 is kept and 1 is filled")
    return found


def _check(known: Tensor, path: Path) -> None:
    """Raises ConfigError for a mask in which nothing or everything is to be filled."""
    if bool(known.all()):
        raise ConfigError("mask", f"{path} is black everywhere: every pixel is known, and there is nothing to fill")
    if not bool(known.any()):
        raise ConfigError("mask", f"{path} is white everywhere: nothing of the image is known; sample images instead")
