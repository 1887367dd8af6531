"""`undiffuse compare`: shows evaluations side by side, one table per reference and extractor."""

from __future__ import annotations

import argparse

from undiffuse.cli.console import say
from undiffuse.evaluation import compare


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    groups = compare(args.files, None if args.metrics is None else args.metrics.split(","), args.sort)
    if len(groups) > 1:
        say(f"{len(groups)} tables, because numbers of different references or extractors are not comparable.\n")
    say("\n\n".join(group.text() if args.format == "text" else group.markdown() for group in groups))
    return 0
