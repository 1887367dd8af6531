"""`undiffuse reference`: makes a file of statistics and features to evaluate against."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.cli.console import fields, say
from undiffuse.cli.evaluating import OPTION_NAMES, settings
from undiffuse.evaluation import make_reference
from undiffuse.pictures.names import safe
from undiffuse.pipelines.grids import quoted
from undiffuse.util.text import count_of, duration

__all__ = ["OPTION_NAMES", "run"]

SUFFIX = ".reference.safetensors"


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    path = Path(args.out) if args.out else Path(f"{safe(Path(args.data).stem.replace(':', '-'))}{SUFFIX}")
    summaries = make_reference(
        args.data, path, keep=args.keep, overwrite=args.overwrite, device=args.device, **settings(args)
    )
    rows: list[tuple[str, object]] = []
    for summary in summaries:
        card, n = summary.card, 0 if summary.features is None else len(summary.features)
        text = f"{card.extractor}, {card.protocol}, {card.dimension} features, kept for "
        text += count_of(min(args.keep, n), "image")
        rows.append((card.distance, text))
    about = summaries[0].about
    rows += [("images", f"{about['n']:,}, sha256 {about['sha256'][:12]}")]
    rows += [("warning", text) for text in summaries[0].warnings]
    size = path.stat().st_size / 2**20
    say(f"{path} ({size:.1f} MB) written after {duration(time.monotonic() - begin)}")
    say(fields(rows))
    say(f"To evaluate against it:\n  undiffuse evaluate SAMPLES {quoted(path.as_posix())}")
    return 0
