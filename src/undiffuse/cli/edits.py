"""What the commands that edit images share: images in, results with records out, and a page with before and after."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.cli.console import duration, say
from undiffuse.data import ImageDataset
from undiffuse.editing import DPS, OBSERVED, ObservationGuidance, Operator
from undiffuse.noise import NoiseSource
from undiffuse.pictures import draw_grid, save_png
from undiffuse.pipelines import grids as writing
from undiffuse.pipelines.inputs import labels_of, model_images, open_images, thinned
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, class_names, classes_to_guide
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step, sample
from undiffuse.util.progress import Progress

GRID = "grid.png"
MOST_SHOWN = 10  # images side by side on the page
Heard = Callable[[Step], None]


@dataclass(frozen=True)
class Result:
    """Edited images x [B, C, H, W] in [-1, 1]; `errors` are mean squares by what they are of, [B] each."""

    x: Tensor
    errors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """The images to edit, and the class of each where the model is told one."""

    dataset: ImageDataset
    labels: list[int] | None
    told: list[int] | None

    @classmethod
    def of_args(cls, args: argparse.Namespace, sampler: Pipeline, size: tuple[int, int] | None = None) -> Given:
        """From the options; `size` (height, width) is that of the images where it is not the model's."""
        told = classes_to_guide(sampler, args.classes) if args.classes else None
        dataset = open_images(args, args.images, sampler.model, labelled=told is None, size=size)
        dataset = thinned(dataset, args.count)
        labels = labels_of(dataset, sampler.model, told)
        if labels is None and sampler.classifier is not None:
            if told is None or len(told) != 1:
                raise ValueError("guidance by a classifier needs to know where to: give --class, one for all images")
            labels = told * len(dataset)
        return cls(dataset, labels, told)

    def __len__(self) -> int:
        return len(self.dataset)

    def of(self, numbers: list[int]) -> list[int] | None:
        """The classes of some images."""
        return None if self.labels is None else [self.labels[i] for i in numbers]


Make = Callable[[Tensor, NoiseSource, "list[int] | None", Heard], Result]


