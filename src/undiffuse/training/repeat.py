"""Repeats a finished run from its folder alone and compares the two: `undiffuse rerun`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from undiffuse import checkpoints
from undiffuse.data import ImageDataset
from undiffuse.data.content import content_index
from undiffuse.training.engine import Outcome
from undiffuse.training.events import Listener, read_events
from undiffuse.training.face import run_plan
from undiffuse.training.folder import json_plain
from undiffuse.training.plan import TrainPlan, plan
from undiffuse.training.provenance import read_sessions
from undiffuse.training.request import read_request
from undiffuse.training.run_data import data_card
from undiffuse.training.tasks import Task
from undiffuse.util.errors import ConfigError
from undiffuse.util.records import Difference, difference_text, differences, read_json
from undiffuse.util.text import count_of

__all__ = ["Repetition", "RepetitionStopped", "compare_runs", "repeat"]

CLOSE = 1e-3
"""The largest difference of weights, relative to their norm, that is put down to rounding."""
_NAMED = 12  # differences printed of many
_NOT_COMPARED = ("evaluate_every", "evaluate_images", "keep", "milestones", "preview_every", "log_every", "save_every")


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """How a repeated run compares with the first.

    Attributes:
        folder: The folder of the repeated run.
        images: Images that both runs had seen when their weights were compared.
        identical: Whether all weights and averages are equal bit for bit.
        distance: Norm of the difference of the weights over the norm of the weights.
        records: Number of progress records that both runs have.
        parted: Images after which the loss of the two runs first differs; None if it never does.
        settings: Settings that differ between the two runs.
        surroundings: Versions and hardware that differ between the two runs.
    """

    folder: Path
    images: int
    identical: bool
    distance: float
    records: int
    parted: int | None
    settings: list[Difference]
    surroundings: list[Difference]

    @property
    def close(self) -> bool:
        """Whether the weights are equal up to rounding."""
        return self.identical or self.distance <= CLOSE


def repeat(
    run: Path | str,
    out: Path | str | None = None,
    listeners: Sequence[Listener] = (),
    planned: Callable[[TrainPlan, Task], None] | None = None,
) -> Repetition:
    """Trains a finished run again, from its folder alone, and compares the result.

    A repetition that was stopped resumes when it is called again. Evaluations during the run are left out: they do not
    change the weights.

    Args:
        run: The folder of the run.
        out: The folder of the repetition; None appends "-rerun" to the name of the run.
        listeners: Called with every record of the repetition.
        planned: Called with the plan and the task before the first update.

    Returns:
        The comparison.

    Raises:
        ConfigError: The folder holds no run that can be repeated, the run is not complete, or its images have changed.
        RepetitionStopped: A signal stopped the repetition; the same call resumes it.
    """
    folder = Path(run).expanduser()
    first = read_request(folder)
    stored = _settings(folder)
    if stored.get("custom"):
        names = ", ".join(f"{name} ({what})" for name, what in stored["custom"].items())
        raise ConfigError("run", f"{folder} was trained with parts that only its program has: {names}; run that again")
    target = Path(out).expanduser() if out is not None else folder.with_name(f"{folder.resolve().name}-rerun")
    if target.resolve() == folder.resolve():
        raise ConfigError("out", "is the folder of the run itself; name another")
    request = replace(first, out=str(target), evaluation={}, log=())
    made = plan(request)
    newest = checkpoints.latest(folder)
    seen = 0 if newest is None else checkpoints.images_of(newest)
    if seen < made.config.total_images:
        raise ConfigError(
            "run", f"{folder} was stopped after {seen:,} of {made.config.total_images:,} images; resume it first"
        )
    _check_data(folder, stored.get("data") or {}, made.dataset)
    task = made.build_task()
    other = differences(_compared(stored), _compared(json_plain({**task.manifest(), "train": made.config.to_dict()})))
    if other:
        raise ConfigError(
            "run",
            f"{folder} was trained from Python with parts that its folder does not hold, or by another version; with "
            f"its own settings the run would differ:\n{difference_text(other[:_NAMED])}",
        )
    if planned is not None:
        planned(made, task)
    outcome = run_plan(made, task, listeners)
    if not outcome.complete:
        raise RepetitionStopped(target, outcome)
    return compare_runs(folder, target)


class RepetitionStopped(RuntimeError):
    """A repetition was stopped, so that there is nothing to compare yet; the same call resumes it.

    Attributes:
        outcome: How far it is, and what stopped it.
    """

    def __init__(self, folder: Path, outcome: Outcome) -> None:
        super().__init__(
            f"stopped by {outcome.stopped_by} after {count_of(outcome.images, 'image')}; saved in {folder}, where the "
            "same call resumes"
        )
        self.outcome = outcome


def compare_runs(first: Path | str, second: Path | str) -> Repetition:
    """Compares two runs at the newest checkpoint that both have.

    Raises:
        ValueError: They have no checkpoint in common, or their networks differ.
    """
    first, second = Path(first), Path(second)
    there = {checkpoints.images_of(path): path for path in checkpoints.checkpoints(first)}
    here = {checkpoints.images_of(path): path for path in checkpoints.checkpoints(second)}
    common = sorted(there.keys() & here.keys())
    if not common:
        raise ValueError(f"{first} and {second} have no checkpoint after the same number of images")
    images = common[-1]
    a, _ = checkpoints.read(there[images])
    b, _ = checkpoints.read(here[images])
    names = [name for name in a if name.startswith(("net.", "ema."))]
    if any(name not in b or a[name].shape != b[name].shape for name in names):
        raise ValueError(f"{first} and {second} trained different networks")
    identical = all(torch.equal(a[name], b[name]) for name in names)
    off = sum(float((a[name].double() - b[name].double()).square().sum()) for name in names)
    size = sum(float(a[name].double().square().sum()) for name in names)
    losses_there, losses_here = _losses(first), _losses(second)
    both = sorted(losses_there.keys() & losses_here.keys())
    parted = next((n for n in both if losses_there[n] != losses_here[n]), None)
    return Repetition(
        folder=second,
        images=images,
        identical=identical,
        distance=(off / size) ** 0.5 if size else 0.0,
        records=len(both),
        parted=parted,
        settings=differences(_compared(_settings(first)), _compared(_settings(second))),
        surroundings=differences(_surroundings(first), _surroundings(second)),
    )


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError("run", f"{folder} has no config.json, so its settings are not known")
    return read_json(path.read_text(encoding="utf-8"), str(path))


def _compared(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the weights."""
    train = {name: value for name, value in (stored.get("train") or {}).items() if name not in _NOT_COMPARED}
    parts = {name: stored.get(name) for name in ("kind", "net", "process", "objective", "labels", "conditions")}
    return {**parts, "train": train}


def _surroundings(folder: Path) -> dict[str, Any]:
    """Versions and hardware of the last start of a run; {} for a run of a version that did not record them."""
    sessions = read_sessions(folder)
    return {name: sessions[-1].get(name) for name in ("versions", "machine", "processes")} if sessions else {}


def _losses(folder: Path) -> dict[int, Any]:
    records = read_events(folder / "metrics.jsonl")
    return {record["images"]: record.get("loss") for record in records if record.get("kind") == "train"}


def _check_data(folder: Path, before: Mapping[str, Any], dataset: Any) -> None:
    now = json_plain(data_card(dataset))
    content = content_index(dataset.source) if isinstance(dataset, ImageDataset) else None
    known = before.get("content")
    changed = known is not None and content is not None and content.hash != known
    if changed or before.get("fingerprint") != now.get("fingerprint"):
        raise ConfigError("run", f"the images that {folder} was trained on have changed, so it cannot be repeated")
