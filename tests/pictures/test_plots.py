"""Plots: every label is readable, the same data give the same pixels, and nothing breaks without matplotlib."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from undiffuse.pictures import Panel, PlottingUnavailable, draw_plot, plots
from undiffuse.pictures.plots import can_plot, smoothed

CALLS = (5, 10, 20, 50)
FRONTIER = Panel(
    lines={f"solver {k}": [(c, (40 + k) / c) for c in CALLS] for k in range(9)},
    errors={f"solver {k}": [0.5, 0.4, 0.3, 9.0] for k in range(9)},
    notes={"solver 0": ["a solver 5", "a solver 10", "a solver 20", "a solver 50"]},
    hlines={"a long run (250 calls)": 0.9}, title="model", x_label="calls", y_label="FD", log_x=True, log_y=True,
)  # fmt: skip
CURVE = Panel(
    lines={"loss": [(5000 * k, 0.5 * k**-0.3) for k in range(1, 300)], "validation": [(10**6, 0.1)]},
    title="a run", x_label="images seen", y_label="loss", log_y=True, smooth=0.9,
)  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    from matplotlib.figure import Figure

    made: list[Any] = []
    create = Figure.__init__
    monkeypatch.setattr(Figure, "__init__", lambda self, *a, **k: (made.append(self), create(self, *a, **k))[1])
    return made


def inked(picture: Any, colour: str) -> int:
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return int((np.abs(np.asarray(picture).astype(int) - wanted).max(axis=2) < 12).sum())


@pytest.mark.parametrize("panels", [FRONTIER, CURVE, [FRONTIER, CURVE, CURVE]], ids=["frontier", "curve", "three"])
def test_no_text_covers_another_or_leaves_the_picture(panels: Any, figures: list[Any]) -> None:
    from matplotlib.text import Text

    draw_plot(panels, "All of it")
    (figure,) = figures
    renderer = figure.canvas.get_renderer()
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    boxes = {t: t.get_window_extent(renderer) for t in texts}
    shown = [t for t in texts if boxes[t].width > 1]
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    ticks = {label: sorted(axis.get_view_interval()) for axis in axes for label in axis.get_ticklabels()}
    # Ticks beyond the axes exist but are not drawn. One coordinate of a tick's position is its value, the other 0.
    hidden = {t for t, (low, high) in ticks.items() if not low <= sum(t.get_position()) <= high}
    shown = [t for t in shown if t not in hidden]
    assert {"All of it", "FD" if panels is not CURVE else "loss"} <= {t.get_text() for t in shown}
    for k, one in enumerate(shown):
        box = boxes[one]
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, one
        for other in shown[k + 1 :]:
            a, b = box.padded(-1), boxes[other].padded(-1)
            assert not a.overlaps(b), (one.get_text(), other.get_text())


def test_axes_have_their_names_and_title(figures: list[Any]) -> None:
    draw_plot(FRONTIER)
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("calls", "FD", "model")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {t.get_text() for t in axes.texts} == set(FRONTIER.notes["solver 0"])
    legend = {t.get_text() for t in figures[0].subfigs[0].legends[0].get_texts()}
    assert legend == {*FRONTIER.lines, *FRONTIER.hlines}


def test_the_same_data_give_the_same_pixels_whatever_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    plain = draw_plot([FRONTIER, CURVE], "x").tobytes()
    before = matplotlib.rcParams["lines.linewidth"]
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert draw_plot([FRONTIER, CURVE], "x").tobytes() == plain
    assert matplotlib.rcParams["lines.linewidth"] == 9.0 != before  # and they stay the user's


def test_lines_errors_and_levels_are_drawn() -> None:
    lines = {"a": [(0, 1.0), (1, 2.0), (2, 4.0)]}
    plain = draw_plot(Panel(lines=lines))
    assert inked(plain, plots.COLOURS[0]) > 200
    assert inked(draw_plot(Panel(lines=lines, hlines={"real": 3.0})), plots.COLOURS[1]) > 100
    assert draw_plot(Panel(lines=lines, errors={"a": [0.5, 0.0, 0.5]})).tobytes() != plain.tobytes()
    uneven = draw_plot(Panel(lines=lines, errors={"a": [(0.5, 0.5), (0.0, 0.0), (0.5, 0.5)]}))
    assert uneven.tobytes() == draw_plot(Panel(lines=lines, errors={"a": [0.5, 0.0, 0.5]})).tobytes()
    lower = draw_plot(Panel(lines=lines, errors={"a": [(0.5, 0.0), (0.0, 0.0), (0.5, 0.0)]}))
    assert lower.tobytes() not in (uneven.tobytes(), plain.tobytes())
    single = draw_plot(Panel(lines={"a": [(0, 1.0)]}))
    assert inked(single, plots.COLOURS[0]) > 20


def test_points_that_cannot_be_drawn_interrupt_the_line(figures: list[Any]) -> None:
    points = [(0, 1.0), (1, float("nan")), (2, 2.0), (3, -1.0), (4, float("inf")), (5, 3.0)]
    draw_plot(Panel(lines={"a": points}, log_y=True))
    drawn = figures[0].axes[0].lines[0].get_ydata()
    assert [bool(np.isfinite(y)) for y in drawn] == [True, False, True, False, False, True]


def test_a_short_line_is_not_averaged(figures: list[Any]) -> None:
    points = [(float(k), float(k % 2)) for k in range(20)]
    draw_plot(Panel(lines={"v": points}, smooth=0.95))
    assert len(figures[0].axes[0].lines) == 1
    draw_plot(Panel(lines={"v": [(float(k), float(k % 2)) for k in range(200)]}, smooth=0.95))
    pale, average = figures[1].axes[0].lines
    assert np.ptp(average.get_ydata()[50:]) < 0.3 < np.ptp(pale.get_ydata())


def test_an_average_starts_at_the_first_value() -> None:
    assert smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([1.0, 0.0], 0.5) == pytest.approx([1.0, 1 / 3])


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        ({"lines": {"a": []}}, "nothing to draw"),
        ({"lines": {"a": [(0, -1.0)]}, "log_y": True}, "positive on a logarithmic axis"),
        ({"lines": {"a": [(0, 1)]}, "smooth": 1.0}, "smooth: got 1.0"),
        ({"lines": {"a": [(0, 1)]}, "errors": {"a": [1.0, 2.0]}}, "errors: 'a' has 2 values for 1 points"),
        ({"lines": {"a": [(0, 1)]}, "notes": {"b": ["x"]}}, "notes: 'b' has 1 values for 0 points"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(panel: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_plot(Panel(**panel))


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not can_plot()
    with pytest.raises(PlottingUnavailable, match=r'pip install "undiffuse\[plot\]"') as caught:
        draw_plot(CURVE)
    assert "\n" not in str(caught.value)


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, undiffuse.pictures as p; assert p.plots.can_plot(); assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
