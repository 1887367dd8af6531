"""Line plots with matplotlib: loss curves, frontiers, sweeps, bits by step.

matplotlib is optional (`pip install "undiffuse[plot]"`) and is imported only when something is drawn. Plots do not
depend on the user's matplotlib settings, and the same data always give the same pixels.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Panel", "PlottingUnavailable", "can_plot", "draw_plot", "smoothed"]

Points = Sequence[tuple[float, float]]
DPI = 120
PANEL = (8.0, 4.6)  # inches
# Okabe and Ito's colours, which colour-blind readers can tell apart, in the order of their contrast on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5a5a5a")
_STEPS = [1, 2, 2.5, 5, 10]  # of ticks
_drawing = threading.Lock()
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.edgecolor": "#999999", "axes.labelcolor": "#333333", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e4", "grid.linewidth": 0.8,
    "xtick.color": "#555555", "ytick.color": "#555555", "lines.linewidth": 1.6, "legend.frameon": False,
    "figure.facecolor": "white", "axes.facecolor": "white", "path.simplify": False,
}  # fmt: skip


class PlottingUnavailable(ImportError):
    """matplotlib is not installed, so nothing can be drawn."""

    def __init__(self) -> None:
        super().__init__('plots need matplotlib: pip install "undiffuse[plot]"')


def can_plot() -> bool:
    """Whether matplotlib is installed; does not import it."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Describes one pair of axes with its lines.

    Args:
        lines: Points (x, y) of each line, by the line's name. Points that cannot be drawn (NaN, infinite, or not
            positive on a logarithmic axis) interrupt the line.
        title: Text above the axes.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        log_x: Makes the horizontal axis logarithmic.
        log_y: Makes the vertical axis logarithmic.
        errors: Half length of the error bar of each point, or its lengths below and above, by the line's name.
        notes: Text beside each point, by the line's name.
        hlines: Named values that are drawn as dashed horizontal lines.
        smooth: Memory in [0, 1) of an exponential average, which is drawn over a pale line of the values. A short line
            is averaged over a twentieth of its points at most.
    """

    lines: Mapping[str, Points]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    errors: Mapping[str, Sequence[float | tuple[float, float]]] = field(default_factory=dict)
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hlines: Mapping[str, float] = field(default_factory=dict)
    smooth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smooth < 1:
            raise ValueError(f"smooth: got {self.smooth}, expected 0 (no average) or more, below 1")
        for what, given in (("errors", self.errors), ("notes", self.notes)):
            for name, values in given.items():
                if len(values) != len(self.lines.get(name, ())):
                    points = len(self.lines.get(name, ()))
                    raise ValueError(f"{what}: {name!r} has {len(values)} values for {points} points")

    @property
    def named(self) -> list[str]:
        """Names of the legend's entries; empty where the title or the axis says the same."""
        names = [name for name in (*self.lines, *self.hlines) if name]
        return [] if len(names) == 1 and names[0] in (self.title, self.y_label) else names

    def drawable(self, name: str) -> np.ndarray:
        """Returns the points of a line as float64 [N, 2], NaN where a point cannot be drawn."""
        points = np.array([(float(x), float(y)) for x, y in self.lines[name]], dtype=np.float64).reshape(-1, 2)
        bad = ~np.isfinite(points).all(axis=1)
        bad |= ((points[:, 0] <= 0) & self.log_x) | ((points[:, 1] <= 0) & self.log_y)
        points[bad] = np.nan
        return points


def draw_plot(panels: Panel | Sequence[Panel], title: str = "", columns: int = 2) -> Image.Image:
    """Draws panels into one picture. Threads wait for each other, as matplotlib's settings are global.

    Args:
        panels: One panel, or several that are laid out in rows.
        title: Text above all panels.
        columns: Panels in a row.

    Returns:
        An RGB picture.

    Raises:
        PlottingUnavailable: matplotlib is not installed.
        ValueError: A panel has no point that can be drawn.
    """
    panels = [panels] if isinstance(panels, Panel) else list(panels)
    for panel in panels:
        if not any(np.isfinite(panel.drawable(name)).any() for name in panel.lines):
            raise ValueError(f"nothing to draw: no point of {panel.title or 'the plot'} is finite (and positive on a "
                             "logarithmic axis)")  # fmt: skip
    try:
        import matplotlib
        import matplotlib.style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlottingUnavailable from error
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    with _drawing, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        width, height = (PANEL[0], PANEL[1]) if columns == 1 else (0.8 * PANEL[0], 0.9 * PANEL[1])
        height += 0.2 * max(len(panel.named) // _legend_columns(panel.named, width) for panel in panels)
        size = (width * columns, height * rows)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12.5)
        cells = figure.subfigures(rows, columns, squeeze=False).ravel()
        notes = [_fill(cell, panel, width) for cell, panel in zip(cells, panels, strict=False)]
        canvas.draw()
        if any(notes):
            for axes, texts in filter(None, notes):
                _place(axes, texts, canvas.get_renderer())
            figure.set_layout_engine("none")  # type: ignore[call-overload]  # the axes stay where the notes fit
            canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def smoothed(values: Sequence[float], memory: float) -> list[float]:
    """Averages values exponentially: m_k = memory m_{k-1} + (1 - memory) v_k, over 1 - memory^k to start at v_1."""
    out: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = memory * total + (1 - memory) * value, memory * weight + (1 - memory)
        out.append(total / weight)
    return out


