"""The studio in Chromium as people use it: bad uploads, a killed process, two users, keyboard, narrow windows, runs.

Needs the extra `studio`, Playwright and a Chromium of the system. UNDIFFUSE_SHOTS=FOLDER keeps pictures of the windows.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.studio_browser import CHROMIUM, TIMEOUT, Window, number
from undiffuse.pictures import save_png

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=TIMEOUT)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system (apt install chromium)"),
]


def test_bad_input_is_explained(window: Window, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    save_png(tmp_path / "whole.png", noise)
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    expected = {
        "text.png": "cannot be read as a picture", "cut.png": "truncated", "huge.png": "too large",
        "empty.png": "cannot be read as a picture",
    }  # fmt: skip
    window.unfold("Class from a picture")
    places = {
        "#form-example": ("#form-example-state", ("Sample",)), "#edit-file": ("#edit-state", ("Edit",)),
        "#history-drop": ("#history-state", ("History",)),
    }  # fmt: skip
    for place, (state, tabs) in places.items():
        window.tab(*tabs)
        fine = {"#form-example": "%", "#edit-file": "A picture of 64x64", "#history-drop": "no undiffuse record"}[place]
        for name, text in {**expected, "whole.png": fine}.items():
            clear = window.page.locator(f"{place} button[aria-label*='lear'], {place} button[aria-label*='emove']")
            if clear.count():
                clear.first.click()
                window.page.wait_for_selector(f"{place} input[type=file]", state="attached")
            window.page.set_input_files(f"{place} input[type=file]", str(tmp_path / name))
            said = window.wait(state, text)
            assert name in said or name == "whole.png"
            assert str(tmp_path) not in said
    window.shot("bad")
    window.tab("Make", "Interpolate")
    window.unfold("Between two pictures")
    window.page.set_input_files("#interpolate-picture-1 input[type=file]", str(tmp_path / "text.png"))
    window.page.wait_for_selector("#interpolate-picture-1 .file-preview")
    window.click("#interpolate-go")
    window.wait("#interpolate-state", "text.png cannot be read as a picture")
    window.tab("Sample")
    window.fill("#form-steps", "nonsense")
    window.click("#sample-go")
    assert "nonsense" in window.wait("#sample-state", "nonsense")
    window.fill("#form-steps", "2")
    window.fill("#form-cfg", "3")
    window.click("#sample-go")
    said = window.wait("#sample-state", "label dropout")
    assert "Classifier-free guidance scale" in said


def model_processes(url: str) -> list[int]:
    """The model processes of the server, children of the process that listens."""
    listing = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    port = url.rstrip("/").rpartition(":")[2]
    servers = {row[0] for row in rows if f"undiffuse studio --port {port}" in row[2]}
    return [int(row[0]) for row in rows if row[1] in servers and "spawn_main" in row[2]]


def test_a_killed_model_process_is_reported_and_replaced(window: Window, url: str) -> None:
    window.fill("#form-steps", "1000")
    window.click("#sample-go")
    window.page.wait_for_function("document.querySelector('#sample-state').innerText.includes('%')")
    pids = model_processes(url)
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    said = window.wait("#sample-state", "The model process ended")
    assert "killed by signal 9" in said
    window.shot("killed")
    window.fill("#form-steps", "2")
    window.run("sample")
    assert model_processes(url) != pids


def test_two_users_do_not_disturb_each_other(browser: Any, url: str) -> None:
    first, second = Window(browser, url, "?steps=60&count=8&seed=1"), Window(browser, url, "?steps=3&count=2&seed=2")
    first.click("#sample-go")
    first.page.wait_for_function("document.querySelector('#sample-state').innerText.includes('%')")
    second.click("#sample-go")
    second.wait("#sample-state", "Waiting")
    second.click("#sample-stop")
    assert second.wait("#sample-state", "Stopped") == "Stopped."
    second.click("#sample-go")
    first.wait("#sample-state", "Done in")
    second.wait("#sample-state", "Done in")
    assert first.page.locator("#sample-gallery .thumbnail-item img").count() == 8
    assert second.page.locator("#sample-gallery .thumbnail-item img").count() == 2
    playwright.expect(second.page.locator("#sample-live")).to_contain_text("Step 3 of 3")
    playwright.expect(first.page.locator("#sample-live")).to_contain_text("Step 60 of 60")
    second.tab("History")
    second.page.wait_for_selector("#history-gallery .thumbnail-item")
    assert second.page.locator("#history-gallery .thumbnail-item").count() == 2  # its own alone
    first.close()
    second.close()


def test_it_is_used_by_keyboard_alone(browser: Any, url: str) -> None:
    window = Window(browser, url)
    keys = window.page.keyboard
    seen: list[str] = []
    for _ in range(30):
        keys.press("Tab")
        seen.append(window.page.evaluate("(document.activeElement.closest('[id]') || document.body).id"))
    assert "form-model" in " ".join(seen)
    window.page.locator("#form-steps textarea, #form-steps input").first.focus()
    keys.press("Control+a")
    keys.type("2")
    keys.press("Control+Enter")
    window.wait("#sample-state", "Done in")
    window.page.get_by_role("tab", name="Sample", exact=True).focus()
    keys.press("Tab")
    keys.press("Enter")  # on the tab "Compare" or, behind the tabs, on a button
    outline = window.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    window.close()


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_off(browser: Any, url: str, width: int) -> None:
    window = Window(browser, url, "?steps=2&count=5", width, 844)
    window.run("sample")
    window.page.wait_for_selector("#sample-charts svg")
    places = {
        "Sample": ["#sample-gallery", "#sample-live", "#sample-charts", "#form"], "Compare": ["#compare-settings"],
        "Interpolate": ["#interpolate-frames"], "Edit": ["#edit-canvas", "#edit-file"],
    }  # fmt: skip
    rooms = {"History": ["#history-gallery", "#history-drop"], "Train": ["#train-data", "#train-run"],
             "Data": ["#data-path"]}  # fmt: skip
    for name, parts in {**places, **rooms}.items():
        window.tab(name)
        for part in parts:
            box = window.page.locator(part).bounding_box()
            assert box is not None, part
            assert box["x"] >= 0, part
            assert box["x"] + box["width"] <= width, part
        assert window.page.evaluate("document.documentElement.scrollWidth") <= width
        window.shot(f"{name.lower()}-{width}")
    window.close()


def test_a_data_set_is_looked_through(window: Window) -> None:
    window.tab("Data")
    window.fill("#data-path", "photos")
    window.click("#data-go")
    said = window.wait("#data-state", "images 1 to")
    assert number(said.split("images")[1]) == 1
    assert window.page.locator("#data-images img").count() == 18
    window.page.wait_for_selector("#data-findings .findings")
    window.page.locator("#data-class input").click()
    window.page.get_by_role("option", name="left (6)").click()
    window.wait("#data-state", "of 6,")
    assert window.page.locator("#data-images img").count() == 6
    window.click("#data-inspect")
    window.wait("#data-state", "Inspected")
    assert "undiffuse train photos" in window.code("#data-inspected")
    window.shot("data")
    window.fill("#data-path", "no/such/folder")
    window.click("#data-go")
    assert "no/such/folder" in window.wait("#data-state", "no/such/folder")


def test_a_run_is_started_watched_stopped_and_resumed(window: Window, folder: Path) -> None:
    window.tab("Train")
    window.click("#train-start")
    assert "the data set is missing" in window.wait("#train-state", "missing").lower()
    window.fill("#train-data", "photos")
    window.fill("#train-out", "runs/one")
    window.fill("#train-images", "4000000")
    window.fill("#train-more", "--recipe tiny --size 8 --width 8 --batch 4 --device cpu --set train.log_every=200 "
                "--set train.preview_every=2000 --set train.preview_steps=2 --set train.preview_count=3")  # fmt: skip
    window.click("#train-start")
    said = window.wait("#train-state", "images/s", "failed")
    assert "left" in said, said
    window.page.wait_for_selector("#train-preview img")
    page = window.page.locator("#train-page")
    playwright.expect(page.locator(".chart svg").nth(1)).to_be_visible()
    assert page.locator(".chart").count() == page.locator(".chart svg").count()
    assert "mean squared error by noise level" in page.inner_text()
    window.shot("train")
    window.click("#train-stop")
    said = window.wait("#train-state", "stopped,")
    seen = number(said)
    window.click("#train-resume")
    window.wait("#train-state", "running,")
    window.page.wait_for_function(
        f"parseInt(document.querySelector('#train-state .state').innerText.replace(/[^0-9 ]/g, '').trim()) > {seen}"
    )
    window.click("#train-stop")
    window.wait("#train-state", "stopped,")
    assert (folder / "runs" / "one" / "metrics.jsonl").is_file()
