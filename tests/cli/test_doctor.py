"""`undiffuse doctor`: the installation, data sets and runs."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from support.cli_runs import call, write_images
from undiffuse import doctor
from undiffuse.kernels import using


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", each=4)


def test_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 0
    assert "The shipped model loads and samples." in capsys.readouterr().out


def test_what_is_wrong_with_an_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "file"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**12, 10**12, 10**9))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with using("pure"):
        assert call("doctor", "--json") == 1
    found = {item["text"]: item for item in json.loads(capsys.readouterr().out)}
    problems = "\n".join(text for text, item in found.items() if item["severity"] == "problem")
    assert "sees no GPU" in problems
    assert "cannot be written" in problems
    assert "Only 1.0 GB are free" in problems
    assert any("compiled kernels are not in use" in text for text in found)


def test_a_shipped_model_that_gives_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat:
        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Flat:
            return cls()

        def sample(self, *_: Any, **__: Any) -> Any:
            return namedtuple("Samples", "images")(torch.zeros(1, 2, 2, 1).numpy())

    monkeypatch.setattr(doctor, "Pipeline", Flat)
    assert any("flat image" in item.text and item.severity == "problem" for item in doctor.check_installation())


def test_data_with_faults(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(photos.rglob("*.png"))[:2]
    shutil.copy(first, second)
    (photos / "left" / "broken.png").write_bytes(b"nothing")
    (photos / "notes.txt").write_text("")
    assert call("doctor", photos) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "1 image of 13 checked cannot be read: left/broken.png" in text
    assert "1 file of 13 repeats another file byte for byte" in text
    assert "13 images are few" in text
    assert "3 classes have fewer than 50 images: left (5), right (4), top (4)." in text
    assert "1 file of other kinds left out" in text


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", tmp_path / "nothing") == 2
    assert "there is no" in capsys.readouterr().err


def test_a_command_is_never_broken_into_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fail when it is pasted."""
    command = "undiffuse train --resume " + " ".join(["runs/a-folder-with-a-long-name"] * 5)
    finding = doctor.Finding(severity="advice", text="The run is short.", do=f"Train longer: {command}")
    monkeypatch.setattr("undiffuse.cli.doctor.examine", lambda _: [finding])
    assert call("doctor", "runs/x") == 0
    assert command in [line.strip() for line in capsys.readouterr().out.splitlines()]