def produce(
    args: argparse.Namespace,
    sampler: Pipeline,
    given: Given,
    make: Make,
    seen: Callable[[Tensor], Tensor] | None,
    record: Mapping[str, Any],
    text: str,
    *,
    classes: Callable[[list[int] | None], list[int] | None] = lambda labels: labels,
) -> None:
    """Make what is missing of the results, write the page, tell what was done.

    `make`      images as they were read, noise, classes, a listener of steps -> results
    `seen`      how the page shows what the results were made from, where that is not the images themselves
    `record`    what decides the results beside the sampler; `text` says it in a few words
    `classes`   of the results, from those of the images
    """
    begin = time.monotonic()
    variants, seed = getattr(args, "variants", 1), getattr(args, "seed", 0)
    total, dataset, folder = len(given) * variants, given.dataset, Path(args.out)
    run = {
        **sampler.record, **record, "command": args.command, "seed": seed, "variants": variants, "told": given.told,
        "labels": None if given.labels is None or given.told else "of the images",
        "data": dataset.source.fingerprint, "prepared": {"fit": dataset.config.fit, "size": list(dataset.shape)},
    }  # fmt: skip
    names = class_names(sampler)
    writer = writing.open_writer(
        folder, args.format, args.overwrite, (GRID,), run=run, notes=sampler.notes, label_names=names
    )
    todo, size = writer.missing(total), sampler.batch_size(args.batch)
    errors: dict[str, list[Tensor]] = {}
    with Progress(args.command, len(todo), "images") as progress:
        for start in range(0, len(todo), size):
            indices = todo[start : start + size]
            numbers = [index // variants for index in indices]
            labels = given.of(numbers)

            def heard(step: Step, count: int = len(indices)) -> None:
                progress.advance(count / step.total)

            x0 = model_images(dataset, numbers, sampler.device)
            result = make(x0, NoiseSource(seed, indices), labels, heard)
            for name, squares in result.errors.items():
                errors.setdefault(name, []).append(squares.double().cpu())
            pixels, belong = to_uint8(result.x.float()).cpu(), classes(labels)
            for k, (index, number) in enumerate(zip(indices, numbers, strict=True)):
                writer.notes = {**sampler.notes, "source": dataset.source.name(number)}
                writer.write([index], pixels[k : k + 1], None if belong is None else [belong[k]])
    result_path = writer.finish(total)
    save_png(folder / GRID, _page(sampler, given, folder, seed, variants, seen, text), {**run, **sampler.notes},
             overwrite=True)  # fmt: skip
    said = f"{len(todo):,} image{'s' if len(todo) != 1 else ''} made" if todo else "all images were there already"
    say(f"{said} in {duration(time.monotonic() - begin)} on {sampler.device.type}: {text}, {sampler.text()}")
    say(f"  images  {result_path}\n  grid    {folder / GRID}")
    for name, values in errors.items():
        say(f"  {name}: {error_text(torch.cat(values))}")


def error_text(mean_squares: Tensor) -> str:
    """Mean squares [N] of images in [-1, 1] as an error in 8-bit levels, with the decibels of its square."""
    levels = 127.5 * math.sqrt(float(mean_squares.mean()))
    decibels = f", PSNR {20 * math.log10(255 / levels):.1f} dB" if levels > 0 else ""
    return f"{levels:.2f} of 255 (root mean square){decibels}"


def mean_square(difference: Tensor) -> Tensor:
    """[B] of [B, ...]."""
    return difference.flatten(1).square().mean(1)


def _page(
    sampler: Pipeline,
    given: Given,
    folder: Path,
    seed: int,
    variants: int,
    seen: Callable[[Tensor], Tensor] | None,
    text: str,
) -> Any:
    """A column an image: as it was read, as it was seen, and its results."""
    shown = min(len(given), MOST_SHOWN)
    x0 = model_images(given.dataset, range(shown), "cpu")
    results = writing.first_images(folder, seed, shown * variants)
    each = min(variants, MOST_SHOWN)
    before = [] if x0.shape[-2:] != sampler.shape[1:] else [to_uint8(x0).numpy()]
    heads = ["before"] * len(before)
    if seen is not None:
        before.append(to_uint8(seen(x0)).numpy())
        heads.append("seen")
    after = [results[k::variants] for k in range(each)]
    heads += ["after", *(f"after {k}" for k in range(2, each + 1))]
    title = f"{len(given):,} images" + (f", the first {shown}" if shown < len(given) else "")
    return draw_grid(
        np.concatenate([*before, *after]), shown, row_labels=heads, title=title, caption=f"{text}, {sampler.text()}"
    )


_SOLVERS = {"dps": "ddim", "pigdm": "dpmpp-2m", "mmps": "dpmpp-2m"}
"""Of methods by gradient, if nothing is said. These clip x0 after it was moved; ancestral sampling moves its mean, and
does not clip. DPS shifts x behind the solver's back, which one that remembers would take for the flow's own change."""
_OF_METHOD = {"resamples": ("repaint",), "jump": ("repaint",), "zeta": ("dps",), "iterations": ("mmps",),
              "noise": ("pigdm", "mmps"), "data_std": ("pigdm",)}  # fmt: skip
_USUAL = {"resamples": 5, "jump": 4, "zeta": 1.0, "iterations": 3, "noise": 1.0, "data_std": 1.0}


def method_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the method that was chosen. ValueError for those of others."""
    found = {"method": args.method}
    for name, methods in _OF_METHOD.items():
        value = getattr(args, name, None)
        if args.method in methods:
            found[name] = _USUAL[name] if value is None else value
        elif value is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of --method {' or '.join(methods)}, not {args.method}")
    return found


def sampler_of(args: argparse.Namespace) -> Pipeline:
    """The sampler of the options, with the solver that suits the method where none was asked for."""
    settings = SamplerConfig.of_args(args)
    chosen = settings.solver is not None or settings.eta > 0 or settings.guidance_at == "mean"
    if not chosen and args.method in _SOLVERS:
        settings = replace(settings, solver=_SOLVERS[args.method])
    return Pipeline.load(settings, args.device, gradient=args.method in _SOLVERS)


def sample_observed(
    sampler: Pipeline,
    settings: Mapping[str, Any],
    operator: Operator,
    observed: Tensor,
    noise: NoiseSource,
    labels: list[int] | None,
    heard: Heard,
) -> Tensor:
    """Images [B, C, H, W] given what was observed of them, by the method of `method_settings`."""
    cond, denoiser, solver = sampler.condition(labels), sampler.denoiser, sampler.solver
    if settings["method"] == "dps":
        solver = DPS(solver, operator, observed, settings["zeta"])
    else:
        levels, std = settings["noise"] / 127.5, settings.get("data_std", 1.0)
        iterations = settings.get("iterations", 0)
        denoiser = ObservationGuidance(denoiser, operator, levels, data_std=std, iterations=iterations)
        cond[OBSERVED] = observed
    for step in sample(denoiser, sampler.chain, solver, noise, sampler.shape, cond=cond, device=sampler.device):
        heard(step)
    return step.x
