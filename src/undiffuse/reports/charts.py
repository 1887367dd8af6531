"""Charts for the page: a `pictures.Panel` as data that the page's script draws and zooms, and a slider of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from undiffuse.pictures import Panel
from undiffuse.reports.page import figure

__all__ = ["chart", "charts", "slider"]

COLOURS = 7  # of the page's styles
MOST = 4000
"""Points of a line that are drawn; of a longer one, evenly spaced points."""


def chart(panel: Panel) -> str:
    """Returns a panel as a chart; the script of the page draws it."""
    lines = []
    for k, (name, points) in enumerate(panel.lines.items()):
        step = max(1, math.ceil(len(points) / MOST))
        entry: dict[str, Any] = {
            "name": name,
            "colour": k % COLOURS,
            "points": [[x, _plain(y)] for x, y in points if math.isfinite(x)][::step],
        }
        for key, values in (("errors", panel.errors.get(name)), ("notes", panel.notes.get(name))):
            if values is not None and step == 1 and len(entry["points"]) == len(points):
                entry[key] = [_plain(value) if isinstance(value, float) else value for value in values]
        lines.append(entry)
    levels = [
        {"name": name, "colour": (len(lines) + k) % COLOURS, "value": value}
        for k, (name, value) in enumerate(panel.hlines.items())
        if math.isfinite(value)
    ]
    data = {
        "title": panel.title, "x_label": panel.x_label, "y_label": panel.y_label, "log_x": panel.log_x,
        "log_y": panel.log_y, "smooth": panel.smooth, "lines": lines, "hlines": levels,
    }  # fmt: skip
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="chart"><script type="application/json">{text}</script>'
        "<noscript>Charts need JavaScript.</noscript></div>"
    )


def charts(panels: Sequence[Panel]) -> str:
    """Returns several charts side by side where the window is wide, with a line that says how to zoom."""
    if not panels:
        return ""
    hint = "Drag across a chart to zoom, or use + and - and the arrow keys; a double click or Escape shows all of it."
    return f'<p class="readout">{hint}</p><div class="charts">{"".join(map(chart, panels))}</div>'


def slider(label: str, frames: Sequence[tuple[Image.Image, str]]) -> str:
    """Returns pictures of which one is shown at a time, chosen by a slider; printing shows the last.

    Args:
        label: What the slider moves through, plain text.
        frames: Pictures with their captions.
    """
    shown = "".join(figure(picture, caption) for picture, caption in frames)
    hidden = "" if len(frames) > 1 else " hidden"
    control = f'<label{hidden}>{escape(label)} <input type="range" min="0" step="1"></label>'
    return f'<div class="slider">{control}{shown}</div>'


def _plain(value: float) -> float | None:
    """A number as JSON has it: None for what is not finite."""
    return float(value) if math.isfinite(value) else None
