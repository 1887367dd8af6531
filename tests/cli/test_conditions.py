"""`--condition` of train, inspect, sample and evaluate, from a folder of pictures with a table and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import call, one_thread
from undiffuse.models import load_diffusion
from undiffuse.pictures import read_record

TRAIN = ("--recipe", "tiny", "--size", 8, "--width", 8, "--batch", 4, "--images", 8, "--device", "cpu")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    Path("maps").mkdir()
    rows = ["file,kind,age"]
    for k in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{k}.jpg")
        Image.fromarray((pixels[..., 0] // 100).astype(np.uint8)).save(f"maps/{k}.png")
        rows.append(f"{k}.jpg,{'ab'[k % 2]},{20 + k}")
    Path("photos/labels.csv").write_text("\n".join(rows) + "\n")
    with one_thread():
        yield


def test_from_training_to_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    named = ("--condition", "labels:labels.csv:kind", "--condition", "numbers:age", "--condition", "map:maps")
    assert call("train", "photos", *named, *TRAIN, "--out", "run") == 0
    out = capsys.readouterr().out
    assert "conditioned on numbers age (20 to 31); a map (3 classes)" in out.replace("\n            ", " ")
    assert "--condition age=25.5 --condition map:maps" in out
    assert load_diffusion("run").conditions.image is not None
    assert call("inspect", "run/model.safetensors") == 0
    assert "conditions  numbers age (20 to 31); a map (3 classes)" in capsys.readouterr().out
    sampled = ("sample", "run", "--steps", 2, "--device", "cpu", "--class", "a", "--condition", "age=50")
    assert call(*sampled, "--condition", "map:maps", "--out", "out", "--count", 12, "--cfg", 2) == 0
    assert "age = 50 is outside the range of the training images, 20 to 31" in capsys.readouterr().out
    assert {file.stem for file in Path("out").glob("*.png")} == {*map(str, range(12)), "grid"}
    assert read_record(Path("out/7.png"))["condition"]["image"] == "7.png"
    measured = ("--extractor", "fashion", "--metrics", "fd", "--size", 32, "--count", 4, "--steps", 2)
    where = ("--labels", "labels.csv:kind", "--condition", "numbers:age", "--condition", "map:maps")
    assert call("evaluate", "run", "photos", *measured, *where, "--device", "cpu") != 0
    assert "the extractor needs 1 channels" in capsys.readouterr().err, "the conditions are found"


def test_a_resumed_run_needs_no_conditions(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "photos", "--condition", "numbers:age", *TRAIN, "--out", "run") == 0
    assert call("train", "--resume", "run", "--images", 16) == 0
    assert load_diffusion("run").conditions.numbers is not None
    capsys.readouterr()
    assert call("train", "photos", *TRAIN, "--out", "run", "--unconditional") != 0
    assert "begun with other settings" in capsys.readouterr().err


def test_errors_name_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("--condition", "numbers:weight"), "--condition: numbers:weight: labels.csv has no column 'weight'"),
        (("--condition", "ages"), "--condition: 'ages' is not possible; expected labels, numbers:COLUMN"),
        (("--condition", "image:gone"), "--condition: image:gone: there is no folder or file gone"),
    ):
        assert call("train", "photos", *TRAIN, *words) != 0
        assert message in capsys.readouterr().err
    Path("maps/3.png").unlink()
    assert call("train", "photos", *TRAIN, "--condition", "map:maps") != 0
    assert "1 of 12 images lack a condition: 3.jpg (no partner picture)" in capsys.readouterr().err
    assert call("train", "photos", *TRAIN, "--condition", "map:maps", "--on-broken", "skip") == 0
    assert "left out 1 image: 3.jpg (no partner picture)" in " ".join(capsys.readouterr().out.split())
