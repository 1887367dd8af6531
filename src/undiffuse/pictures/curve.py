"""Line plots for losses and accuracies, drawn with Pillow: what a training run shows, not a plotting library."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence

from PIL import Image, ImageDraw

from undiffuse.pictures.axis import Axis, log_tick_label, tick_labels
from undiffuse.pictures.text import INK, MUTED, Typeface

__all__ = ["COLOURS", "draw_curve", "smoothed"]

Points = Sequence[tuple[float, float]]
Colour = tuple[int, int, int]
_Point = tuple[float, float] | None  # None: a point that cannot be drawn, a gap in the line
# Okabe and Ito's colours, told apart by colour-blind readers too, ordered for contrast on white; then the same, darker.
_BRIGHT: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (90, 90, 90),
)
COLOURS: tuple[Colour, ...] = (*_BRIGHT, *((r // 2, g // 2, b // 2) for r, g, b in _BRIGHT))
_WHITE: Colour = (255, 255, 255)
_GRID: Colour = (232, 232, 230)
_AXIS: Colour = (150, 150, 150)
_MARGIN, _SMALL = 28, 13
_FINE = 3  # lines are drawn this many times larger and averaged down: smooth edges


def draw_curve(
    series: Mapping[str, Points],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
    smooth: float = 0.0,
    errors: Mapping[str, Sequence[float]] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    levels: Mapping[str, float] | None = None,
    size: tuple[int, int] = (960, 540),
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Named series of points (x, y), each drawn as a line in the order given -> an RGB picture of ``size``.

    ``smooth`` in [0, 1) draws an exponential average with that memory over a pale line of the values themselves; series
    that are short for it are smoothed less (over a twentieth of their points at most), so that they do not lag.
    ``errors`` holds for some series the half length of a bar at each point, ``notes`` a word beside each point, and
    ``levels`` named values drawn as dashed lines across the plot.
    Points that cannot be drawn (NaN, infinite, zero or less on a logarithmic axis) interrupt the line.
    Raises ValueError when no point is left, ``smooth`` is out of range, or ``size`` is below 240 x 160.
    """
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth={smooth} is outside [0, 1): 0 shows the values as they are, 0.9 averages about ten.")
    if size[0] < 240 or size[1] < 160:
        raise ValueError(f"size={size} leaves no room for a plot: at least 240 x 160 pixels.")
    lines = {name: [_drawable(x, y, log_x, log_y) for x, y in points] for name, points in series.items()}
    shown = [point for points in lines.values() for point in points if point]
    bars = _bars(series, lines, errors or {}, log_y)
    if not shown:
        kinds = "finite" + (" and positive (logarithmic axis)" if log_x or log_y else "")
        raise ValueError(f"nothing to draw: none of the {len(lines)} series has a point that is {kinds}.")

    face = Typeface(font)
    page = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(page)
    top = _MARGIN
    if title:
        face.draw(draw, (_MARGIN, top + 12), face.shorten(title, 20, size[0] - 2 * _MARGIN), 20)
        top += 34
    levels = dict(levels or {})
    top = _legend(draw, face, list(lines), top, size[0], list(levels)) if any(lines) or levels else top
    if y_label:  # level with the text, not turned: easier to read
        face.draw(draw, (_MARGIN, top + 8), face.shorten(y_label, _SMALL, size[0] - 2 * _MARGIN), _SMALL, MUTED)
        top += 24
    top += 6
    bottom = size[1] - _MARGIN - 24 - (22 if x_label else 0)

    rows, columns = max(2, (bottom - top) // 45), max(2, size[0] // 120)
    heights = (
        [y for _, y in shown] + [y for ends in bars.values() for _, *pair in ends for y in pair] + list(levels.values())
    )
    low, high = Axis.around(heights, log=log_y, wanted=rows)
    y_axis = Axis(low=low, high=high, first=bottom, last=top, log=log_y)
    y_texts = _texts(y_axis, rows)
    left = _MARGIN + math.ceil(max((face.width(text, _SMALL) for _, text in y_texts), default=0.0)) + 10
    right = size[0] - _MARGIN - 8
    low, high = Axis.around([x for x, _ in shown], log=log_x, tight=True)
    x_axis = Axis(low=low, high=high, first=left, last=right, log=log_x)

    for value, text in y_texts:
        y = round(y_axis.position(value))
        draw.line((left, y, right, y), fill=_GRID)
        face.draw(draw, (left - 10, y), text, _SMALL, MUTED, "rm")
    edge = -math.inf
    for value, text in _texts(x_axis, columns):
        x, half = round(x_axis.position(value)), face.width(text, _SMALL) / 2
        draw.line((x, bottom, x, bottom + 5), fill=_AXIS)
        if x - half > edge + 8:  # never over its neighbour
            face.draw(draw, (x, bottom + 16), text, _SMALL, MUTED, "mm")
            edge = x + half
    draw.line((left, bottom, right, bottom), fill=_AXIS)
    if x_label:
        text = face.shorten(x_label, _SMALL, right - left)
        face.draw(draw, ((left + right) / 2, bottom + 38), text, _SMALL, MUTED, "mm")

    def paths(points: Sequence[_Point]) -> list[list[tuple[float, float]]]:
        return [[(x_axis.position(x), y_axis.position(y)) for x, y in run] for run in _runs(points)]

    for k, value in enumerate(levels.values()):
        _dashes(draw, left, right, round(y_axis.position(value)), COLOURS[(len(lines) + k) % len(COLOURS)])
    averages = [_averaged(points, smooth) for points in lines.values()]
    for k, (points, average) in enumerate(zip(lines.values(), averages, strict=True)):
        if average is not points:  # all pale lines lie under all averages
            _lines(page, paths(points), _pale(COLOURS[k % len(COLOURS)]), 1.2)
    for k, average in enumerate(averages):
        _lines(page, paths(average), COLOURS[k % len(COLOURS)], 2.2)
    for k, (name, points) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        for where, lowest, highest in bars.get(name, ()):
            foot, head, middle = y_axis.position(lowest), y_axis.position(highest), x_axis.position(where)
            _lines(page, [[(middle, foot), (middle, head)]], colour, 1.4)
            _lines(page, [[(middle - 4, y), (middle + 4, y)] for y in (foot, head)], colour, 1.4)
        for point, text in zip(points, (notes or {}).get(name, ()), strict=False):
            if point is not None:
                dot = x_axis.position(point[0]), y_axis.position(point[1])
                _lines(page, [[dot]], colour, 2.6)
                beyond = dot[0] + 9 + face.width(text, _SMALL) > size[0] - 4
                place, anchor = (dot[0] - 9, "rm") if beyond else (dot[0] + 9, "lm")
                face.draw(draw, (place, dot[1] - 12), text, _SMALL, INK, anchor)
    return page


def smoothed(values: Sequence[float], memory: float) -> list[float]:
    """Exponential average m_k = memory m_{k-1} + (1 - memory) v_k, over 1 - memory^k: it starts at the first value."""
    out: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = memory * total + (1 - memory) * value, memory * weight + (1 - memory)
        out.append(total / weight)
    return out


def _averaged(points: list[_Point], smooth: float) -> list[_Point]:
    """The points with smoothed values, with the same gaps; ``points`` itself when there is nothing to smooth."""
    known = [point for point in points if point]
    memory = min(smooth, 1 - 20 / len(known)) if known else 0.0
    if memory <= 0:
        return points
    means = iter(smoothed([y for _, y in known], memory))
    return [point and (point[0], next(means)) for point in points]


def _drawable(x: float, y: float, log_x: bool, log_y: bool) -> _Point:
    x, y = float(x), float(y)
    fine = math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    return (x, y) if fine else None


def _bars(
    series: Mapping[str, Points],
    lines: Mapping[str, Sequence[_Point]],
    errors: Mapping[str, Sequence[float]],
    log_y: bool,
) -> dict[str, list[tuple[float, float, float]]]:
    """(x, low, high) of every error bar that can be drawn; ValueError unless there is one for each point."""
    out = {}
    for name, halves in errors.items():
        points = lines.get(name)
        if points is None or len(halves) != len(series[name]):
            raise ValueError(
                f"errors of {name!r}: {len(halves)} bars were given for {len(series.get(name, ()))} points."
            )
        ends = [
            (point[0], point[1] - e, point[1] + e) for point, e in zip(points, halves, strict=True) if point and e > 0
        ]
        out[name] = [end for end in ends if end[1] > 0 or not log_y]
    return out


def _dashes(draw: ImageDraw.ImageDraw, left: float, right: float, y: int, colour: Colour) -> None:
    for x in range(round(left), round(right), 14):
        draw.line((x, y, min(x + 8, right), y), fill=colour, width=2)


def _runs(points: Sequence[_Point]) -> Iterator[list[tuple[float, float]]]:
    """The unbroken pieces of a line."""
    run: list[tuple[float, float]] = []
    for point in points:
        if point is not None:
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _texts(axis: Axis, wanted: int) -> list[tuple[float, str]]:
    ticks = axis.ticks(wanted)
    labels = [log_tick_label(t) for t in ticks] if axis.log else tick_labels(ticks)
    return list(zip(ticks, labels, strict=True))


def _pale(colour: Colour) -> Colour:
    r, g, b = (round(c + (255 - c) * 0.68) for c in colour)
    return r, g, b


def _lines(page: Image.Image, paths: Sequence[Sequence[tuple[float, float]]], colour: Colour, width: float) -> None:
    """Smooth-edged lines; a path of one point is a dot. Only the part of the page they cross is drawn enlarged."""
    if not paths:
        return
    pad = math.ceil(width) + 3
    xs, ys = [x for path in paths for x, _ in path], [y for path in paths for _, y in path]
    left, top = math.floor(min(xs)) - pad, math.floor(min(ys)) - pad
    area = (math.ceil(max(xs)) + pad - left, math.ceil(max(ys)) + pad - top)
    mask = Image.new("L", (area[0] * _FINE, area[1] * _FINE), 0)
    draw = ImageDraw.Draw(mask)
    thick = max(1, round(width * _FINE))
    for path in paths:
        # Pixel centres lie at half-integers of the enlarged mask.
        fine = [((x + 0.5 - left) * _FINE, (y + 0.5 - top) * _FINE) for x, y in path]
        if len(fine) > 1:
            draw.line(fine, fill=255, width=thick, joint="curve" if len(fine) < 5000 else None)
        radius = thick / 2 if len(fine) > 1 else thick * 1.5
        for x, y in (fine[0], fine[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    page.paste(colour, (left, top), mask.resize(area, Image.Resampling.BOX))


def _legend(
    draw: ImageDraw.ImageDraw,
    face: Typeface,
    names: Sequence[str],
    top: int,
    page_width: int,
    dashed: Sequence[str] = (),
) -> int:
    """A row (or more) of coloured strokes with names; returns where the next thing may begin."""
    x, y = _MARGIN, top
    for k, name in enumerate([*names, *dashed]):
        text = face.shorten(name, 14, page_width - 2 * _MARGIN - 30)
        needed = 30 + math.ceil(face.width(text, 14))
        if x > _MARGIN and x + needed > page_width - _MARGIN:
            x, y = _MARGIN, y + 22
        colour = COLOURS[k % len(COLOURS)]
        if k < len(names):
            draw.rounded_rectangle((x, y + 7, x + 20, y + 10), radius=2, fill=colour)
        else:
            for stroke in (x, x + 8, x + 16):
                draw.rectangle((stroke, y + 7, stroke + 4, y + 9), fill=colour)
        face.draw(draw, (x + 28, y + 9), text, 14, INK)
        x += needed + 22
    return y + 30
