"""`undiffuse report`: writes an HTML report of runs, evaluations, sweeps and samples."""

from __future__ import annotations

import argparse

from undiffuse.cli.console import say
from undiffuse.reports import write_report
from undiffuse.util.text import size_text

OPTION_NAMES = {"paths": "PATH"}


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    path = write_report(args.paths, args.out, title=args.title, training=args.training, overwrite=args.overwrite)
    say(f"{path} written ({size_text(path.stat().st_size)}). Open it in a browser.")
    return 0
