"""Reports in Chromium, opened as files: zooming by mouse and keyboard, sliders, light and dark, narrow, printed.

Needs Playwright and a Chromium of the system. UNDIFFUSE_SHOTS=FOLDER keeps pictures of the windows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.report_material import write_evaluation, write_run, write_sweep
from support.studio_browser import CHROMIUM, chromium
from undiffuse.reports import write_report

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system (apt install chromium)"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One report of a run, samples, an evaluation and a sweep."""
    place = write_run(tmp_path_factory.mktemp("reports"))
    parts = [place / "run", place / "samples", write_evaluation(place / "one.json"), write_sweep(place / "sweep")]
    return write_report(parts, place / "report.html", training=str(place / "photos"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report in a window; nothing but the file may be loaded, and no script may fail."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme="light")
    made, outside, errors = context.new_page(), [], []
    context.set_default_timeout(180_000)
    made.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else outside.append(r.url))
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.goto(report.as_uri())
    yield made
    context.close()
    assert not outside, outside
    assert not errors, errors


def shot(page: Any, name: str) -> None:
    folder = os.environ.get("UNDIFFUSE_SHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"report-{name}.png"), full_page=True)


def ticks(chart: Any) -> list[str]:
    """The numbers along the horizontal axis of a chart."""
    return chart.locator("svg text[text-anchor=middle]").all_text_contents()[:-1]


def test_charts_are_zoomed_by_mouse_and_keyboard(page: Any) -> None:
    chart = page.locator(".chart").first
    drawing, back = chart.locator("svg"), chart.locator("button.zoom")
    assert not back.is_visible()
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    assert back.is_visible()
    dragged = ticks(chart)
    drawing.press("Escape")
    assert not back.is_visible()
    strip = "document.querySelector('.chart svg').innerHTML.replace(/clip-[a-z0-9]+/g, '')"
    before = page.evaluate(strip)
    drawing.press("+")
    assert ticks(chart) != dragged
    nearer = page.evaluate(strip)
    drawing.press("ArrowRight")
    assert page.evaluate(strip) != nearer
    drawing.press("ArrowLeft")
    drawing.press("-")
    drawing.press("-")  # farther than all there is: the whole range
    assert not back.is_visible()
    assert page.evaluate(strip) == before


def test_lines_are_hidden_and_previews_looked_through(page: Any) -> None:
    chart = page.locator(".chart").filter(has=page.locator(".legend button[aria-pressed]").nth(1)).first
    button = chart.locator(".legend button[aria-pressed]").first
    lines = chart.locator("svg path").count()
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert chart.locator("svg path").count() < lines
    slider = page.locator(".slider").first
    shown = slider.locator("figure:visible figcaption")
    assert shown.all_inner_texts() == ["after 24 images"]
    slider.locator("input").press("ArrowLeft")
    assert shown.all_inner_texts() == ["after 16 images"]
    slider.locator("input").press("Home")
    assert shown.all_inner_texts() == ["after 8 images"]


def test_light_and_dark(page: Any, browser: Any, report: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    shot(page, "light")
    page.locator("#theme").click()
    dark = page.evaluate(paper)
    assert light == "rgb(255, 255, 255)"
    assert dark != light
    shot(page, "dark")
    context = browser.new_context(color_scheme="dark")
    other = context.new_page()
    other.goto(report.as_uri())
    assert other.evaluate(paper) == dark
    context.close()


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_off(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, f"{width}")


def test_it_prints(page: Any, tmp_path: Path) -> None:
    """White paper, no controls, and everything that is folded away."""
    page.locator("#theme").click()
    file = tmp_path / "report.pdf"
    page.pdf(path=str(file), format="A4")
    assert file.read_bytes().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible()
    assert not page.locator(".slider input").first.is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    folder = os.environ.get("UNDIFFUSE_SHOTS")
    if folder:
        (Path(folder) / "report.pdf").write_bytes(file.read_bytes())
