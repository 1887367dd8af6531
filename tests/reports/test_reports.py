"""Reports: what is on the page, that it needs nothing from elsewhere, and that a browser draws its charts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.report_material import write_evaluation, write_run, write_sweep
from undiffuse.cli import main
from undiffuse.pictures import Panel
from undiffuse.reports import kind_of, write_report
from undiffuse.reports.charts import MOST, chart
from undiffuse.reports.page import Section, findings, render, table
from undiffuse.util.errors import ConfigError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a run and samples."""
    return write_run(tmp_path_factory.mktemp("reports"))


def charts_of(page: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def test_a_run_is_shown_with_curves_previews_and_how_to_repeat_it(place: Path) -> None:
    page = write_report([place / "run"], place / "run.html").read_text()
    charts = {data["title"]: data for data in charts_of(page)}
    assert {"mean squared error", "mean squared error by noise level", "gradient norm", "learning rate"} <= set(charts)
    records = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    train_records = [r for r in records if r["kind"] == "train"]
    assert charts["mean squared error"]["lines"][0]["points"] == [[r["images"], r["mse"]] for r in train_records]
    assert charts["learning rate"]["lines"][0]["points"] == [[r["images"], r["lr"]] for r in train_records]
    previews = re.findall(r"after ([\d,]+) images</figcaption>", page)
    assert previews == ["8", "16", "24"] * 2  # averaged weights, then raw
    assert "undiffuse rerun" in page
    assert "train.batch" in page


def test_samples_are_shown_by_class_beside_their_nearest_training_images(place: Path) -> None:
    page = write_report([place / "samples"], place / "samples.html", training=str(place / "photos")).read_text()
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["left", "right", "top", "Nearest training images"]
    assert page.count("<img") == 6 + 6


def test_copies_differ_by_nothing_from_their_training_images(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "samples", tmp_path / "samples")
    copied = sorted((place / "photos" / "left").glob("*.png"))[0]
    victim = sorted((tmp_path / "samples").glob("*left*.png"))[0]
    with Image.open(copied) as picture:
        picture.convert(Image.open(victim).mode).save(victim)
    page = write_report([tmp_path / "samples"], tmp_path / "r.html", training=str(place / "photos")).read_text()
    assert f"{victim.name}: differs by 0.0 of 255" in page
    assert page.count("differs by 0.0 of 255 (root mean square)</figcaption>") == 1


def test_an_evaluation_is_shown_with_errors_and_settings(tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "one.json")
    page = unescape(write_report([evaluation], tmp_path / "r.html").read_text())
    assert "<td>KID</td>" in page
    assert "± 0.02" in page
    assert "1 unreadable image was left out" in page


def test_a_sweep_is_drawn_from_its_evaluations(tmp_path: Path) -> None:
    page = write_report([write_sweep(tmp_path / "sweep")], tmp_path / "r.html").read_text()
    [data] = [data for data in charts_of(page) if data["title"] == "KID"]
    assert data["lines"][0]["points"] == [[0.0, 0.5], [2.0, 0.4]]
    assert data["lines"][0]["errors"] == [0.02, 0.02]
    assert page.count("<details><summary>guidance") == 2


def test_pages_load_nothing_from_elsewhere(place: Path) -> None:
    page = write_report([place / "run", place / "samples"], place / "both.html").read_text()
    without = page.replace("http://www.w3.org/2000/svg", "")  # a name of the drawing language, not an address
    assert not re.search(r"https?://", without)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert '<a href="#part-2">Samples samples</a>' in page


def test_what_comes_from_outside_is_escaped() -> None:
    bad = "<script>alert(1)</script>"
    page = render(bad, [Section(title=bad, body=table([bad], [[bad]]) + findings([("problem", bad, bad)]))], bad)
    assert bad not in page
    assert "<script>" not in chart(Panel(lines={bad: [(0, 1)]}, title="</script>")).replace("<script type", "")
    assert charts_of(chart(Panel(lines={bad: [(0, 1)]}, title="</script>")))[0]["lines"][0]["name"] == bad


def test_charts_hold_what_can_be_drawn() -> None:
    nan = float("nan")
    [data] = charts_of(chart(Panel(lines={"a": [(0, 1.0), (1, nan), (2, 3.0)]}, hlines={"floor": 0.5, "none": nan})))
    assert data["lines"][0]["points"] == [[0, 1.0], [1, None], [2, 3.0]]
    assert [level["name"] for level in data["hlines"]] == ["floor"]
    [data] = charts_of(
        chart(Panel(lines={"a": [(k, float(k)) for k in range(3 * MOST)]}, errors={"a": [1.0] * 3 * MOST}))
    )
    assert len(data["lines"][0]["points"]) == MOST
    assert "errors" not in data["lines"][0]  # which would belong to other points


def test_what_is_there_is_not_overwritten(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="already exists"):
        write_report([place / "run"], out)
    assert out.read_text() == "mine"
    write_report([place / "run"], out, overwrite=True)
    assert out.read_text().startswith("<!doctype html>")


def test_kinds_are_told_by_content(place: Path, tmp_path: Path) -> None:
    assert kind_of(place / "run") == "run"
    assert kind_of(place / "samples") == "samples"
    (tmp_path / "x.json").write_text("{}")
    for path in (place / "photos", tmp_path / "x.json"):
        with pytest.raises(ConfigError, match="is neither a training run, an evaluation, a sweep nor"):
            kind_of(path)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        kind_of(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="^paths: name at least one"):
        write_report([], tmp_path / "r.html")


def test_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", str(place / "run"), "--out", str(tmp_path / "r.html"), "--title", "My run"]
    assert main(words) == 0
    assert f"{tmp_path / 'r.html'} written (" in capsys.readouterr().out
    assert "<title>My run</title>" in (tmp_path / "r.html").read_text()
    assert main(words) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["report", str(place / "photos"), "--out", str(tmp_path / "q.html")]) == 2
    assert "is neither a training run" in capsys.readouterr().err
    assert not (tmp_path / "q.html").exists()


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_draws_the_charts(place: Path, tmp_path: Path) -> None:
    page = write_report([place / "run"], tmp_path / "r.html")
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    count = len(charts_of(page.read_text()))
    assert count >= 5
    assert drawn.count("<svg") == count
    assert drawn.count("<circle") >= 5 * 6  # the records of every curve
    assert "NaN" not in re.sub(r"<script.*?</script>", "", drawn, flags=re.DOTALL)
    assert len(re.findall(r"<figure hidden", drawn)) == 4  # of three previews of two kinds, the last is shown


def test_a_small_array_is_a_picture() -> None:
    from undiffuse.reports.page import figure

    assert 'width="16"' in figure(np.zeros((8, 8, 1), np.uint8), "black", scale=2)
