"""What all sweeps share: their plans, measuring them one after the other, and the files that they leave."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undiffuse.cli import extractors as build
from undiffuse.cli.console import say
from undiffuse.cli.evaluate import known_metrics, measure
from undiffuse.cli.sides import MADE, Side, is_model, made_by, model_settings, preparation_of, stored
from undiffuse.distributed import Ranks
from undiffuse.evaluation import Report, read_reference
from undiffuse.evaluation.summary import is_reference
from undiffuse.metrics import MetricError
from undiffuse.pictures.names import safe
from undiffuse.pipelines.guidance import listed
from undiffuse.pipelines.pipeline import Pipeline

TABLE, PLOT, SETTINGS = "table.md", "plot.png", "sweep.json"


@dataclass(frozen=True)
class Plan:
    """One thing to measure: what it is called, and how its options differ from those given; `label` names its grid."""

    title: str
    changes: Mapping[str, Any]
    label: str = ""


def measured(
    args: argparse.Namespace, plans: Sequence[Plan], ranks: Ranks
) -> Iterator[tuple[Plan | None, Report, Pipeline | None]]:
    """(plan, report, its sampler) one after the other, first (None, report, None) of the real images where --floor
    names some; nothing in the helper processes of a torchrun."""
    known_metrics(args.metrics)
    if is_model(args.reference):
        raise MetricError(
            f"the reference must be images or a reference file; there is no folder or file {args.reference}"
        )
    given = read_reference(args.reference) if is_reference(args.reference) else None
    names = args.extractor or build.default_names([args.model, args.reference], given)
    extractors = build.build(names, args.weights, args.grey, ranks.device)
    prepared = preparation_of(args, sampler_of(args, plans[0], ranks), extractors)
    reference = stored(args.reference, args, prepared, count=args.reference_count)
    count = args.count or MADE
    if args.floor is not None:
        floor = stored(args.floor, args, prepared, count=count)
        report = measure("real images", floor, reference, None, extractors, ranks, args)
        if report is not None:
            yield None, report, None
    for plan in plans:
        if ranks.is_main:
            say(f"{plan.title} ...")
        sampler = sampler_of(args, plan, ranks)
        side = Side(images=made_by(sampler, args, count))
        report = measure(plan.title, side, reference, None, extractors, ranks, args)
        if report is not None:
            yield plan, report, sampler


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What decides a sweep's numbers, of what all kinds of it have."""
    names = (
        "model", "reference", "floor", "classifier", "guidance_at", "solver", "steps", "grid", "solver_options", "eta",
        "clip", "precision", "seed", "classes", "extractor", "metrics", "model_weights", "reference_count",
    )  # fmt: skip
    about = {name: getattr(args, name) for name in names} | {"count": args.count or MADE}
    classifiers = listed(args.classifier)
    return about | {"classifier": classifiers if len(classifiers) > 1 else next(iter(classifiers), None)}


def sampler_of(args: argparse.Namespace, plan: Plan, ranks: Ranks) -> Pipeline:
    """The model with the sampler of a plan."""
    given = argparse.Namespace(**{**vars(args), **plan.changes})
    return Pipeline.load(model_settings(given, args.model), str(ranks.device))


def save_reports(folder: Path, reports: Sequence[Report]) -> list[str]:
    """Write each report into a file of its own, called as it is; the files' names."""
    names: list[str] = []
    for report in reports:
        stem = safe(report.name)  # which cuts long names, and does not tell 1 from -1
        name, k = f"{stem}.json", 1
        while name.casefold() in map(str.casefold, names):
            k += 1
            name = f"{stem}-{k}.json"
        report.save(folder / name, overwrite=True)
        names.append(name)
    return names


def same_sweep(path: Path, about: dict[str, Any], overwrite: bool) -> None:
    """ValueError if the folder holds another sweep, whose files would be mixed with these."""
    if overwrite or not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8")).get("settings")
    except (OSError, ValueError, AttributeError):
        before = None
    if before != json.loads(json.dumps(about)):
        raise FileExistsError(
            f"{path.parent} holds another sweep: name another --out, or replace what is there with --overwrite"
        )
