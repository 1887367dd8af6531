"""`undiffuse nll`: likelihood of images in bits per dimension, by the bound (term by term), by the flow, or both."""

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

from undiffuse.cli.console import duration, fields, say, table
from undiffuse.cli.nll_flow import (
    flow_clip,
    flow_config,
    flow_lines,
    row_of,
    settings_of,
    summarise_flow,
    why_they_differ,
)
from undiffuse.data import BrokenImageError, ImageDataset
from undiffuse.data.labels import listed
from undiffuse.denoiser import ChainDenoiser
from undiffuse.levels import Chain
from undiffuse.likelihood import Bound, FlowConfig, bits_per_dim, flow_bits_per_dim, mean_and_error
from undiffuse.noise import NoiseSource
from undiffuse.pictures import draw_curve, save_png
from undiffuse.pipelines.inputs import labels_of, model_images, open_images, thinned
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, choose_classes
from undiffuse.util.files import atomic_file
from undiffuse.util.progress import Progress

REPORT, CURVE, PARTIAL = "bits.json", "bits.png", "bits.partial.jsonl"
TERMS = ("vb", "mse", "xstart_mse")
DEFAULT_TERMS = 50


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    flow, bound = flow_config(args), args.method != "flow"
    settings = SamplerConfig.of_args(args)
    sampler = Pipeline.load(settings, args.device, gradient=flow is not None)
    chain = sampler.denoiser.chain if args.steps is None else sampler.denoiser.chain.respaced(args.steps)
    given = choose_classes(sampler.model, args.classes, default=None)
    whole = open_images(args, [args.data], sampler.model, labelled=given is None)
    dataset = thinned(whole, args.count)
    labels = labels_of(dataset, sampler.model, given)
    wanted = getattr(args, "terms", DEFAULT_TERMS)
    terms = None if wanted is None or wanted >= chain.steps else wanted
    size = sampler.batch_size(args.batch)
    assert isinstance(sampler.denoiser, ChainDenoiser)  # nothing guides it here
    followed = sampler.denoiser.clipping(flow_clip(args, flow))

    skipped = ("solver", "steps", "eta", "classifier", "guidance", "guidance_at", *(() if bound else ("clip",)))
    about = {
        "command": "nll",
        **{name: value for name, value in sampler.record.items() if name not in skipped},
        **({"steps": chain.indices.tolist() if args.steps is not None else "all"} if bound else {}),
        **({"terms": terms if terms is not None else "all"} if bound else {}),
        "decoder": args.decoder,
        **({} if flow is None else settings_of(args, flow)),
        "seed": args.seed,
        "data": dataset.source.fingerprint,
        **({} if args.fit is None else {"fit": args.fit}),
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
                x0, noise = model_images(dataset, kept, sampler.device), NoiseSource(args.seed, kept)
                cond = sampler.condition(None if labels is None else [labels[i] for i in kept])
                if bound:
                    row |= _bound_row(
                        bits_per_dim(sampler.denoiser, chain, x0, noise, cond=cond, decoder=args.decoder, terms=terms)
                    )
                if flow is not None:
                    row["flow"] = row_of(flow_bits_per_dim(followed, x0, noise, cond=cond, config=flow))
            partial.add(row)
            progress.advance(len(indices))

    rows = partial.rows
    result = summarise(rows) if bound else {}
    if flow is not None:
        result = _with_flow(result, rows, sampler.denoiser.chain, flow)
    result["images"] = sum(len(row["images"]) - len(row["broken"]) for row in rows)
    result["not_readable"] = [item for row in rows for item in row["broken"]]
    result["not_readable"] += [f"{item.name} ({item.reason})" for item in whole.source.excluded]
    result["images_in_data"] = len(whole)
    result["settings"] = {**about, **sampler.notes, "data_source": dataset.source.where}
    steps = per_step(rows, chain.indices.tolist()) if bound else None
    with atomic_file(folder / REPORT, overwrite=True) as file:
        head = json.dumps(result, indent=1, allow_nan=False)[:-2]  # without its closing brace
        tail = "" if steps is None else f',\n "per_step": {json.dumps(steps, allow_nan=False)}'
        file.write(f"{head}{tail}\n}}\n".encode())
    if steps is not None:
        curve = _curve(result, steps, chain.parent_steps)
        save_png(folder / CURVE, curve, {**about, "total": result["bits_per_dim"]}, overwrite=True)
    strided = chain.steps != chain.parent_steps
    say(_text(result, dataset, terms, chain.steps, folder, time.monotonic() - begin, flow, strided))
    return 0


def _bound_row(bound: Bound) -> dict[str, Any]:
    """A batch as JSON: of every image the totals, of every level the sums."""
    row: dict[str, Any] = {"total": bound.total.tolist(), "prior": bound.prior.tolist(), "l0": bound.vb[:, 0].tolist()}
    row |= {name: torch.nansum(getattr(bound, name), 0).tolist() for name in TERMS}
    return row | {"measured": (~bound.vb.isnan()).sum(0).tolist()}


def _with_flow(result: dict[str, Any], rows: list[dict[str, Any]], chain: Chain, config: FlowConfig) -> dict[str, Any]:
    """The report with the flow's numbers, and beside a bound the mean difference, image by image, with its error."""
    full = [row["flow"] for row in rows if "flow" in row]
    if not full:
        raise ValueError("no image could be read")
    flow = summarise_flow(full, chain, config)
    if not result:
        return {"bits_per_dim": flow["bits_per_dim"], "standard_error": flow["standard_error"], "flow": flow}
    of_flow = np.concatenate([np.array(row["values"]).mean((1, 2)) for row in full])
    of_bound = np.concatenate([row["total"] for row in rows if "total" in row])
    mean, error = mean_and_error(torch.from_numpy(of_bound - of_flow))
    difference = {"bound_minus_flow": mean, "error_of_difference": None if math.isnan(error) else error}
    return {**result, "flow": flow, **difference}


class Partial:
    """One line of JSON a finished batch, so that a long measurement goes on where it was stopped."""

    def __init__(self, folder: Path, about: Mapping[str, Any], overwrite: bool) -> None:
        self.path = folder / PARTIAL
        self.rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        ours = json.loads(json.dumps(dict(about)))
        lines = [] if overwrite else _lines(self.path)
        if not (lines or overwrite) and any((folder / name).exists() for name in (REPORT, PARTIAL)):
            raise ValueError(
                f"{folder} holds a measurement that does not tell how it was made, so it cannot go on: name another "
                "--out, or replace it with --overwrite"
            )
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
        for name in (REPORT, CURVE) if overwrite else ():  # which would stand for this measurement until it is finished
            (folder / name).unlink(missing_ok=True)

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
    result: dict[str, Any],
    dataset: ImageDataset,
    terms: int | None,
    steps: int,
    folder: Path,
    took: float,
    config: FlowConfig | None,
    strided: bool,
) -> str:
    flow, bound = result.get("flow"), "rate" in result
    every = "every step" if terms is None else f"{terms} of {steps:,} steps for each image (unbiased)"
    of = f" of {result['images_in_data']:,}, evenly spaced" if result["images"] < result["images_in_data"] else ""
    broken = result["not_readable"]
    both = bound and flow is not None
    rows: list[tuple[str, object]] = [] if both else [("total", _number(result))]
    if both:
        rows.append(("difference", _number(result, "bound_minus_flow", "error_of_difference")))
    if bound:
        rows += [
            ("rate", f"{result['rate']:.4f} (what the noise levels cost, of it the prior {result['prior']:.2g})"),
            ("decoder", f"{result['decoder']:.4f} (the last step, to 8-bit pixels)"),
        ]
    height, width, _ = dataset.shape
    rows += [
        ("images", f"{result['images']:,}{of}, from {dataset.source.where}, each as {width}x{height}"),
        ("left out", f"{len(broken)}: {listed(broken)}" if broken else None),
        ("terms", every if bound else None),
    ]
    if flow is not None:
        rows += flow_lines(flow, result["images"], result["settings"]["precision"])
    rows.append(("files", f"{folder / REPORT}, {folder / CURVE}" if bound else str(folder / REPORT)))
    note = "" if result["standard_error"] is not None else "\n  (one image has no standard error)"
    title = "Bits per dimension, an upper bound on the negative log-likelihood"
    head = f"{title} ({duration(took)}):\n"
    if both and flow is not None and config is not None:
        beside = [["bound", _number(result), str(terms or steps)], ["flow", _number(flow), f"{flow['calls']:.0f}"]]
        head += table(beside, ("method", "bits/dim", "network calls an image"), right=(2,), indent=2) + "\n"
        note += f"\n{why_they_differ(flow, config, strided)}"
    return f"{head}{fields(rows)}{note}"


def _number(of: Mapping[str, Any], name: str = "bits_per_dim", error: str = "standard_error") -> str:
    return f"{of[name]:.4f}" if of[error] is None else f"{of[name]:.4f} +/- {of[error]:.4f}"


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
    """The whole lines of a file of JSON lines, up to the first that is no record; none if there is no file."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            break
        if not isinstance(out[-1], dict):
            return out[:-1]
    return out
