"""A picture's record made into the picture again, and the comparison with the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from undiffuse.kernels import Plan, planned
from undiffuse.pictures import load_image, read_record, save_image
from undiffuse.pictures.stored import read_file
from undiffuse.pictures.units import as_stored, format_of
from undiffuse.pipelines import cascade
from undiffuse.pipelines.classes import class_names
from undiffuse.pipelines.conditioning import recorded_conditions
from undiffuse.pipelines.low_res import LowRes
from undiffuse.pipelines.pipeline import Pipeline
from undiffuse.pipelines.source import SampleSource
from undiffuse.pixels import to_uint8, to_units
from undiffuse.util.progress import Progress
from undiffuse.util.text import shown

__all__ = ["Regenerated", "regenerate"]

ROUNDING = 3  # levels of 255 by which sums in another order may differ


@dataclass(frozen=True)
class Regenerated:
    """An image that was made again.

    Attributes:
        image: uint8 [H, W, C], or float32 in units if the original has them.
        original: The picture it was compared with, of the same kind.
        record: The record with the notes of this time.
        index, seed: The image's number and seed.
        text: The sampler in a few words.
        format: The format of the original, see `pictures.save_image`.
        value_range: (low, high) of the units; None is (0, 255).
        remarks: Why pixels may differ: kernels of the record that are not available here, weights that were rounded.
    """

    image: np.ndarray
    original: np.ndarray
    record: Mapping[str, Any]
    index: int
    seed: int
    text: str
    format: Any = "png"
    value_range: tuple[float, float] | None = None
    remarks: tuple[str, ...] = ()

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the image with its record, in the format of the original."""
        return save_image(
            path, self.image, self.format, self.value_range if self.format != "png" else None, record=self.record,
            overwrite=overwrite,
        )  # fmt: skip

    @property
    def difference(self) -> float | None:
        """The largest difference in levels of which the range has 255; None for images of different shapes."""
        if self.image.shape != self.original.shape:
            return None
        low, high = self.value_range if self.value_range is not None and self.format != "png" else (0.0, 255.0)
        return float(np.abs(self.original.astype(float) - self.image.astype(float)).max() * (255 / (high - low)))

    @property
    def share(self) -> float:
        """The fraction of values that differ."""
        return float((self.original != self.image).mean())

    @property
    def agrees(self) -> bool:
        """Whether the images are equal up to rounding."""
        return self.difference is not None and self.difference <= ROUNDING


def regenerate(
    path: str | Path,
    *,
    model: str | None = None,
    classifier: Sequence[str] = (),
    autoguide: str | None = None,
    upsampler: str | None = None,
    low_res: str | None = None,
    low_size: Any = None,
    condition: str | None = None,
    device: str = "auto",
) -> Regenerated:
    """Makes the image of a file again from its record.

    Args:
        path: The PNG or TIFF.
        model: Where the model is now, if not where the record says; of a cascade the base's, as below.
        classifier: Where the classifiers are now.
        autoguide: Where the weaker model is now.
        upsampler: Where the upsampler of a cascade is now.
        low_res: Where the small images are now.
        low_size: See `Cascade`.
        condition: Where the condition picture is now, a file or folder, if not where the record says.
        device: As in `Pipeline.load`.

    Raises:
        ValueError: If the picture has no record of a single sample, or the models are others.
    """
    original = Path(path)
    record = read_record(original)
    if record.get("command") != "sample" or "index" not in record:
        raise ValueError(
            f"{original} is not a single sample: its record is of `undiffuse {record.get('command', '?')}`. Give one "
            f"of the images. To show the record: undiffuse inspect {original}"
        )
    where = f"the record in {original}"
    index, seed = _whole(record, "index", 2**32, where), _whole(record, "seed", 2**64, where)
    now: dict[str, Any] = {"model": model, "classifier": classifier, "autoguide": autoguide}
    kernels = Plan(recorded=record.get("kernels", {}))
    with planned(kernels):
        x, source = _made(record, original, now, index, seed, upsampler, low_res, low_size, condition, device)
    form, values = format_of(original), source.pipeline.model.value_range
    if form == "png":
        image, before = to_uint8(x, source.rounding)[0].numpy(), read_file(original)
    else:
        image, before = as_stored(to_units(x, values)[0].numpy(), form, values), load_image(original)[0]
    about, text = {**record, **source.pipeline.notes, **kernels.note()}, source.pipeline.text()
    remarks = (*kernels.notes, *_rounded_since(record, source.pipeline.record))
    return Regenerated(image, before, about, index, seed, text, form, values, remarks)


def _rounded_since(record: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Says which weights of a picture were rounded to 16 bits after it was made (`models.current_digest`)."""
    names = [name for name in ("model", "classifier") if record.get(name) != now.get(name)]
    return [f"the weights of the {name} were rounded to 16 bits since, which changes pixels" for name in names]


def _made(
    record: Mapping[str, Any],
    original: Path,
    now: dict[str, Any],
    index: int,
    seed: int,
    upsampler: str | None,
    low_res: str | None,
    low_size: Any,
    condition: str | None,
    device: str,
) -> tuple[Tensor, SampleSource]:
    """Makes the image of a record again, see `regenerate`; returns it as floats [1, C, H, W], with its source."""
    where = f"the record in {original}"
    if cascade.BASE in record:
        if low_res is not None:
            raise ValueError("the image is from a cascade, which makes its small images again: omit `low_res`")
        source = cascade.source_of_record(
            record, index, seed, lambda small: _label(record, small, where), where=where, device=device, base=now,
            upsampler=upsampler, low_size=low_size,
        )  # fmt: skip
    else:
        if upsampler is not None:
            raise ValueError(f"{original} was made without an upsampler: omit it")
        if record.get("low_res_data") is not None and not isinstance(record["low_res_data"], str):
            raise ValueError(f"{where} has low_res_data = {shown(record['low_res_data'])}; expected text")
        pipeline = Pipeline.from_record(record, device=device, where=where, **now)
        data = low_res if low_res is not None else record.get("low_res_data")
        label = _label(record, pipeline, where)
        conditional = record.get("classes") is None  # the class was that of the small image
        low = LowRes.open(pipeline.model, data, low_size, labelled=conditional)
        if low is not None and low.fingerprint != record.get("low_res"):
            raise ValueError(f"the images in {data} are not those the record was made with: give them as low_res")
        given = recorded_conditions(pipeline.model, record, where, condition, pipeline.targets)
        source = SampleSource(pipeline, seed, label, low, given)
    with Progress("sampling", 1, "image") as progress:
        return source.make_float([index], progress), source


def _label(record: Mapping[str, Any], pipeline: Pipeline, where: str) -> list[int] | None:
    """The class of the image, None without classes. ValueError if the model has no such class, or needs one."""
    names = class_names(pipeline)
    if "class" not in record:
        if names is not None:
            raise ValueError(f"{where} lacks the class, which the model requires")
        return None
    if names is None:
        raise ValueError(f"{where} has class = {shown(record['class'])}, but the model has no classes")
    return [_whole(record, "class", len(names), where)]


def _whole(record: Mapping[str, Any], name: str, end: int, where: str) -> int:
    """A whole number of the record, 0 <= number < end."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise ValueError(f"{where} has {name} = {shown(value)}; expected a whole number from 0 to {end - 1}")
    return value
