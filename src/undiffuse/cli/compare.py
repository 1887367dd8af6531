"""`undiffuse compare`: evaluations side by side, those that compare in one table."""

from __future__ import annotations

import argparse

from undiffuse.cli.console import say
from undiffuse.evaluation import compare


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    groups = compare(args.files, None if args.metrics is None else args.metrics.split(","), args.sort)
    if len(groups) > 1:
        say(f"{len(groups)} tables: runs with another reference or another extractor do not compare.\n")
    say("\n\n".join(group.text() if args.format == "text" else group.markdown() for group in groups))
    return 0
