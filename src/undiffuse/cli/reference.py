"""`undiffuse reference`: statistics and features of a set of images, to evaluate against."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli import extractors as build
from undiffuse.cli.console import duration, fields, say
from undiffuse.cli.evaluate import refuse_existing
from undiffuse.cli.sides import is_model, preparation_of, stored
from undiffuse.distributed import session
from undiffuse.evaluation import write_reference
from undiffuse.evaluation.summary import is_reference
from undiffuse.metrics import MetricError
from undiffuse.pictures.names import safe

SUFFIX = ".reference.safetensors"


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    if is_reference(args.data):
        raise MetricError(f"{args.data} is a reference file already; give the images")
    if is_model(args.data):
        raise MetricError(f"a reference is made of images; there is no folder, archive or known set {args.data}")
    path = Path(args.out) if args.out else Path(f"{safe(Path(args.data).stem.replace(':', '-'))}{SUFFIX}")
    refuse_existing(path, args.overwrite)
    with session(args.device) as ranks:
        names = args.extractor or build.default_names([args.data], None)
        extractors = build.build(names, args.weights, args.grey, ranks.device)
        side = stored(args.data, args, preparation_of(args, None, extractors), count=args.count)
        if side.images is None:
            raise MetricError(f"{args.data} holds statistics without images; it can be used as a reference as it is")
        summaries = side.summarise(extractors, ranks, args, "features:")
        if not ranks.is_main:
            return 0
        write_reference(path, summaries, keep=args.keep, overwrite=args.overwrite)
    rows: list[tuple[str, object]] = []
    for summary in summaries:
        card = summary.card
        kept = min(args.keep, len(summary.features) if summary.features is not None else 0)
        rows.append(
            (
                card.distance,
                f"{card.extractor}, {card.protocol}, {card.dimension} features; of {kept:,} images one by one",
            )
        )
    rows += [("images", f"{summaries[0].about['n']:,}, sha256 {summaries[0].about['sha256'][:12]}")]
    rows += [("warning", text) for text in summaries[0].warnings]
    size = path.stat().st_size / 2**20
    say(f"{path} ({size:.1f} MB) written after {duration(time.monotonic() - begin)}")
    say(fields(rows))
    say(f"  use it    undiffuse evaluate SAMPLES {path}")
    return 0
