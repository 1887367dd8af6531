"""`undiffuse sample MODEL --upsampler UP`: small images, then an upsampler that enlarges them (ADM, section 4.3).

Two runs, one after the other, each of which goes on where it was stopped. The small images are in OUT/base as an npz in
the original's layout (arr_0 uint8, cut to 8 bits by truncation as there; arr_1 their classes), and the upsampler reads
them from it; the large ones are in OUT as from any other run. Image i depends on the seed and i only: the base's noise
is that of `undiffuse sample MODEL`, the upsampler's is a stream of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from undiffuse.adapters import published
from undiffuse.cli.console import say
from undiffuse.cli.sample import COUNT, listed
from undiffuse.models import split_reference
from undiffuse.pipelines.low_res import LowRes, low_size
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, class_names, classes_to_guide
from undiffuse.pipelines.run import SamplingRun, produce
from undiffuse.pipelines.source import SampleSource
from undiffuse.pixels import Rounding

BASE = "base"  # the folder of the small images
STREAM = "upsampler/"  # of the upsampler's noise
AUTO = "auto"
CUT: Rounding = "truncate"  # of the small images, on their way to the upsampler


def cascade(args: argparse.Namespace) -> int:
    """The command with --upsampler."""
    if args.low_res is not None:
        raise ValueError("--low-res enlarges images that are there, --upsampler those of the model: give one of them")
    chosen = SamplerConfig.of_args(args)
    base = Pipeline.load(chosen, args.device)
    reference = upsampler_of(chosen.model) if args.upsampler == AUTO else args.upsampler
    upsampler = Pipeline.load(upsampler_settings(chosen, reference, args), args.device)
    size = check_stages(base, upsampler, args.low_size)
    classes = classes_to_guide(base, args.classes)
    check_classes(base, upsampler, told=classes is not None)
    names, folder, count = class_names(base), Path(args.out or "samples"), args.count or COUNT
    shared: dict[str, Any] = {"count": count, "names": names, "batch": args.batch, "overwrite": args.overwrite}
    about = {"command": "sample", "seed": args.seed}
    told = listed(classes, base)
    small = SamplingRun(
        job=base_job(base, args.seed, classes),
        folder=folder / BASE,
        format="npz",
        record={**about, **base.record, "classes": told, "rounding": CUT},
        notes=base.notes,
        what="small images",
        **shared,
    )
    files = {name: value for name, value in base.notes.items() if name.endswith(("_file", "_files"))}
    large = SamplingRun(
        job=SampleSource(upsampler, args.seed, classes, stream=STREAM),
        folder=folder,
        format=args.format,
        record={**about, **upsampler.record, "classes": told, BASE: {**base.record, "rounding": CUT}},
        notes={**upsampler.notes, "base_files": files},
        animation=args.animation,
        **shared,
    )
    writer = large.open()  # before hours go into small images that a folder's large ones cannot be made of
    say(f"stage 1 of 2: {Path(chosen.model).name}")
    npz = produce(small, small.open())
    del base, small  # the upsampler may need their memory
    say(f"stage 2 of 2: {Path(reference).name}")
    large.job.low = LowRes.of_npz(npz, size, upsampler.shape[0])
    produce(large, writer)
    return 0


def base_job(base: Pipeline, seed: int, classes: list[int] | None) -> SampleSource:
    """The small images of a cascade, cut to 8 bits as in the original's files."""
    return SampleSource(base, seed, classes, rounding=CUT)


def upsampler_settings(base: SamplerConfig, reference: str, args: argparse.Namespace) -> SamplerConfig:
    """The upsampler's: its own solver and steps, unguided; clipping and precision as the base's."""
    return SamplerConfig(
        model=reference,
        solver=args.upsampler_solver,
        steps=args.upsampler_steps,
        clip=base.clip,
        precision=base.precision,
    )


def upsampler_of(reference: str) -> str:
    """The published upsampler of a published model, given by name or file: a file beside it, if it is there, or a name.

    ValueError where there is none.
    """
    file, like = split_reference(reference)
    entry = published.ENTRIES.get(like or file) or published.of_file(file)
    found = published.upsamplers_of(entry.name) if entry is not None else []
    if len(found) != 1:
        raise ValueError(f"no upsampler is published for {reference}: give --upsampler the name or file of one")
    beside = Path(file).parent / found[0].file
    return str(beside) if Path(file).is_file() and beside.is_file() else found[0].name


def check_stages(base: Pipeline, upsampler: Pipeline, given: Any = None) -> tuple[int, int]:
    """(height, width) of the small images; ValueError unless the one model enlarges the images of the other."""
    up, below = upsampler.settings.model, base.settings.model
    if base.model.spec.super_resolution:
        raise ValueError(f"{below} enlarges images itself; the model before --upsampler must make them from noise")
    if not upsampler.model.spec.super_resolution:
        raise ValueError(f"{up} enlarges nothing: give --upsampler a super-resolution model")
    size = low_size(upsampler.model, given)
    wanted, made = (upsampler.shape[0], *size), base.shape
    if wanted != made:
        shapes = ["x".join(map(str, shape)) for shape in (wanted, made)]
        raise ValueError(f"{up} enlarges images of {shapes[0]} (channels x height x width), {below} makes {shapes[1]}")
    return size


def check_classes(base: Pipeline, upsampler: Pipeline, told: bool) -> None:
    """ValueError unless the classes of the base's images mean the same to an upsampler that is told them."""
    wanted = upsampler.model.num_classes
    if wanted is None:
        return
    if not told:
        raise ValueError(
            f"{upsampler.settings.model} is told the class of every image, and {base.settings.model} makes them "
            "without: guide it by a classifier (--guidance, --classifier)"
        )
    source = base.model if base.model.num_classes is not None else base.classifier
    assert source is not None  # somebody was told the classes
    ours, theirs = source.labels, upsampler.model.labels
    if source.num_classes != wanted or (ours is not None and theirs is not None and ours != theirs):
        raise ValueError(
            f"the classes of {base.settings.model} ({source.num_classes}) are not those of {upsampler.settings.model} "
            f"({wanted}): the upsampler must have been trained with the same ones"
        )
