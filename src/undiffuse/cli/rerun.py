"""`undiffuse rerun`: trains a finished run again and compares the result."""

from __future__ import annotations

import argparse

from undiffuse.cli.console import say
from undiffuse.cli.training_options import naming_options
from undiffuse.kernels import keep_memory
from undiffuse.training.progress import TrainingProgress
from undiffuse.training.repeat import Repetition, repeat
from undiffuse.util.records import Difference, difference_text

_SHOWN = 12


def run(args: argparse.Namespace) -> int:
    """Runs the command; the status is 1 if the weights differ by more than rounding."""
    keep_memory()
    with naming_options(run="RUN", resume="RUN"):
        found = repeat(args.run, args.out, [TrainingProgress()])
    say(_text(args.run, found))
    return 0 if found.close else 1


def _text(name: str, found: Repetition) -> str:
    if found.identical:
        verdict = f"{found.folder} equals {name}: after {found.images:,} images all weights are the same, bit for bit."
    elif found.close:
        verdict = (
            f"{found.folder} equals {name} up to rounding: after {found.images:,} images the weights differ by "
            f"{found.distance:.1e} of their norm."
        )
    else:
        verdict = (
            f"{found.folder} differs from {name}: after {found.images:,} images the weights differ by "
            f"{found.distance:.2g} of their norm."
        )
    if found.records:
        where = "is the same in all" if found.parted is None else f"first differs after {found.parted:,} images, in"
        verdict += f" The loss {where} {found.records:,} records."
    for what, items in (("Settings", found.settings), ("Versions and hardware", found.surroundings)):
        if items and not (found.identical and what == "Settings"):
            verdict += f"\n{what} that differ:\n{_list(items)}"
    return verdict


def _list(items: list[Difference]) -> str:
    more = len(items) - _SHOWN
    return difference_text(items[:_SHOWN]) + (f"\n  and {more} more" if more > 0 else "")
