"""`undiffuse nll`: the variational bound of a model on images, in bits per dimension, term by term."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.cli.console import Progress, duration, fields, say
from undiffuse.cli.images import labels_of, model_images, open_images, thinned
from undiffuse.cli.sampler import Sampler, Settings, choose_classes
from undiffuse.data import BrokenImageError, ImageDataset
from undiffuse.data.labels import listed
from undiffuse.likelihood import bits_per_dim, mean_and_error
from undiffuse.noise import NoiseSource
from undiffuse.pictures import draw_curve, save_png
from undiffuse.pictures.files import atomic_file

REPORT, CURVE, PARTIAL = "bits.json", "bits.png", "bits.partial.jsonl"
TERMS = ("vb", "mse", "xstart_mse")


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    settings = Settings.of_args(args)
    sampler = Sampler.load(settings, args.device)
    chain = sampler.denoiser.chain if args.steps is None else sampler.denoiser.chain.respaced(args.steps)
    given = choose_classes(sampler.model, args.classes, default=None)
    whole = open_images(args, [args.data], sampler.model, labelled=given is None)
    dataset = thinned(whole, args.count)
    labels = labels_of(dataset, sampler.model, given)
    terms = None if args.terms is None or args.terms >= chain.steps else args.terms
    size = sampler.batch_size(args.batch)

    skipped = ("solver", "eta", "classifier", "guidance", "guidance_at")
    about = {
        "command": "nll",
        **{name: value for name, value in sampler.record.items() if name not in skipped},
        "steps": chain.indices.tolist() if args.steps is not None else "all",
        "terms": terms if terms is not None else "all",
        "decoder": args.decoder,
        "seed": args.seed,
        "data": dataset.source.fingerprint,
        "classes": given,
    }
    folder = Path(args.out)
    partial = Partial(folder, about, args.overwrite)
    todo = partial.missing(len(dataset))
    with Progress("measuring", len(todo), "images") as progress:
        for start in range(0, len(todo), size):
            indices = todo[start : start + size]
            kept, broken = _readable(dataset, indices)
            row: dict[str, Any] = {"images": indices, "broken": broken}
            if kept:
                bound = bits_per_dim(
                    sampler.denoiser, chain, model_images(dataset, kept, sampler.device), NoiseSource(args.seed, kept),
                    cond=sampler.condition(None if labels is None else [labels[i] for i in kept]),
                    decoder=args.decoder, terms=terms,
                )  # fmt: skip
                row |= {"total": bound.total.tolist(), "prior": bound.prior.tolist(), "l0": bound.vb[:, 0].tolist()}
                row |= {name: torch.nansum(getattr(bound, name), 0).tolist() for name in TERMS}
                row["measured"] = (~bound.vb.isnan()).sum(0).tolist()
            partial.add(row)
            progress.advance(len(indices))

    rows = partial.rows
    result = summarise(rows)
    result["not_readable"] += [f"{item.name} ({item.reason})" for item in whole.source.excluded]
    result["images_in_data"] = len(whole)
    result["settings"] = {**about, **sampler.notes, "data_source": dataset.source.where}
    steps = per_step(rows, chain.indices.tolist())
    with atomic_file(folder / REPORT, overwrite=True) as file:
        head = json.dumps(result, indent=1, allow_nan=False)[:-2]  # without its closing brace
        file.write(f'{head},\n "per_step": {json.dumps(steps, allow_nan=False)}\n}}\n'.encode())
    curve = _curve(result, steps, chain.parent_steps)
    save_png(folder / CURVE, curve, {**about, "total": result["bits_per_dim"]}, overwrite=True)
    say(_text(result, dataset, terms, chain.steps, folder, time.monotonic() - begin))
    return 0


class Partial:
    """One line of JSON a finished batch, so that a long measurement goes on where it was stopped."""

    def __init__(self, folder: Path, about: Mapping[str, Any], overwrite: bool) -> None:
        self.path = folder / PARTIAL
        self.rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        ours = json.loads(json.dumps(dict(about)))
        lines = [] if overwrite else _lines(self.path)
        if lines:
            differing = [k for k in sorted({*lines[0], *ours}) if lines[0].get(k) != ours.get(k)]
            if differing:
                raise ValueError(
                    f"{folder} holds another measurement (it differs in {', '.join(differing)}): name another --out, "
                    "or replace it with --overwrite"
                )
            self.rows = lines[1:]
        text = "".join(json.dumps(line) + "\n" for line in [ours, *self.rows])
        with atomic_file(self.path, overwrite=True) as file:  # without a line that a kill cut short
            file.write(text.encode())

    def missing(self, count: int) -> list[int]:
        """Which of `count` images are still to be measured."""
        done = {i for row in self.rows for i in row["images"]}
        return [i for i in range(count) if i not in done]

    def add(self, row: dict[str, Any]) -> None:
        """One more batch."""
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over all images and their standard errors; the images (and the levels drawn for them) are independent."""
    full = [row for row in rows if "total" in row]
    if not full:
        raise ValueError("no image could be read")

    def over_images(name: str) -> tuple[float, float | None]:
        mean, error = mean_and_error(torch.tensor([x for row in full for x in row[name]], dtype=torch.float64))
        return mean, None if math.isnan(error) else error

    total, error = over_images("total")
    decoder, decoder_error = over_images("l0")
    return {
        "bits_per_dim": total,
        "standard_error": error,
        "rate": total - decoder,
        "prior": over_images("prior")[0],
        "decoder": decoder,
        "decoder_error": decoder_error,
        "images": sum(len(row["total"]) for row in full),
        "not_readable": [item for row in rows for item in row["broken"]],
    }


