"""Looks at a run folder and says in plain words what is wrong, what could be better and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undiffuse import checkpoints
from undiffuse.pipelines.grids import quoted
from undiffuse.training.events import read_events
from undiffuse.util.errors import reading
from undiffuse.util.records import read_json
from undiffuse.util.text import count_of, duration

__all__ = ["Finding", "check_run"]

PROBLEM, ADVICE, FINE = "problem", "advice", "fine"
_SKIPPED = 0.01
"""Share of skipped updates above which they are a problem."""
_SMALL = 1_000
"""Images below which a model mostly repeats its training images."""
_WINDOW = 5
"""Least number of records on each side of a comparison of the loss."""
_SIGMAS = 3.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a checkup found.

    Attributes:
        severity: "problem", "advice" or "fine".
        text: What it is.
        do: What to do about it; "" for nothing.
    """

    severity: str
    text: str
    do: str = ""


def check_run(folder: Path | str) -> list[Finding]:
    """Returns what there is to say of a training run, problems first.

    Args:
        folder: The run folder.

    Raises:
        ValueError: The folder's config.json or records are damaged.
    """
    folder = Path(folder).expanduser()
    records = list(read_events(folder / "metrics.jsonl"))
    train = [r for r in records if r.get("kind") == "train"]
    path = folder / "config.json"
    settings = read_json(path.read_bytes(), str(path)) if path.is_file() else {}
    with reading(f"the records of {folder}"):
        found = [
            *_progress(folder, records, train),
            *_damaged(folder),
            *_skipped(records, train),
            *_loss(train, folder),
            *_validation(records),
            *_amount(train, settings, folder),
        ]
    if not any(item.severity == PROBLEM for item in found) and train:
        found.append(Finding(severity=FINE, text="Nothing is wrong that the records of this run can show."))
    return sorted(found, key=lambda item: (PROBLEM, ADVICE, FINE).index(item.severity))


def _progress(folder: Path, records: Sequence[Mapping[str, Any]], train: Sequence[Mapping[str, Any]]) -> list[Finding]:
    newest = checkpoints.latest(folder)
    if not train:
        return [
            Finding(
                severity=ADVICE,
                text="There are no records of training yet.",
                do="Wait for the first updates, or look at the messages of the command.",
            )
        ]
    last, total = train[-1], train[-1]["total_images"]
    if newest is None:
        return [Finding(severity=ADVICE, text="The run has no checkpoint yet, so stopping it now would lose it.")]
    seen = checkpoints.images_of(newest)
    if seen >= total:
        return []
    ends = [r for r in records if r.get("kind") in ("start", "end")]
    stopped = bool(ends) and ends[-1]["kind"] == "end"
    left = duration(float(last.get("seconds_left") or 0))
    return [
        Finding(
            severity=ADVICE,
            text=f"The run has seen {seen:,} of {total:,} images; the rest takes about {left}"
            + (f". It was {ends[-1].get('text', 'stopped')}" if stopped else "")
            + ".",
            do=f"To resume it, if it is not running: undiffuse train --resume {quoted(folder.as_posix())}",
        )
    ]


def _damaged(folder: Path) -> list[Finding]:
    names = sorted(path.name for path in (folder / checkpoints.FOLDER).glob("*.damaged"))
    if not names:
        return []
    return [
        Finding(
            severity=PROBLEM,
            text=f"{count_of(len(names), 'checkpoint')} of this run could not be read: {', '.join(names[:5])}.",
            do="The run resumed from an older one. Check the disk; delete these files when you no longer need them.",
        )
    ]


