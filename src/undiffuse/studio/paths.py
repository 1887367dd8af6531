"""The path of a job from noise to images, kept step by step and drawn for any of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from undiffuse.pictures import Panel
from undiffuse.reports.charts import charts
from undiffuse.reports.page import figure
from undiffuse.util.text import count_of

__all__ = ["Part", "Path", "enlargement"]

_SMALL = 96
"""Pixels of the longer side to which small images are enlarged, in whole steps."""


def enlargement(image: np.ndarray, side: int = _SMALL) -> int:
    """Returns how many pixels wide a pixel of an image [H, W, C] is drawn, so that the image has about `side`."""
    return max(1, side // max(image.shape[:2]))


@dataclass
class Part:
    """One run from noise to images.

    Attributes:
        begin: The values of its "begin" event: "names" of the classes, and "wanted", the classes of the images.
        steps: The values of its "step" events, in order.
    """

    begin: Mapping[str, Any] = field(default_factory=dict)
    steps: list[Mapping[str, Any]] = field(default_factory=list)

    def name_of(self, label: int) -> str:
        """Returns the name of a class."""
        names = self.begin.get("names") or []
        return names[label] if label < len(names) else f"class {label}"

    def html(self, step: Mapping[str, Any], title: str = "") -> str:
        """Returns one step: noisy images above denoised ones, and what the classifier says of the noisy ones.

        Args:
            step: One of `steps`.
            title: Begins the line above the images, plain text.
        """
        logsnr = step["logsnr"]
        level = "clean" if math.isinf(logsnr) else f"log-SNR {logsnr:.2f}"
        head = f"Step {step['index'] + 1} of {step['total']}, {level}, {count_of(step['nfe'], 'network call')}"
        opinion = step.get("opinion")
        columns = []
        for k, (noisy, clean) in enumerate(zip(step["x"], step["x0"], strict=True)):
            judged = "" if opinion is None else self._judged(opinion[k])
            pair = figure(noisy, "", enlargement(noisy)) + figure(clean, "", enlargement(clean))
            columns.append(f'<div class="column">{pair}{judged}</div>')
        last = "" if opinion is None else '<span class="judged">classifier</span>'
        rows = f'<div class="rows"><span>noisy x<sub>t</sub></span><span>denoised</span>{last}</div>'
        return (
            f'<div class="path"><p class="head">{escape(f"{title}: {head}" if title else head)}</p>'
            f'<div class="columns">{rows}{"".join(columns)}</div></div>'
        )

    def _judged(self, shares: np.ndarray) -> str:
        best = int(np.argmax(shares))
        name, share = self.name_of(best), 100 * float(shares[best])
        return (
            f'<div class="opinion" title="{escape(name)}: {share:.0f}%">'
            f'<span class="share" style="width:{share:.0f}%"></span>'
            f"<span>{escape(name)} {share:.0f}%</span></div>"
        )

    def opinion_panel(self, title: str = "") -> Panel | None:
        """Returns the classifier's opinion of each image over the steps; None if there is no classifier."""
        if not self.steps or self.steps[-1].get("opinion") is None:
            return None
        last, wanted = self.steps[-1]["opinion"], self.begin.get("wanted") or []
        lines: dict[str, list[tuple[float, float]]] = {}
        for k in range(len(last)):
            target = wanted[k] if k < len(wanted) else int(np.argmax(last[k]))
            lines[f"{k + 1}: {self.name_of(target)}"] = [
                (float(step["index"] + 1), float(step["opinion"][k][target])) for step in self.steps
            ]
        what = "The classifier's probability of the class" if wanted else "The classifier's final choice"
        return Panel(lines=lines, title=f"{title}: {what}" if title else what, x_label="step", y_label="probability")


@dataclass
class Path:
    """What was watched of a job: one part, or one for each of the settings that are compared.

    Attributes:
        parts: The parts by their titles; "" for a job with one.
    """

    parts: dict[str, Part] = field(default_factory=dict)

    def take(self, kind: str, values: Mapping[str, Any]) -> None:
        """Takes an event of the job: "begin" or "step"; others say nothing of the path."""
        title = str(values.get("part") or "")
        if kind == "begin":
            self.parts[title] = Part(begin=values)
        elif kind == "step":
            self.parts.setdefault(title, Part()).steps.append(values)

    def __len__(self) -> int:
        """The steps of the longest part."""
        return max((len(part.steps) for part in self.parts.values()), default=0)

    @property
    def count(self) -> int:
        """The steps of all parts."""
        return sum(len(part.steps) for part in self.parts.values())

    def html(self, place: int | None = None) -> str:
        """Returns the images at a step.

        Args:
            place: The step, from 1 to `len(self)`; of shorter parts the one that is as far along. None is the last.
        """
        shown, most = [], len(self)
        for title, part in self.parts.items():
            if not part.steps:
                continue
            share = 1.0 if place is None or most < 2 else (min(most, max(1, place)) - 1) / (most - 1)
            shown.append(part.html(part.steps[round(share * (len(part.steps) - 1))], title))
        return "".join(shown)

    def charts(self) -> str:
        """Returns charts of the log-SNR and of the classifier's opinion over the steps."""
        lines = {title: _levels(part.steps) for title, part in self.parts.items() if part.steps}
        names = {title or "log-SNR": points for title, points in lines.items()}
        panels = [Panel(lines=names, title="log-SNR after each step", x_label="step", y_label="log-SNR")]
        opinions = [part.opinion_panel(title) for title, part in self.parts.items()]
        panels += [panel for panel in opinions if panel is not None]
        return charts([panel for panel in panels if any(panel.lines.values())])


def _levels(steps: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(float(step["index"] + 1), float(step["logsnr"])) for step in steps if math.isfinite(step["logsnr"])]
