"""The studio in Chromium: what each tab does, by clicks.

Needs the extra `studio`, Playwright and a Chromium of the system. UNDIFFUSE_SHOTS=FOLDER keeps pictures of the windows.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.studio_browser import CHROMIUM, TIMEOUT, Window, newest
from undiffuse.pictures import read_record, read_samples

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=TIMEOUT)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system (apt install chromium)"),
]


def test_sampling_is_watched_scrubbed_and_copied(window: Window, folder: Path, tmp_path: Path) -> None:
    window.fill("#form-guidance", "2")
    window.fill("#form-steps", "12")
    window.click("#sample-go")
    window.page.wait_for_selector("#sample-live img")  # while it runs
    assert window.page.locator("#sample-state progress").count() == 1
    window.wait("#sample-state", "Done in")
    live = window.page.locator("#sample-live")
    playwright.expect(live).to_contain_text("Step 12 of 12, clean, 12 network calls")
    assert live.locator("img").count() == 6
    assert live.locator(".opinion").count() == 3
    window.page.wait_for_selector("#sample-charts svg")
    assert window.page.locator("#sample-charts svg").count() == 2
    slider = window.page.locator("#sample-scrub input[type=range]")
    slider.focus()
    slider.press("ArrowLeft")
    playwright.expect(live).to_contain_text("Step 11 of 12, log-SNR")
    slider.press("Home")
    playwright.expect(live).to_contain_text("Step 1 of 12, log-SNR -")
    assert window.page.locator("#sample-gallery .thumbnail-item img").count() == 3
    window.unfold("Copy as command")
    words = shlex.split(window.code("#sample-command"))
    window.shot("sample")
    done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = read_samples(newest(folder, "sample")).images
    np.testing.assert_array_equal(read_samples(tmp_path / "samples").images, page)
    code = window.code("#sample-python").replace("'samples'", "'of-python'")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_samples(tmp_path / "of-python").images, page)


def test_a_stop_acts_at_once(window: Window) -> None:
    window.fill("#form-steps", "1000")
    window.fill("#form-count", "64")
    window.click("#sample-go")
    window.page.wait_for_function("document.querySelector('#sample-state').innerText.includes('%')")
    window.page.keyboard.press("Escape")
    window.page.set_default_timeout(20_000)
    assert window.wait("#sample-state", "Stopped") == "Stopped."
    window.fill("#form-steps", "2")
    window.fill("#form-count", "1")
    window.page.set_default_timeout(180_000)
    window.run("sample")


def test_two_settings_are_compared(browser: Any, window: Window, folder: Path) -> None:
    window.tab("Compare")
    window.click("#compare-same")
    playwright.expect(window.page.locator("#b-steps textarea, #b-steps input").first).to_have_value("4")
    window.fill("#b-guidance", "4")
    window.fill("#b-steps", "2")
    window.run("compare")
    live = window.page.locator("#compare-live")
    playwright.expect(live).to_contain_text("A: Step 4 of 4, clean, 4 network calls")
    playwright.expect(live).to_contain_text("B: Step 2 of 2, clean, 2 network calls")
    window.page.locator("#compare-scrub input[type=range]").press("Home")
    playwright.expect(live).to_contain_text("A: Step 1 of 4, log-SNR -")
    playwright.expect(live).to_contain_text("B: Step 1 of 2, log-SNR 10")
    window.page.wait_for_selector("#compare-charts svg")
    assert window.page.locator("#compare-charts svg").count() == 3  # log-SNR of both, and an opinion of each
    page = window.page.locator("#compare-result")
    assert page.locator("img").count() == 9
    shown = [float(text) for text in page.locator("figcaption").all_inner_texts() if text.strip()]
    place = newest(folder, "compare")
    a, b = (read_samples(place / side).images.astype(float) for side in "ab")
    np.testing.assert_allclose(shown, np.sqrt(((a - b) ** 2).mean(axis=(1, 2, 3))), atol=0.06)
    assert max(shown) > 1
    window.unfold("Copy as command")
    window.shot("compare")
    link = window.page.locator("#compare-link input, #compare-link textarea").input_value()
    again = Window(browser, link.partition("?")[0], f"?{link.partition('?')[2]}")
    playwright.expect(again.page.locator("#b-guidance input, #b-guidance textarea").first).to_have_value("4")
    playwright.expect(again.page.locator("#b-steps input, #b-steps textarea").first).to_have_value("2")
    playwright.expect(again.page.locator("#form-steps input, #form-steps textarea").first).to_have_value("4")
    again.page.wait_for_selector("#compare-go", state="visible")
    again.close()


def test_seeds_and_pictures_are_interpolated(window: Window, folder: Path) -> None:
    window.page.locator("#form-classes input").fill("Bag")
    window.page.keyboard.press("Enter")
    window.tab("Interpolate")
    window.fill("#interpolate-frames", "3")
    window.run("interpolate")
    window.page.wait_for_selector("#interpolate-grid img")
    window.page.wait_for_selector("#interpolate-movie img")
    record = read_record(newest(folder, "interpolate") / "interpolation.png")
    assert (record["frames"], record["ends"], record["classes"]) == (3, ["seed 0", "seed 1"], [8])
    window.shot("interpolate")
    files = sorted((folder / "photos").rglob("*.png"))[:2]
    window.unfold("Between two pictures")
    for k, file in enumerate(files, 1):
        window.page.set_input_files(f"#interpolate-picture-{k} input[type=file]", str(file))
        window.page.wait_for_selector(f"#interpolate-picture-{k} .file-preview")
    window.run("interpolate")
    assert len(read_record(newest(folder, "interpolate") / "interpolation.png")["ends"]) == 2


def test_a_picture_is_inpainted_restored_varied_and_translated(window: Window, folder: Path) -> None:
    window.run("sample")
    window.tab("Edit")
    window.fill("#edit-number", "3")
    window.click("#edit-take")
    window.wait("#edit-state", "A picture of 32x32")
    canvas = window.page.locator("#edit-canvas canvas").first
    canvas.scroll_into_view_if_needed()
    window.page.wait_for_timeout(1500)  # the editor lays the picture out
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    window.page.mouse.move(x - 50, y)
    window.page.mouse.down()
    window.page.mouse.move(x + 50, y + 30, steps=12)
    window.page.mouse.up()
    window.page.wait_for_timeout(1000)
    window.run("inpaint")
    before = np.asarray(Image.open(sorted(newest(folder, "sample").glob("*-000002.png"))[0]))
    place = newest(folder, "inpaint")
    after = np.asarray(Image.open(next(p for p in place.glob("*.png") if p.name != "grid.png")))
    masks = sorted((folder / "studio" / "inputs").glob("*.png"), key=lambda path: path.stat().st_mtime)
    mask = np.asarray(Image.open(masks[-1]))
    assert 10 < (mask > 0).sum() < 500
    assert (after[mask == 0] == before[mask == 0]).all()
    assert (after[mask > 0] != before[mask > 0]).any()
    live = window.page.locator("#edit-live")
    playwright.expect(live).to_contain_text("Step 20 of 20, clean")  # four steps, five times
    window.page.locator("#edit-scrub input[type=range]").press("Home")
    playwright.expect(live).to_contain_text("Step 1 of 20, log-SNR -")
    window.shot("inpaint")
    window.fill("#edit-hole", "4,4,8,8")
    window.run("inpaint")
    assert read_record(newest(folder, "inpaint") / "grid.png")["hole"] == [4, 4, 8, 8]
    window.tab("Restore")
    window.run("restore")
    assert "The results differ from the whole images by" in window.text("#edit-state")
    window.tab("Vary")
    window.fill("#edit-variants", "2")
    window.run("vary")
    assert window.page.locator("#edit-gallery .thumbnail-item img").count() == 2
    window.tab("Translate")
    window.page.locator("#edit-to input").click()
    window.page.get_by_role("option", name="Coat", exact=True).click()
    window.run("translate")
    assert read_record(newest(folder, "translate") / "grid.png")["to"] == 4
    window.shot("translate")


def test_the_history_gives_records_and_settings_back(window: Window, folder: Path, tmp_path: Path) -> None:
    window.fill("#form-seed", "77")
    window.fill("#form-guidance", "1.25")
    window.run("sample")
    window.fill("#form-seed", "1")
    window.fill("#form-guidance", "0")
    window.tab("History")
    window.page.locator("#history-gallery .thumbnail-item").nth(1).click()
    window.wait("#history-state", "made by undiffuse sample")
    table = window.page.locator("#history-record")
    playwright.expect(table).to_contain_text("guidance")
    assert "77" in table.inner_text()
    words = shlex.split(window.code("#history-command"))
    window.shot("history")
    done = subprocess.run([sys.executable, "-m", *words, "--out", "again.png"], cwd=tmp_path, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "identical to the original" in done.stdout
    link = window.page.locator("#history-link input, #history-link textarea").input_value()
    assert "seed=77" in link
    window.click("#history-use")
    seed = window.page.locator("#form-seed input")
    playwright.expect(seed).to_have_value("77")
    playwright.expect(window.page.locator("#form-guidance input, #form-guidance textarea")).to_have_value("1.25")
    window.tab("History")
    file = sorted(newest(folder, "sample").glob("*-000000.png"))[0]
    window.page.set_input_files("#history-drop input[type=file]", str(file))
    window.wait("#history-state", "made by undiffuse sample")
    assert "--from-record" in window.code("#history-command")


def test_a_link_restores_settings_and_a_wrong_one_says_why(browser: Any, url: str) -> None:
    query = "?class=Bag&class=Coat&count=2&seed=5&steps=3&solver=ddim&guidance=1.5&guidance_interval=-1,3"
    window = Window(browser, url, query)
    playwright.expect(window.page.locator("#form-seed input")).to_have_value("5")
    window.run("sample")
    captions = window.page.locator("#sample-gallery .thumbnail-item").all_inner_texts()
    assert [text.strip() for text in captions] == ["Bag", "Coat"]
    window.unfold("Copy as command")
    link = window.page.locator("#sample-link input, #sample-link textarea").input_value()
    assert sorted(link.partition("?")[2].replace("%2C", ",").split("&")) == sorted(query[1:].split("&"))
    window.close()
    wrong = Window(browser, url, "?count=nothing")
    assert "whole number" in wrong.wait("#form-model-state", "Count")
    wrong.close()


def test_a_map_is_drawn_for_a_model_that_takes_one(browser: Any, url: str, folder: Path) -> None:
    window = Window(browser, url, "?model=map.safetensors&count=2&steps=2")
    assert "takes a map" in window.wait("#sample-picture-about", "takes a map")
    canvas = window.page.locator("#sample-canvas canvas").first
    canvas.scroll_into_view_if_needed()
    window.page.wait_for_timeout(1500)
    window.page.locator("#sample-canvas button[aria-label*='rush']").first.click()
    window.page.locator("#sample-canvas button[aria-label='Color']").click()
    window.shot("brush")
    window.page.locator("#sample-canvas button.color").nth(1).click()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    window.page.mouse.move(x - 60, y)
    window.page.mouse.down()
    window.page.mouse.move(x + 60, y, steps=12)
    window.page.mouse.up()
    window.page.wait_for_timeout(1000)
    window.click("#sample-use-drawing")
    window.wait("#sample-state", "The drawing is the condition now")
    window.run("sample")
    window.shot("map")
    file = sorted(newest(folder, "sample").glob("*.png"))[0]
    record = read_record(file)
    drawn = np.asarray(Image.open(record["condition_data"]))
    assert set(np.unique(drawn)) == {0, 7}
    assert drawn.shape == (8, 8)
    other = folder / "other-map.png"
    Image.fromarray(np.repeat([[0], [7]], 4, axis=0).repeat(8, axis=1).astype(np.uint8)).save(other)
    window.page.set_input_files("#sample-picture input[type=file]", str(other))
    window.wait("#sample-state", "The picture is the condition now")
    window.run("sample")
    drawn = np.asarray(Image.open(read_record(sorted(newest(folder, "sample").glob("*.png"))[0])["condition_data"]))
    assert (drawn[:4] == 0).all()
    assert (drawn[4:] == 7).all()
    window.close()


def test_a_picture_is_enlarged_by_a_model_that_does_so(browser: Any, url: str, folder: Path, tmp_path: Path) -> None:
    window = Window(browser, url, "?model=upsampler.safetensors&count=2&steps=2")
    window.wait("#sample-picture-about", "enlarges pictures of 4x4 to 8x8")
    assert not window.page.locator("#sample-canvas").is_visible()
    window.click("#sample-go")
    assert "The picture to enlarge is missing" in window.wait("#sample-state", "missing")
    large = tmp_path / "large.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(large)
    window.page.set_input_files("#sample-picture input[type=file]", str(large))
    assert "8x8 was cropped and made 4x4" in window.wait("#sample-state", "made 4x4")
    window.run("sample")
    window.unfold("Copy as command")
    window.shot("enlarge")
    words = shlex.split(window.code("#sample-command"))
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = read_samples(newest(folder, "sample")).images
    assert page.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(read_samples(folder / "samples").images, page)
    window.close()


def test_a_picture_tells_its_class(window: Window, folder: Path) -> None:
    window.run("sample")
    window.unfold("Class from a picture")
    file = sorted(newest(folder, "sample").glob("*-000001.png"))[0]
    window.page.set_input_files("#form-example input[type=file]", str(file))
    said = window.wait("#form-example-state", "fashion-mnist-32-judge")
    assert "%" in said
    chosen = window.page.locator("#form-classes .token").all_inner_texts()
    assert [text.strip() for text in chosen] == [said.split(" ", 1)[0]]
