"""The records of a run: immutable events, the JSONL file they are appended to, and their text for people.

Kinds: "start" (also after a resume), "train" (means over the images since the last one), "validation", "preview",
"save", "note" (something the user should know: a damaged checkpoint, a smaller micro-batch), "skipped" (a non-finite
update), "end".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from undiffuse.util.files import atomic_file
from undiffuse.util.text import duration


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of a run: its kind, how far the run was, and its values (JSON-ready)."""

    kind: str
    images: int
    steps: int
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def to_json(self) -> str:
        """One line of JSON; NaN and infinities become strings, which every JSON reader accepts."""
        return json.dumps(
            {"kind": self.kind, "images": self.images, "steps": self.steps, **_plain(dict(self.values))},
            allow_nan=False,
        )


Listener = Callable[[Event], None]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


class JsonlSink:
    """A listener that appends every record to a file.

    Args:
        path: The file.
        resume_at: Images of the checkpoint that the run resumes from. Records past it (and a line cut short by a kill)
            are removed first, because they will be written again. None starts with an empty file.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_at is None else [r for r in read_events(path) if r["images"] <= resume_at]
        with atomic_file(path, overwrite=True) as file:
            file.write("".join(json.dumps(r) + "\n" for r in kept).encode())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - stays open for the whole run, see close

    def __call__(self, record: Event) -> None:
        self._file.write(record.to_json() + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Forces what was written to the disk: called before a checkpoint claims that these records exist."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records in a JSONL file, in order; skips a line that was cut short when the machine stopped."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and isinstance(record.get("images"), int):
                yield record


def progress_parts(record: Event) -> list[str]:
    """The parts of a "train" record's line, most important first, so that a narrow terminal can drop the last ones.

    The error "mse" goes first where there is one: with the hybrid loss, "loss" and "bits" jump by orders of magnitude
    with single draws near t = T-1 (see `outputs.save_loss_curve`), which says nothing about the training.
    """
    v = record.values
    first = "mse" if "mse" in v else "loss"
    parts = [f"{100 * record.images / v['total_images']:5.1f}%", f"{record.images:,} images", f"{first} {v[first]:.3g}"]
    speed = v["images_per_second"]
    parts.append(f"{speed:,.0f} images/s" if speed >= 100 else f"{speed:.3g} images/s")
    parts.append(f"{duration(v['seconds_left'])} left")
    if "bits" in v:
        parts.append(f"bits/dim {v['bits']:.3g}")
    if v.get("skipped"):
        parts.append(f"{v['skipped']} skipped")
    if "top1" in v:
        parts.append(f"accuracy {100 * v['top1']:.1f}%")
    if first != "loss":
        parts.append(f"loss {v['loss']:.3g}")
    return [*parts, f"grad {v['grad_norm']:.3g}", f"lr {v['lr']:.2g}"]


def format_progress(record: Event) -> str:
    """One line for people: images and percentage, error, bits, images per second, time left, accuracy, loss, gradient
    norm, learning rate.
    """
    v = record.values
    if record.kind == "train":
        return "  ".join(progress_parts(record))
    if record.kind == "validation":
        numbers = [f"{k} {x:.4g}" for k, x in v.items() if isinstance(x, float) and "_t" not in k and "_q" not in k]
        return f"validation after {record.images:,} images: " + "  ".join(numbers)
    if record.kind == "evaluation":
        parts = [f"{k} {x:.4g}" for k, x in v.items() if isinstance(x, float) and not k.endswith(" error")]
        return (
            f"{v['samples']:,} samples after {record.images:,} images (few: compare within this run only): "
            + "  ".join(parts)
        )
    if record.kind == "skipped":
        where = f", {v['counts']['positions']} images not finite" if v["positions"] else ", gradient not finite"
        return f"skipped: the update of images {v['first']} to {v['last']}{where} ({v['bad_in_a_row']} in a row)"
    return f"{record.kind}: {v.get('text', '')}".rstrip(": ")
