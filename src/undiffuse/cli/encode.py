"""`undiffuse encode`: images to latents by DDIM inversion."""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from undiffuse.cli.console import duration, say
from undiffuse.data import ImageDataset, pass_once
from undiffuse.data.labels import listed
from undiffuse.noise import NoiseSource
from undiffuse.pipelines.grids import quoted
from undiffuse.pipelines.inputs import labels_of, model_images, open_images, thinned
from undiffuse.pipelines.latents import Latents, LatentsWriter
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, choose_classes, class_names
from undiffuse.pixels import to_uint8
from undiffuse.sampling import encode
from undiffuse.util.progress import Progress


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    sampler = Pipeline.load(SamplerConfig.of_args(args), args.device)
    given = choose_classes(sampler.model, args.classes, default=None)
    dataset = thinned(open_images(args, args.images, sampler.model, labelled=given is None), args.count)
    labels = labels_of(dataset, sampler.model, given)
    names = [dataset.source.name(i) for i in range(len(dataset))]
    about = {
        "record": {"command": "encode", **sampler.record},
        "notes": {k: v for k, v in sampler.notes.items() if k != "device"},
        "data": dataset.source.fingerprint,
        "prepared": {"fit": dataset.config.fit, "size": list(dataset.shape)},
        "names": names,
        "labels": labels,
        "label_names": class_names(sampler),
    }
    writer = LatentsWriter(args.out, about, args.overwrite)
    todo = writer.missing(len(dataset))
    with Progress("encoding", len(todo), "images") as progress:
        for indices in _runs(todo, sampler.batch_size(args.batch)):
            x0 = model_images(dataset, indices, sampler.device)
            cond = sampler.condition(None if labels is None else [labels[i] for i in indices])
            writer.write(indices[0], encode(sampler.denoiser, sampler.chain, x0, cond=cond))
            progress.advance(len(indices))
    stored = writer.finish(len(dataset), labels)
    said = f"{len(todo):,} image{'s' if len(todo) != 1 else ''} encoded" if todo else "all images were encoded already"
    say(f"{said} in {duration(time.monotonic() - begin)}: {sampler.text()}")
    say(f"  latents  {args.out} ({len(stored):,} x {'x'.join(map(str, sampler.shape))})")
    if dataset.source.excluded:
        left = listed(f"{item.name} ({item.reason})" for item in dataset.source.excluded)
        say(f"  left out {len(dataset.source.excluded):,}: {left}")
    if args.check:
        say(check(sampler, dataset, stored, sampler.batch_size(args.batch)))
    say(f"Back to images:\n  undiffuse decode {quoted(str(args.out))} --out decoded")
    return 0


def check(sampler: Pipeline, dataset: ImageDataset, stored: Latents, size: int) -> str:
    """Decode everything and say how far the images are from those that were encoded, in 8-bit levels."""
    errors: list[Tensor] = []
    with Progress("checking", len(stored), "images") as progress:
        start = 0
        for batch in pass_once(dataset, size):
            indices = range(start, start + len(batch))
            labels = None if stored.labels is None else stored.labels[indices.start : indices.stop]
            x_T = stored.latents[indices.start : indices.stop].to(sampler.device)
            x = sampler.steps_of(NoiseSource(0, list(indices)), labels, x_T=x_T, progress=progress)
            difference = to_uint8(x.float()).cpu().double() - batch.images.double()
            errors.append((difference**2).flatten(1).mean(1).sqrt())
            start += len(batch)
    error = torch.cat(errors)
    worst = int(error.argmax())
    name = dataset.source.name(worst)
    return (
        f"  check    decoded again, the error is {float((error**2).mean().sqrt()):.2f} of 255 (root mean square),\n"
        f"           at most {float(error[worst]):.2f} (image {worst}, {name}); it shrinks as --steps grows"
    )


def _runs(indices: list[int], size: int) -> list[list[int]]:
    """Pieces of at most `size` consecutive numbers."""
    pieces: list[list[int]] = []
    for i in indices:
        if pieces and len(pieces[-1]) < size and pieces[-1][-1] + 1 == i:
            pieces[-1].append(i)
        else:
            pieces.append([i])
    return pieces
