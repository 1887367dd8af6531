"""`undiffuse quickstart` with the weights that ship: the newcomer's first minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import call, pixels
from undiffuse import models
from undiffuse.cli import quickstart
from undiffuse.cli.quickstart import Shown
from undiffuse.models import SHIPPED, load_classifier, load_diffusion
from undiffuse.pictures import read_record
from undiffuse.pipelines.pipeline import Pipeline

PICTURES = ("first.png", "student.png", "quickstart.png", "unguided.png", "guided.png", "path.png", "path.gif")


def test_it_draws_ten_classes_twice_and_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quickstart"
    assert call("quickstart", "--out", out, "--per-class", 2, "--steps", 10) == 0
    told = capsys.readouterr().out
    for text in ("Sampling 20 images of 10 classes on cpu", f"Open {out / 'quickstart.png'}", "without guidance",
                 "guided, scale 2", "do not measure quality", "undiffuse train FOLDER", "undiffuse nll"):  # fmt: skip
        assert text in told
    assert sorted(file.name for file in out.iterdir()) == sorted(PICTURES)
    record = read_record(out / "quickstart.png")
    assert (record["command"], record["seed"], record["guidance"]) == ("quickstart", 0, 2.0)
    assert record["model"] == load_diffusion(SHIPPED[0]).digest
    assert record["classifier"] == load_classifier(SHIPPED[1]).digest
    guided, unguided = (pixels(out / name) for name in ("guided.png", "unguided.png"))
    assert guided.shape == unguided.shape
    assert 1 < np.abs(guided - unguided).mean() < 60  # guidance moves the images, from the same noise
    with Image.open(out / "path.gif") as movie:
        assert movie.n_frames == 10
    with Image.open(out / "quickstart.png") as page:
        assert page.width > 1000
        assert page.height > guided.shape[0] + unguided.shape[0]


def test_the_student_comes_first_and_its_teacher_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the long part begins, one image of each class in four calls is there to be looked at."""
    first, seen = tmp_path / "first.png", []
    whole = quickstart.sample_rows

    def watched(samplers: list[Pipeline], *rest: Any) -> list[Shown]:
        seen.append((len(samplers), first.is_file(), (tmp_path / "student.png").is_file()))
        return whole(samplers, *rest)

    monkeypatch.setattr(quickstart, "sample_rows", watched)
    assert call("quickstart", "--out", tmp_path, "--per-class", 1, "--steps", 10, "--seed", 3) == 0
    assert seen == [(1, False, False), (1, True, False), (2, True, True)]
    text = capsys.readouterr().out
    assert text.index(f"First picture: {first}\n  10 images by a student of 4 network calls") < text.index("Done in")
    record = read_record(first)
    assert (record["command"], record["seed"], record["steps"], record["guidance"]) == ("quickstart", 3, "4", 0.0)
    assert record["model"] == load_diffusion(SHIPPED[3]).digest
    student, plain = pixels(first), pixels(tmp_path / "unguided.png")
    assert student.shape == plain.shape
    assert np.abs(student - plain).mean() < 45  # of one noise
    assert pixels(tmp_path / "student.png").shape[0] > 1.5 * student.shape[0]


@pytest.mark.slow
def test_the_whole_takes_less_than_two_minutes(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert call("quickstart", "--out", tmp_path) == 0
    assert time.monotonic() - begin < 120


def test_missing_weights_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models.files.resources, "files", lambda package: tmp_path)
    assert call("quickstart", "--out", tmp_path / "out") == 2
    assert "the shipped model fashion-mnist-32 is missing from this installation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_colour_model_has_a_quickstart_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "emoji"
    words = ("--model", "emoji-32", "--out", out, "--per-class", 1, "--steps", 4)
    assert call("quickstart", *words) == 0
    told = capsys.readouterr().out
    for text in ("9 images by 10 network calls", "Sampling 9 images of 9 classes on cpu", "--class smileys-emotion"):
        assert text in told
    assert sorted(file.name for file in out.iterdir()) == sorted({*PICTURES} - {"student.png"})
    record = read_record(out / "quickstart.png")
    assert record["model"] == load_diffusion("emoji-32").digest
    assert record["classifier"] == load_classifier("emoji-32-classifier").digest
