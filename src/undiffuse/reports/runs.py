"""The section of a training run: curves, previews over time, evaluations, settings, and what to do next."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from undiffuse.pictures import Panel
from undiffuse.reports.charts import charts, slider
from undiffuse.reports.page import Section, details, findings, table
from undiffuse.training.checkup import check_run
from undiffuse.training.events import read_events
from undiffuse.training.provenance import read_sessions
from undiffuse.util.records import flat, read_json
from undiffuse.util.text import count_of, duration

__all__ = ["preview_files", "run_panels", "run_section", "run_summary", "settings_of_run"]

FRAMES = 24
"""Moments of the run whose previews are embedded, evenly spaced."""
_PREVIEW = re.compile(r"^(\d+)_(.+)\.png$")
_IMAGES = "images seen"


def run_section(folder: Path) -> Section:
    """Returns the section of a run folder.

    Raises:
        ValueError: The folder's config.json is damaged.
    """
    records = list(read_events(folder / "metrics.jsonl"))
    settings = settings_of_run(folder)
    body = findings([(item.severity, item.text, item.do) for item in check_run(folder)])
    body += table([], run_summary(settings, records))
    panels = run_panels(records)
    body += "<h3>Curves</h3>" + charts(panels) if panels else ""
    body += _previews(folder / "previews")
    body += _evaluations(records)
    body += _repeating(folder)
    if settings:
        rows = [
            (name, json.dumps(value) if isinstance(value, list) else value) for name, value in flat(settings).items()
        ]
        body += details("All settings", table(["setting", "value"], rows))
    notes = [(f"{r['images']:,}", r.get("text", "")) for r in records if r.get("kind") == "note"]
    if notes:
        body += details(f"Notes of the run ({len(notes)})", table(["images", "note"], notes))
    return Section(title=f"Training run {folder.resolve().name}", body=body)


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Returns the config.json of a run folder; {} if it has none yet.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / "config.json"
    return read_json(path.read_bytes(), str(path)) if path.is_file() else {}


def run_summary(settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns rows (name, value) on a run: data, classes, process, training, progress and time.

    Args:
        settings: Its config.json.
        records: The events of its metrics.jsonl.
    """
    rows = []
    data, train = settings.get("data") or {}, settings.get("train") or {}
    if data.get("source"):
        height, width, channels = data["size"]
        count = f", {data['count']:,} images" if data.get("count") else ""
        rows.append(("data", f"{data['source']}{count}, {height}x{width}, {count_of(channels, 'channel')}"))
    labels = settings.get("labels")
    rows.append(("classes", ", ".join(map(str, labels)) if labels else "none"))
    process = settings.get("process") or {}
    if process:
        rows.append(
            ("process", f"{process.get('steps')} {process.get('schedule')} steps, predicts {process.get('target')}")
        )
    if train:
        rows.append(
            ("training", f"batches of {train['batch']}, learning rate {train['lr']:g}, {train['precision']}, "
                         f"seed {train['seed']}")
        )  # fmt: skip
    last = next((r for r in reversed(records) if r.get("kind") == "train"), None)
    if last is not None:
        share = 100 * last["images"] / last["total_images"]
        rows.append(("progress", f"{last['images']:,} of {last['total_images']:,} images ({share:.1f} %)"))
        spent = last.get("seconds")
        if isinstance(spent, (int, float)):
            rows.append(("time", f"{duration(spent)} of training, {last['images_per_second']:.3g} images/s at the end"))
    return rows


