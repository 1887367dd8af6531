"""`undiffuse evaluate`: metrics of samples against a reference."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from undiffuse.cli import extractors as build
from undiffuse.cli.console import Live, duration, say
from undiffuse.cli.reporting import report_text
from undiffuse.cli.sides import MADE, Side, is_model, made_by, model_settings, preparation_of, stored
from undiffuse.distributed import Ranks, session
from undiffuse.evaluation import METRICS, Evaluation, MetricOptions, Report, Summary, evaluate, read_reference
from undiffuse.evaluation.summary import is_reference
from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import Extractor
from undiffuse.pictures.names import safe
from undiffuse.pipelines.pipeline import Pipeline

FOLDER = "evaluations"


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    model = Path(args.samples).name if is_model(args.samples) else None
    if args.out is not None:
        refuse_existing(Path(args.out), args.overwrite)
    known_metrics(args.metrics)
    with session(args.device) as ranks:
        if is_model(args.reference):
            raise MetricError(
                f"the reference must be images or a reference file; there is no folder or file {args.reference}"
            )
        given = read_reference(args.reference) if is_reference(args.reference) else None
        names = args.extractor or build.default_names([args.samples, args.reference], given)
        extractors = build.build(names, args.weights, args.grey, ranks.device)
        sampler = Pipeline.load(model_settings(args, args.samples), str(ranks.device)) if model else None
        prepared = preparation_of(args, sampler, extractors)
        if sampler is not None:
            samples = Side(images=made_by(sampler, args, args.count or MADE))
        else:
            samples = stored(
                args.samples, args, prepared, count=args.count, first=True, protocol=args.reference_protocol
            )
        reference = stored(args.reference, args, prepared, count=args.reference_count, protocol=args.reference_protocol)
        training = stored(args.training, args, prepared) if args.training else None
        title = args.name or default_name(args.samples, sampler, samples, args)
        path = Path(args.out) if args.out else Path(FOLDER) / f"{safe(title)}.json"
        refuse_existing(path, args.overwrite)
        report = measure(title, samples, reference, training, extractors, ranks, args)
    if report is not None:
        report.save(path, overwrite=args.overwrite)
        say(report_text(report))
        say(f"\n{path} written after {duration(time.monotonic() - begin)}")
    return 0


def measure(
    title: str,
    samples: Side,
    reference: Side,
    training: Side | None,
    extractors: Sequence[Extractor],
    ranks: Ranks,
    args: argparse.Namespace,
) -> Report | None:
    """Both sides' features by one pass each, then all metrics; None in the helper processes of a torchrun."""
    seconds: dict[str, float] = {}
    sides = {}
    for what, side in (("samples", samples), ("reference", reference), ("training", training)):
        if side is not None:
            begin = time.perf_counter()
            sides[what] = side.summarise(extractors, ranks, args, f"{what}:")
            seconds[f"{what}: features"] = time.perf_counter() - begin
    if not ranks.is_main:
        return None
    options = MetricOptions(distances=args.distances, chunk=args.chunk)
    parts: list[tuple[Summary, Summary, Evaluation]] = []
    live = Live()
    for number, extractor in enumerate(extractors):
        ours, theirs = sides["samples"][number], sides["reference"][number]
        trained = sides["training"][number] if training is not None else None

        def told(name: str, which: str = extractor.card.distance) -> None:
            live.show(f"{which}: {METRICS[name]} ...")

        try:
            parts.append(
                (ours, theirs, evaluate(ours, theirs, args.metrics, options, training=trained, on_metric=told))
            )
        finally:
            live.clear()
    return Report.of(title, parts, seconds, ranks.device)


def known_metrics(names: Sequence[str] | None) -> None:
    """ValueError for names that are no metrics, before anything expensive starts."""
    if unknown := [name for name in names or () if name not in METRICS]:
        listed = "\n".join(f"  {name:14}{text}" for name, text in METRICS.items())
        raise MetricError(f"there is no metric {', '.join(unknown)}; there are\n{listed}")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """FileExistsError before the work, not after it."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: name another by --out, or replace it with --overwrite")


def default_name(place: str, sampler: Pipeline | None, side: Side, args: argparse.Namespace) -> str:
    """What a run is called in tables and files."""
    stem = Path(place).stem if Path(place).exists() and Path(place).is_file() else Path(place).name or place
    if sampler is None:
        return f"{stem}, first {args.count:,}" if args.count else stem
    assert side.images is not None
    settings = sampler.settings
    parts = [stem, f"{settings.solver} {settings.steps}"]
    parts += [settings.grid] if settings.grid not in (None, "chain") else []
    parts += [settings.solver_options] if settings.solver_options else []
    at = {"mean": " at the mean", "x0": " at x0"}.get(settings.guidance_at, "")
    parts += [f"guidance {settings.guidance:g}{at}"] if settings.guidance else []
    parts += settings.guiding.text()
    parts += [settings.precision] if settings.precision != "fp32" else []
    return ", ".join([*parts, f"seed {args.seed}", f"{len(side.images):,}"])
