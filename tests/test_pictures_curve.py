"""Curves: numbers land where the axes say, ticks are round, gaps stay gaps, smoothing does what its formula says."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from undiffuse.pictures import draw_curve
from undiffuse.pictures.axis import Axis, log_tick_label, nice_step, tick_labels
from undiffuse.pictures.curve import COLOURS, smoothed


def inked(picture, colour: tuple[int, int, int], tolerance: int = 0) -> np.ndarray:
    """Mask [H, W] of the pixels of one colour, without the legend's stroke in the upper left."""
    mask = np.abs(np.asarray(picture).astype(int) - colour).max(-1) <= tolerance
    mask[:90, :110] = False
    return mask


def heights(picture, colour: tuple[int, int, int]) -> dict[int, float]:
    """Column -> mean row of the line of one colour."""
    ys, xs = np.nonzero(inked(picture, colour))
    return {int(x): float(ys[xs == x].mean()) for x in np.unique(xs)}


def test_line_rises_where_the_numbers_rise_and_spans_the_axes() -> None:
    picture = draw_curve({"up": [(x, x**2) for x in range(50)]}, "Title", "x", "y")
    assert picture.size == (960, 540) and picture.mode == "RGB"
    line = heights(picture, COLOURS[0])
    rows = [line[x] for x in sorted(line)]
    assert len(rows) > 700 and all(b <= a + 0.51 for a, b in itertools.pairwise(rows))
    assert rows[0] - rows[-1] > 250


def test_log_axis_turns_an_exponential_into_a_straight_line() -> None:
    points = [(x, 10.0 ** (-x / 20)) for x in range(100)]
    line = heights(draw_curve({"loss": points}, log_y=True), COLOURS[0])
    xs = np.array(sorted(line))
    rows = np.array([line[x] for x in xs])
    fit = np.polyval(np.polyfit(xs, rows, 1), xs)
    assert np.abs(rows - fit).max() < 1.5 and rows[-1] > rows[0]
    bent = heights(draw_curve({"loss": points}), COLOURS[0])
    xs = np.array(sorted(bent))
    rows = np.array([bent[x] for x in xs])
    assert np.abs(rows - np.polyval(np.polyfit(xs, rows, 1), xs)).max() > 20


def test_axis_maps_ends_to_ends_and_keeps_order() -> None:
    linear = Axis(low=-2, high=6, first=400, last=80)
    assert linear.position(-2) == 400 and linear.position(6) == 80 and linear.position(2) == 240
    log = Axis(low=1e-3, high=10, first=0, last=400, log=True)
    assert log.position(1e-3) == pytest.approx(0) and log.position(0.1) == pytest.approx(200)
    values = np.geomspace(1e-3, 10, 50)
    assert np.all(np.diff([log.position(v) for v in values]) > 0)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.07), (-3.2, 8.1), (0, 257_000), (1e-7, 3e-7), (99.5, 100.5)])
def test_ticks_are_round_within_the_range_and_told_apart(low: float, high: float) -> None:
    ticks = Axis(low=low, high=high, first=0, last=1).ticks(8)
    assert 3 <= len(ticks) <= 9 and low - 1e-9 * high <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 1e-6
    labels = tick_labels(ticks)
    assert len(set(labels)) == len(ticks) and all(len(label) <= 8 for label in labels)


def test_tick_texts() -> None:
    assert tick_labels([0, 50_000, 100_000]) == ["0", "50k", "100k"]
    assert tick_labels([0, 0.5, 1.0]) == ["0", "0.5", "1.0"]
    assert tick_labels([0, 500_000, 1_000_000, 1_500_000]) == ["0", "0.5M", "1.0M", "1.5M"]
    assert tick_labels([0, 0.1 + 0.2]) == ["0", "0.3"]
    assert [log_tick_label(t) for t in (1e-5, 0.02, 1.0, 200.0, 1e5)] == ["1e-5", "0.02", "1", "200", "100k"]
    assert nice_step(1, 5) == pytest.approx(0.2) and nice_step(11, 5) == pytest.approx(2.5)


@pytest.mark.parametrize("span", [(0.03, 1.0), (1e-6, 1.0), (0.5, 0.6), (3.1, 3.4)])
def test_log_ticks_exist_for_wide_and_narrow_ranges(span: tuple[float, float]) -> None:
    ticks = Axis(low=span[0], high=span[1], first=0, last=1, log=True).ticks(6)
    assert 2 <= len(ticks) <= 12 and ticks == sorted(ticks)
    assert all(span[0] * 0.999 <= t <= span[1] * 1.001 for t in ticks)


