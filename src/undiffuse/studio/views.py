"""Draws what the page shows as HTML: the state of a job, comparisons, records, trainings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undiffuse.pictures.arrays import from_picture
from undiffuse.pictures.png import open_picture
from undiffuse.pictures.stored import read_file
from undiffuse.reports.charts import charts
from undiffuse.reports.page import figure, findings, table
from undiffuse.studio.paths import enlargement
from undiffuse.studio.processes import Event
from undiffuse.studio.runs import RunView
from undiffuse.util.records import flat
from undiffuse.util.text import duration

__all__ = [
    "comparison", "error", "label_of", "preview_picture", "progress", "record_table", "run_page", "said", "status",
    "stored_image", "tiles",
]  # fmt: skip

_LABELS = {
    "guidance": "Classifier guidance scale", "cfg": "Classifier-free guidance scale", "eta": "DDIM eta",
    "guidance_at": "Gradient at", "classes": "Classes", "model_file": "Model", "data_std": "Data std",
    "cfg_rescale": "CFG rescale", "cfg_two_passes": "CFG in two passes", "budget": "Budget of network calls",
    "clip_after_guidance": "Clip again after guidance", "autoguide": "Autoguidance model",
    "autoguide_weights": "Autoguidance weights", "autoguide_scale": "Autoguidance scale", "out": "Run folder",
    "to": "Target class", "low_res": "The picture to enlarge", "guidance_normalize": "Normalize the gradient",
    "guidance_every": "Guide at every k-th call", "hole": "The rectangle", "mask": "The mask", "image": "The picture",
    "data": "The data set", "run": "The run", "more": "Further options",
}  # fmt: skip


def label_of(name: str) -> str:
    """Returns what the page calls a setting."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def said(text: str) -> str:
    """Returns a line that says how things are; screen readers read it when it changes."""
    return f'<div class="state" role="status">{escape(text)}</div>'


def error(text: str, field: str | None = None) -> str:
    """Returns a message about something that is not possible.

    Args:
        text: What is wrong; names of settings stand between backquotes.
        field: The setting that is wrong.
    """
    named = re.sub(r"`([a-z_]+)`", lambda found: f"“{label_of(found[1])}”", text)
    if field is not None:
        verb = named.split(" ", 1)[0] in ("is", "was", "has", "needs", "takes", "must", "cannot", "does", "enlarges")
        named = f"{label_of(field)}{' ' if verb else ': '}{named}"
    return f'<div class="state wrong" role="alert">{escape(named)}</div>'


def progress(done: float | None, text: str) -> str:
    """Returns a progress bar with a line of text; without a share the bar only shows that something is going on."""
    bar = "<progress></progress>" if done is None else f'<progress max="1" value="{done:.4f}"></progress>'
    return f'<div class="state" role="status">{bar}<span>{escape(text)}</span></div>'


def status(event: Event) -> str | None:
    """Returns the line that an event of a job changes the state to; None if it changes nothing."""
    values = event.values
    if event.kind == "waiting":
        ahead = values["ahead"]
        before = "the model process is busy" if not ahead else f"{ahead} other job{'s' if ahead > 1 else ''} before"
        return progress(None, f"Waiting: {before}")
    if event.kind == "started":
        return progress(None, "Preparing the model")
    if event.kind == "progress":
        done, left = values.get("done"), values.get("left")
        what = str(values.get("what") or "")
        share = "" if done is None else f"{100 * done:.0f}%"
        more = f", {duration(left)} left" if left is not None and left >= 1 else ""
        return progress(done, " ".join(part for part in (what, share) if part) + more)
    if event.kind == "stopped":
        killed = " The model process had to be ended; the next job starts a new one." if values.get("killed") else ""
        return said(f"Stopped.{killed}")
    if event.kind == "died":
        return error(
            f"The model process ended ({values['why']}). Nothing else is lost: run it again, and a new process starts."
        )
    if event.kind == "error":
        text = values["text"]
        if values.get("bug"):
            text = f"This is a fault of undiffuse: {text}. Please report it."
        return error(text, values.get("field"))
    if event.kind == "done":
        return said(f"Done in {duration(values['seconds'])}.")
    return None


def tiles(images: Sequence[np.ndarray], captions: Sequence[str], side: int = 96) -> str:
    """Returns images uint8 [H, W, C] side by side, each with its caption."""
    shown = (figure(image, text, enlargement(image, side)) for image, text in zip(images, captions, strict=True))
    return f'<div class="tiles">{"".join(shown)}</div>'


def comparison(
    images: Sequence[np.ndarray], difference: np.ndarray, rms: Sequence[float], captions: Sequence[str]
) -> str:
    """Returns two runs from the same noise below each other, and their differences.

    Args:
        images: The images of both, uint8 [N, H, W, C] each.
        difference: Their differences around middle grey, uint8 [N, H, W, C].
        rms: Root mean squares of the differences, in 8-bit levels.
        captions: The settings of both, in a few words.
    """
    about = "Difference B - A, halved; grey is no difference. Below each: its root mean square, of 255"
    rows = [
        (f"A: {captions[0]}", images[0], [""] * len(rms)),
        (f"B: {captions[1]}", images[1], [""] * len(rms)),
        (about, difference, [f"{v:.1f}" for v in rms]),
    ]  # fmt: skip
    return '<div class="comparison">' + "".join(
        f'<p class="head">{escape(head)}</p>{tiles(list(row), texts)}' for head, row, texts in rows
    ) + "</div>"  # fmt: skip


def record_table(record: Mapping[str, Any]) -> str:
    """Returns a picture's record as a table."""
    return table(["setting", "value"], [(name, value) for name, value in flat(record).items()])


def run_page(view: RunView) -> str:
    """Returns how a training is: findings, curves and settings."""
    body = findings(view.findings) if view.findings else ""
    body += charts(view.panels) if view.panels else ""
    body += table([], view.summary) if view.summary else ""
    return f'<div class="run">{body}</div>'


def stored_image(file: Path) -> np.ndarray:
    """Returns a picture that undiffuse wrote as uint8 [H, W, C]; of more channels or values, a preview."""
    if file.suffix.lower() in (".tiff", ".tif", ".npy"):
        return read_file(file)
    with open_picture(file) as picture:
        return from_picture(picture)


def preview_picture(file: Path) -> Image.Image:
    """Returns a preview of a run, read whole, since a run may replace the file."""
    with Image.open(file) as picture:
        picture.load()
        return picture.copy()