def _fill(cell: Any, panel: Panel, width: float) -> tuple[Any, list[tuple[float, float, str]]] | None:
    """Draws a panel into a subfigure; returns its axes and the notes that are still to be placed."""
    axes = cell.subplots()
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    handles = {}
    for k, name in enumerate(panel.lines):
        points, colour = panel.drawable(name), COLOURS[k % len(COLOURS)]
        style = "-" if k < len(COLOURS) else (0, (4, 1))
        marker = "o" if name in panel.errors or name in panel.notes or np.isfinite(points[:, 0]).sum() == 1 else None
        average = _averaged(points, panel.smooth)
        if average is not None:
            axes.plot(*points.T, color=colour, alpha=0.3, linewidth=0.9)
            points = average
        (line,) = axes.plot(*points.T, color=colour, linestyle=style, marker=marker, markersize=3.5)
        if name in panel.errors:
            pairs = [np.broadcast_to(np.asarray(error, dtype=np.float64), 2) for error in panel.errors[name]]
            bars = np.nan_to_num(np.stack(pairs, axis=1), posinf=0.0)  # [below and above, points]
            if panel.log_y:  # a bar that reaches zero or less has no end on a logarithmic axis
                bars[0] = np.minimum(bars[0], 0.999 * np.nan_to_num(points[:, 1], nan=1.0))
            axes.errorbar(*points.T, yerr=bars, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2.5)
        handles[name] = line
    for k, (name, value) in enumerate(panel.hlines.items()):
        colour = COLOURS[(len(panel.lines) + k) % len(COLOURS)]
        handles[name] = axes.axhline(value, color=colour, linestyle="--", linewidth=1.3)
    for axis, log in ((axes.xaxis, panel.log_x), (axes.yaxis, panel.log_y)):
        _ticks(axis, log)
    if named := panel.named:
        columns = min(_legend_columns(named, width), len(named))
        cell.legend([handles[name] for name in named], named, loc="outside lower left", ncols=columns, fontsize=9)
    notes = [
        (float(x), float(y), text)
        for name, texts in panel.notes.items()
        for (x, y), text in zip(panel.drawable(name), texts, strict=True)
        if text and math.isfinite(x)
    ]
    return (axes, notes) if notes else None


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Returns how many entries of a legend fit side by side into `width` inches."""
    return max(1, int(width * 72 / (34 + 5.4 * max(map(len, names), default=1))))


def _averaged(points: np.ndarray, smooth: float) -> np.ndarray | None:
    """Returns the points with averaged values and the same gaps; None if there is nothing to average."""
    known = np.isfinite(points[:, 0])
    memory = min(smooth, 1 - 20 / known.sum()) if known.any() else 0.0
    if memory <= 0:
        return None
    out = points.copy()
    out[known, 1] = smoothed(points[known, 1].tolist(), memory)
    return out


def _ticks(axis: Any, log: bool) -> None:
    """Sets ticks whose labels are plain numbers, few enough not to touch."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    def text(value: float, _: object = None) -> str:
        size = abs(value)
        for least, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
            if size >= least:
                return f"{value / (1e3 if unit == 'k' else least):.6g}{unit}"
        return f"{value:,.6g}" if size >= 1e-4 or not size else f"{value:.6g}"

    if log:
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(high / low)
        if decades < 1:
            axis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        else:
            # Ticks a factor of ten or more apart where there are many decades.
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,), numticks=9))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    axis.set_major_formatter(FuncFormatter(text))


def _place(axes: Any, notes: Sequence[tuple[float, float, str]], renderer: Any) -> None:
    """Puts each note beside its point where it covers no other note or point; leaves it out if no place is free."""
    dots = [axes.transData.transform((x, y)) for x, y, _ in notes]
    taken: list[Any] = []
    for (x, y, text), dot in zip(notes, dots, strict=True):
        for away in (6, 14, 26, 40):
            for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1.6), (0, -1.6)):
                side, level = {1: "left", -1: "right", 0: "center"}[right], "bottom" if up > 0 else "top"
                note = axes.annotate(
                    text, (x, y), (away * right, 0.8 * away * up), textcoords="offset points", ha=side, va=level,
                    fontsize=8.5, color="#333333",
                )  # fmt: skip
                box = note.get_window_extent(renderer)
                inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
                free = inside and box.y1 <= axes.bbox.y1 and not any(box.overlaps(other) for other in taken)
                if free and not any(box.contains(*other) for other in dots if other is not dot):
                    taken.append(box)
                    break
                note.remove()
            else:
                continue
            break
