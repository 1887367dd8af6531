"""`undiffuse sample --from-record FILE.png`: make the image of a PNG again, and compare."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.cli.console import say
from undiffuse.cli.options import SHIPPED
from undiffuse.pictures import read_record, save_png
from undiffuse.pictures.arrays import from_picture
from undiffuse.pictures.png import open_picture
from undiffuse.pipelines.cascade import (
    AUTO,
    BASE,
    CUT,
    STREAM,
    base_job,
    check_classes,
    check_stages,
    upsampler_of,
)
from undiffuse.pipelines.low_res import LowRes, Made
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, class_names, is_text, shown
from undiffuse.pipelines.source import SampleSource
from undiffuse.pixels import from_uint8
from undiffuse.util.progress import Progress


def regenerate(args: argparse.Namespace) -> int:
    """Make the image, write it, and tell how it compares: 0 if every pixel agrees to rounding, else 1."""
    original = Path(args.from_record)
    record = read_record(original)
    if record.get("command") != "sample" or "index" not in record:
        raise ValueError(
            f"{original} is no single sample: its record is of `undiffuse {record.get('command', '?')}`. Give one of "
            f"the images; `undiffuse inspect {original}` shows the record"
        )
    model = args.model if args.model != SHIPPED else None
    where = f"the record in {original}"
    index, seed = _whole(record, "index", 2**32, where), _whole(record, "seed", 2**64, where)
    if BASE in record:
        job = _cascade(args, record, model, index, seed, where)
        return _compare(args, original, record, job, index)
    if args.upsampler is not None:
        raise ValueError(f"{original} was made without an upsampler: leave --upsampler out")
    settings = SamplerConfig.of_record(record, model, args.classifier, where, args.autoguide)
    if record.get("low_res_data") is not None and not is_text(record["low_res_data"]):
        raise ValueError(f"{where} has low_res_data = {shown(record['low_res_data'])}; expected text")
    sampler = Pipeline.load(settings, args.device)
    sampler.check_identity(record, where)
    if args.low_res is None:
        args.low_res = record.get("low_res_data")
    told = _told(record, sampler, where)
    args.classes = told if record.get("classes") is not None else None  # None: the class was that of the small image
    low = LowRes.of_args(args, sampler.model)
    if low is not None and low.fingerprint != record.get("low_res"):
        raise ValueError(f"the images in {args.low_res} are not those the record was made with: give --low-res")
    return _compare(args, original, record, SampleSource(sampler, seed, told, low), index)


def _cascade(
    args: argparse.Namespace, record: Mapping[str, Any], model: str | None, index: int, seed: int, where: str
) -> SampleSource:
    """The last stage of a cascade whose small image is made first; --model and --classifier are of the base."""
    if args.low_res is not None:
        raise ValueError("the image is of a cascade, whose small images are made again: leave --low-res out")
    base, files = record[BASE], record.get("base_files")
    if not isinstance(base, dict) or not isinstance(files, dict):
        raise ValueError(f"{where} is of a cascade, but its {BASE} and base_files are not whole")
    inner = f"the base in {where}"
    if base.get("rounding") != CUT:
        raise ValueError(f"{inner} has rounding = {shown(base.get('rounding'))}; expected {CUT}")
    small = Pipeline.load(
        SamplerConfig.of_record({**base, **files}, model, args.classifier, inner, args.autoguide), args.device
    )
    small.check_identity(base, inner)
    told = _told(record, small, where)
    with Progress("sampling the small image", 1, "image") as progress:
        pixels = base_job(small, seed, told).make([index], progress)
    named = args.upsampler
    if named == AUTO:
        named = upsampler_of(small.settings.model)
    large = Pipeline.load(SamplerConfig.of_record(record, named, where=where), args.device)
    large.check_identity(record, where, "upsampler")
    check_stages(small, large, args.low_size)
    check_classes(small, large, told=told is not None)
    return SampleSource(large, seed, told, Made(from_uint8(pixels)), stream=STREAM)


def _compare(args: argparse.Namespace, original: Path, record: Mapping[str, Any], job: SampleSource, index: int) -> int:
    """Make the image, write it, tell how it compares."""
    sampler, seed = job.sampler, job.seed
    with Progress("sampling", 1, "image") as progress:
        image = job.make([index], progress)[0].numpy()
    target = Path(args.out or f"again-{original.name}")
    save_png(target, image, {**record, **sampler.notes}, overwrite=args.overwrite)
    with open_picture(original) as picture:
        before = from_picture(picture)
    say(f"  image {index} of seed {seed}, {sampler.text()}")
    say(f"  written to {target}")
    if before.shape != image.shape:
        sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (image, before)]
        say(f"  it differs: {sizes[0]} pixels, the original has {sizes[1]}")
        return 1
    difference = np.abs(before.astype(int) - image.astype(int))
    if not difference.any():
        say("  identical to the original, pixel for pixel")
        return 0
    share = 100 * float((difference > 0).mean())
    say(f"  {share:.2g}% of the values differ, by {int(difference.max())} of 255 at most")
    if difference.max() <= ROUNDING:
        say("  (rounding: another batch size, device or version of torch adds up in another order)")
        return 0
    say("  that is more than rounding: was the record's torch "
        f"{record.get('torch', '?')} on {record.get('device', '?')} very different from this one?")  # fmt: skip
    return 1


ROUNDING = 3


def _told(record: Mapping[str, Any], sampler: Pipeline, where: str) -> list[int] | None:
    """The class of the image, None without classes. ValueError if the model has no such class, or needs one."""
    names = class_names(sampler)
    if "class" not in record:
        if names is not None:
            raise ValueError(f"{where} lacks class, which the model is told")
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