def per_step(rows: list[dict[str, Any]], indices: list[int]) -> dict[str, list[Any]]:
    """Mean terms at every step of the chain: bits (vb), error of the noise (mse) and of the image (xstart_mse).

    `images` is how many were measured at each step; None stands where none was.
    """
    full = [row for row in rows if "total" in row]
    counts = np.sum([row["measured"] for row in full], axis=0)
    out: dict[str, list[Any]] = {"step": indices, "images": counts.tolist()}
    for name in TERMS:
        sums = np.sum([row[name] for row in full], axis=0)
        out[name] = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
    return out


def _text(
    result: dict[str, Any], dataset: ImageDataset, terms: int | None, steps: int, folder: Path, took: float
) -> str:
    total = f"{result['bits_per_dim']:.4f}"
    error = result["standard_error"]
    every = "every step" if terms is None else f"{terms} of {steps:,} steps for each image (unbiased)"
    of = f" of {result['images_in_data']:,}, evenly spaced" if result["images"] < result["images_in_data"] else ""
    broken = result["not_readable"]
    rows: list[tuple[str, object]] = [
        ("total", total if error is None else f"{total} +/- {error:.4f}"),
        ("rate", f"{result['rate']:.4f} (what the noise levels cost, of it the prior {result['prior']:.2g})"),
        ("decoder", f"{result['decoder']:.4f} (the last step, to 8-bit pixels)"),
        ("images", f"{result['images']:,}{of}, from {dataset.source.where}"),
        ("left out", f"{len(broken)}: {listed(broken)}" if broken else None),
        ("terms", every),
        ("files", f"{folder / REPORT}, {folder / CURVE}"),
    ]  # fmt: skip
    note = "" if error is not None else "\n  (one image has no standard error)"
    title = "Bits per dimension, an upper bound on the negative log-likelihood"
    return f"{title} ({duration(took)}):\n{fields(rows)}{note}"


def _curve(result: dict[str, Any], data: dict[str, list[Any]], steps: int) -> Any:
    names = {"vb": "bits per dimension", "mse": "squared error of the noise"}
    series = {
        title: grouped(data["step"], data["images"], data[name], result["images"]) for name, title in names.items()
    }
    title = f"The bound by step: {result['bits_per_dim']:.3f} bits per dimension in all"
    return draw_curve(series, title, f"step (0 is the cleanest of {steps:,})", "mean of one step's term", log_y=True)


def grouped(steps: list[int], counts: list[int], means: list[float | None], wanted: int) -> list[tuple[float, float]]:
    """Points (step, mean) of neighbouring steps taken together until each rests on `wanted` measurements.

    With every step measured for every image that is the steps themselves; an estimate has few at each, and would show
    mostly chance.
    """
    points: list[tuple[float, float]] = []
    n, x, y = 0, 0.0, 0.0
    for step, count, mean in zip(steps, counts, means, strict=True):
        if mean is not None:
            n, x, y = n + count, x + count * step, y + count * mean
        if n >= wanted:
            points.append((x / n, y / n))
            n, x, y = 0, 0.0, 0.0
    return [*points, (x / n, y / n)] if n else points


def _readable(dataset: ImageDataset, indices: list[int]) -> tuple[list[int], list[str]]:
    """Which images of a batch can be read, and what is wrong with the others (--on-broken skip; else an error)."""
    kept, broken = [], []
    for i in indices:
        try:
            dataset.plain(i)
            kept.append(i)
        except BrokenImageError as error:
            if dataset.config.on_broken == "refuse":
                raise
            broken.append(f"{error.name} ({error.reason})")
    return kept, broken


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none if there is no file."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return out
