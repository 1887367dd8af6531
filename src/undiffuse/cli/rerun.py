"""`undiffuse rerun`: trains a finished run again and compares the result."""

from __future__ import annotations

import argparse

from undiffuse.cli.console import fail, say
from undiffuse.cli.train import STOPPED
from undiffuse.cli.training_options import naming_options
from undiffuse.cli.training_report import forecast
from undiffuse.kernels import keep_memory
from undiffuse.training.plan import TrainPlan
from undiffuse.training.progress import TrainingProgress
from undiffuse.training.provenance import read_sessions
from undiffuse.training.repeat import Repetition, RepetitionStopped, repeat
from undiffuse.training.tasks import Task
from undiffuse.util.launch import is_main_process
from undiffuse.util.records import Difference, difference_text

_SHOWN = 12


def run(args: argparse.Namespace) -> int:
    """Runs the command; the status is 1 if the weights differ by more than rounding."""
    keep_memory()
    progress = TrainingProgress()

    def planned(plan: TrainPlan, task: Task) -> None:
        if is_main_process():
            text, expected = forecast(plan, task)
            say(f"repeats {args.run}\n{text}")
            progress.expect(expected)

    try:
        with naming_options(run="RUN", resume="RUN"):
            found = repeat(args.run, args.out, [progress], planned)
    except RepetitionStopped as stop:
        fail(str(stop).replace("call", "command"), prefix="")
        return STOPPED.get(stop.outcome.stopped_by, 1)
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
    starts = [str(session.get("command")) for session in read_sessions(name)]
    if not found.identical and len(starts) > 1:
        verdict += f"\n{name} was trained in {len(starts)} parts:\n" + "\n".join(f"  {command}" for command in starts)
        verdict += (
            "\nA repetition has the settings of the last part from its beginning. If the length or the learning rate "
        )
        verdict += "was changed between them, the runs cannot be equal."
    for what, items in (("Settings", found.settings), ("Versions and hardware", found.surroundings)):
        if items and not (found.identical and what == "Settings"):
            verdict += f"\n{what} that differ:\n{_list(items)}"
    return verdict


def _list(items: list[Difference]) -> str:
    more = len(items) - _SHOWN
    return difference_text(items[:_SHOWN]) + (f"\n  and {more} more" if more > 0 else "")