def _skipped(records: Sequence[Mapping[str, Any]], train: Sequence[Mapping[str, Any]]) -> list[Finding]:
    count = sum(int(r.get("skipped") or 0) for r in train)
    steps = train[-1]["steps"] if train else 0
    if not count or not steps:
        return []
    files = sorted({name for r in records if r.get("kind") == "skipped" for name in r.get("files") or ()})
    named = f" Images in them: {', '.join(files[:5])}." if files else ""
    share = count / steps
    return [
        Finding(
            severity=PROBLEM if share > _SKIPPED else ADVICE,
            text=f"{count_of(count, 'update')} of {steps:,} had a loss or gradient that was not finite and were "
            f"skipped.{named}",
            do="Lower the learning rate (--lr), clip gradients (--set train.grad_clip=1.0), or use --precision bf16.",
        )
    ]


def _loss(train: Sequence[Mapping[str, Any]], folder: Path) -> list[Finding]:
    """Whether the error still falls: the last quarter of the records against the quarter before."""
    key = "mse" if train and "mse" in train[-1] else "loss"
    values = [float(r[key]) for r in train if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])]
    if len(values) < 2 * _WINDOW:
        return []
    quarter = max(_WINDOW, len(values) // 4)
    before, after = values[-2 * quarter : -quarter], values[-quarter:]
    error = math.sqrt(_variance(before) / quarter + _variance(after) / quarter)
    change = _mean(after) - _mean(before)
    name = "mean squared error" if key == "mse" else "loss"
    if change > _SIGMAS * error and _mean(after) > 1.05 * _mean(before):
        return [
            Finding(
                severity=PROBLEM,
                text=f"The {name} rises: {_mean(before):.4g} became {_mean(after):.4g} over the last quarter.",
                do="Lower the learning rate (--lr), and resume from an earlier checkpoint.",
            )
        ]
    ends_at = train[-1]["total_images"]
    ends = train[-1]["images"] >= ends_at
    if change < -_SIGMAS * error:
        if ends and _mean(after) < 0.98 * _mean(before):
            return [
                Finding(
                    severity=ADVICE,
                    text=f"The {name} was still falling at the end: {_mean(before):.4g} became {_mean(after):.4g}.",
                    do=f"Train longer: undiffuse train --resume {quoted(folder.as_posix())} --images {2 * ends_at}",
                )
            ]
        return []
    return [
        Finding(
            severity=FINE,
            text=f"The {name} no longer falls measurably ({_mean(before):.4g}, then {_mean(after):.4g}). Samples may "
            "still improve; compare evaluations rather than losses.",
        )
    ]


def _validation(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Whether the error on held-out images rises, a sign that the model learns its training images by heart."""
    found = [r for r in records if r.get("kind") == "validation"]
    key = "mse" if found and "mse" in found[-1] else "loss"
    values = [(r["images"], float(r[key])) for r in found if isinstance(r.get(key), (int, float))]
    if len(values) < 3:
        return []
    best = min(values, key=lambda item: item[1])
    if values[-1][1] <= 1.05 * best[1]:
        return []
    return [
        Finding(
            severity=PROBLEM,
            text=f"The error on held-out images was lowest after {best[0]:,} images ({best[1]:.4g}) and is now "
            f"{values[-1][1]:.4g}: the model learns its training images by heart.",
            do="Stop earlier, use more images, mirror them (--flip), or add dropout (--set net.dropout=0.1).",
        )
    ]


def _amount(train: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], folder: Path) -> list[Finding]:
    """Whether there are enough images for what the model sees of them."""
    count = (settings.get("data") or {}).get("count")
    if not isinstance(count, int) or not train:
        return []
    epochs = train[-1]["images"] / count
    data = ((settings.get("data") or {}).get("config") or {}).get("path") or "DATA"
    samples = quoted(f"samples-{folder.name}")
    if count >= _SMALL and epochs < 500:
        return []
    return [
        Finding(
            severity=ADVICE,
            text=f"The run has seen each of its {count:,} images about {epochs:,.3g} times; a model may mostly repeat "
            "them.",
            do="Compare samples with their nearest training images: "
            f"undiffuse sample {quoted(folder.as_posix())} --out {samples} && "
            f"undiffuse report {samples} --training {quoted(data)}",
        )
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