def run_panels(records: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Returns the curves of a run, those without points left out.

    Args:
        records: The events of its metrics.jsonl.
    """
    error, name = ("mse", "mean squared error") if _points(records, "train", "mse") else ("loss", "loss")
    panels = [
        Panel(
            lines=_lines({name: _points(records, "train", error),
                          f"validation {name}": _points(records, "validation", error)}),
            title=name, x_label=_IMAGES, y_label=name, log_y=True, smooth=0.9,
        ),
        Panel(
            lines=_lines(_by_quartile(records, error)),
            title=f"{name} by noise level", x_label=_IMAGES, y_label=name, log_y=True, smooth=0.9,
        ),
        Panel(
            lines=_lines({"accuracy": _points(records, "train", "top1", 100),
                          "validation accuracy": _points(records, "validation", "top1", 100)}),
            title="accuracy", x_label=_IMAGES, y_label="per cent",
        ),
        Panel(
            lines=_lines({"mean": _points(records, "train", "grad_norm"),
                          "largest": _points(records, "train", "grad_norm_max")}),
            title="gradient norm", x_label=_IMAGES, y_label="gradient norm", log_y=True,
        ),
        Panel(lines=_lines({"learning rate": _points(records, "train", "lr")}),
              title="learning rate", x_label=_IMAGES, y_label="learning rate"),
        Panel(lines=_lines({"images per second": _points(records, "train", "images_per_second")}),
              title="images per second", x_label=_IMAGES, y_label="images per second"),
    ]  # fmt: skip
    return [panel for panel in panels if panel.lines]


def _points(records: Sequence[Mapping[str, Any]], kind: str, key: str, factor: float = 1) -> list[tuple[float, float]]:
    return [
        (float(r["images"]), factor * float(r[key]))
        for r in records
        if r.get("kind") == kind and isinstance(r.get(key), (int, float))
    ]


def _by_quartile(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[float, float]]]:
    """The error of each quarter of the noise levels."""
    names = ("least noise", "second quarter", "third quarter", "most noise")
    out: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for record in records:
        values = (record.get("by_quartile") or {}).get(key) if record.get("kind") == "train" else None
        for name, value in zip(names, values or (), strict=False):
            if isinstance(value, (int, float)):
                out[name].append((float(record["images"]), float(value)))
    return out


def _lines(lines: Mapping[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    return {name: points for name, points in lines.items() if points}


def preview_files(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """Returns (images seen, file) of the previews in a folder, by kind of weights; the trained weights come last."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*.png")) if folder.is_dir() else []:
        match = _PREVIEW.match(path.name)
        if match is not None:
            found.setdefault(match[2], []).append((int(match[1]), path))
    return dict(sorted(found.items(), key=lambda item: item[0] == "raw"))


def _previews(folder: Path) -> str:
    """A slider for each kind of weights; the averages first, because they are what is sampled."""
    out = ""
    for kind, files in preview_files(folder).items():
        chosen = [files[round(k * (len(files) - 1) / max(1, FRAMES - 1))] for k in range(min(FRAMES, len(files)))]
        if len(files) <= FRAMES:
            chosen = files
        frames = []
        for images, path in chosen:
            with Image.open(path) as picture:
                picture.load()
                frames.append((picture.copy(), f"after {images:,} images"))
        title = "trained weights" if kind == "raw" else f"averaged weights, decay {kind.removeprefix('ema-')}"
        out += f"<h3>Previews: {escape(title)}</h3>" + slider("images seen", frames)
    return out


def _evaluations(records: Sequence[Mapping[str, Any]]) -> str:
    found = [r for r in records if r.get("kind") == "evaluation"]
    if not found:
        return ""
    known = ("kind", "images", "steps", "samples", "seconds", "text")
    names = [key for key, value in found[-1].items() if isinstance(value, float) and not key.endswith(" error")]
    panels = []
    for name in (name for name in names if name not in known):
        both = [r for r in found if isinstance(r.get(name), (int, float))]
        points = [(float(r["images"]), float(r[name])) for r in both]
        errors = [float(r.get(f"{name} error") or 0.0) for r in both]
        panels.append(Panel(lines={name: points}, errors={name: errors}, title=name, x_label=_IMAGES, y_label=name))
    return "<h3>Evaluations during the run</h3>" + charts(panels)


def _repeating(folder: Path) -> str:
    sessions = read_sessions(folder)
    if not sessions:
        return ""
    rows = []
    for session in sessions:
        versions, machine = session.get("versions") or {}, session.get("machine") or {}
        software = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        hardware = f"{machine.get('processor')}, {count_of(machine.get('threads') or 0, 'thread')}"
        if machine.get("devices"):
            hardware = f"{', '.join(machine['devices'])}; {hardware}"
        rows.append((session.get("started"), session.get("command"), software, hardware))
    return (
        "<h3>How to repeat it</h3>"
        + table(["started", "command", "versions", "hardware"], rows)
        + "<p>Train it again from its folder alone, and compare:</p>"
        + f"<pre>undiffuse rerun {escape(folder.as_posix())}</pre>"
    )