def test_gaps_stay_gaps() -> None:
    points = [(x, float("nan") if 40 <= x <= 60 else 1.0 + x / 100) for x in range(101)]
    line = heights(draw_curve({"gap": points}, size=(600, 300)), COLOURS[0])
    xs = np.array(sorted(line))
    assert np.diff(xs).max() > 80  # a fifth of the axis is empty
    assert np.diff(xs)[np.diff(xs) > 1].size == 1  # and nothing else


def test_every_series_has_its_colour_and_its_name() -> None:
    series = {f"series {k}": [(0, k), (1, k + 0.5)] for k in range(4)}
    picture = draw_curve(series, "four")
    for k in range(4):
        assert inked(picture, COLOURS[k]).sum() > 500
    unnamed = np.asarray(draw_curve({"": [(0, 0), (1, 1)]}))
    assert np.all(unnamed[:20] == 255)


def test_single_and_constant_values_are_visible() -> None:
    for points in ([(3, 7.0)], [(0, 0.0), (1, 0.0)], [(0, 5.0), (9, 5.0)]):
        assert inked(draw_curve({"": points}), COLOURS[0]).sum() > 10
        assert (
            inked(draw_curve({"": [(x + 1, y + 1) for x, y in points]}, log_y=True, log_x=True), COLOURS[0]).sum() > 10
        )


def test_smoothing_formula_and_picture() -> None:
    assert smoothed([4.0, 4.0, 4.0], 0.9) == pytest.approx([4.0, 4.0, 4.0])
    assert smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])
    rng = np.random.default_rng(0)
    points = [(x, 1 + rng.normal() * 0.3) for x in range(1000)]
    rough = np.ptp(list(heights(draw_curve({"l": points}), COLOURS[0]).values()))
    picture = draw_curve({"l": points}, smooth=0.97)
    assert np.ptp(list(heights(picture, COLOURS[0]).values())) < rough / 2
    pale = tuple(round(c + (255 - c) * 0.68) for c in COLOURS[0])
    assert inked(picture, pale).sum() > 1000  # the values themselves are still there


def test_short_series_are_not_smoothed_into_a_lag() -> None:
    points = [(x, 10.0 - x) for x in range(11)]
    assert draw_curve({"v": points}, smooth=0.95).tobytes() == draw_curve({"v": points}).tobytes()


def test_long_runs_are_drawn_in_reasonable_time() -> None:
    points = [(x, math.exp(-x / 20_000) + 0.01 * (x % 7)) for x in range(100_000)]
    start = time.perf_counter()
    draw_curve({"loss": points}, log_y=True, smooth=0.99)
    assert time.perf_counter() - start < 30


def test_bad_input_is_explained() -> None:
    for series in ({}, {"a": []}, {"a": [(0, float("nan"))]}):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_curve(series)
    with pytest.raises(ValueError, match="positive"):
        draw_curve({"a": [(0, -1.0)]}, log_y=True)
    with pytest.raises(ValueError, match="smooth=1"):
        draw_curve({"a": [(0, 1)]}, smooth=1)
    with pytest.raises(ValueError, match="at least 240"):
        draw_curve({"a": [(0, 1)]}, size=(100, 100))


def test_error_bars_levels_and_notes_are_drawn_and_checked() -> None:
    """Bars widen the axis, a level shows across the whole plot, and each needs its point."""
    points = {"a": [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)]}
    plain = np.asarray(draw_curve(points))
    bars = np.asarray(draw_curve(points, errors={"a": [0.5, 0.0, 0.5]}))
    level = np.asarray(draw_curve(points, levels={"real": 3.0}))
    noted = np.asarray(draw_curve(points, notes={"a": ["x", "", "y"]}))
    for other in (bars, level, noted):
        assert not np.array_equal(plain, other)
    blue, orange = (np.array(colour) for colour in COLOURS[:2])
    across = (level == orange).all(axis=2).sum(axis=1)
    assert across.max() > level.shape[1] // 3  # dashes over more than a third of the width
    columns = (bars == blue).all(axis=2).sum(axis=0)
    assert (columns > 50).sum() >= 2  # two bars that stand, beside the line that lies
    with pytest.raises(ValueError, match="2 bars were given for 3 points"):
        draw_curve(points, errors={"a": [0.5, 0.5]})
    with pytest.raises(ValueError, match="0 points"):
        draw_curve(points, errors={"b": [0.5]})
