"""Guidance of every kind in `sweep` and `evaluate`, as a user types it, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.cli_runs import call, one_thread, write_classifier, write_model
from support.evaluation_sets import images, save_npz
from undiffuse.evaluation import Report
from undiffuse.models import DiffusionModel, load_diffusion, save_model
from undiffuse.nets import UNetConfig

SIZE = ("--extractor", "judge.safetensors", "--steps", "3", "--count", "12", "--metrics", "fd,accuracy")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model that has a null class, a weaker one, a classifier and images; an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    with one_thread():
        plain = load_diffusion(write_model(tmp_path / "weak.safetensors", seed=3))
        assert isinstance(plain.net.config, UNetConfig)
        torch.manual_seed(1)
        net = replace(plain.net.config, null_class=True).build()
        for parameter in net.parameters():  # the output layer begins at zero
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        save_model(tmp_path / "model.safetensors", DiffusionModel(net, plain.process, plain.labels))
        write_classifier(tmp_path / "judge.safetensors")
        save_npz(tmp_path / "real.npz", images(50, 2, channels=1), arr_1=np.arange(50) % 3)
        yield tmp_path


def sweep(*words: str, out: str) -> int:
    return call("sweep", "real.npz", "--model", "model.safetensors", *SIZE, "--out", out, *words)


def values(path: Path) -> list[float]:
    return [estimate.value for estimate in Report.load(path).estimates]


def test_classifier_free_guidance_is_swept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each point is what `evaluate` says of the same options; at 1 nothing guides, whatever shapes guidance."""
    shaping = ("--guidance-interval", "-2,9", "--cfg-rescale", "0.5")
    assert sweep("--over", "cfg", "--scales", "1,4", *shaping, out="sw") == 0
    about = json.loads((place / "sw" / "sweep.json").read_text())["settings"]
    assert (about["over"], about["scales"]) == ("cfg", [1.0, 4.0])
    assert {"-2,9", 0.5} <= set(about["sampler"]["guidance"].values())
    table = (place / "sw" / "table.md").read_text()
    assert "| metric | cfg 1 | cfg 4 |" in table
    assert "interval=-2,9" in table
    assert values(place / "sw" / "cfg-1.json") != values(place / "sw" / "cfg-4.json")
    for words, name in (((), "cfg-1"), (("--cfg", "4", *shaping), "cfg-4")):
        assert call("evaluate", "model.safetensors", "real.npz", *SIZE, *words) == 0
        (report,) = place.glob("evaluations/*.json")
        assert values(report) == values(place / "sw" / f"{name}.json")
        report.unlink()
    assert "model, ddpm 3, cfg 4, rescaled 0.5, interval -2,9, seed 0, 12" in capsys.readouterr().out
    assert sweep("--over", "cfg", "--scales", "1,4", "--guidance-interval", "-1,9", out="sw") != 0
    assert "another sweep" in capsys.readouterr().err


def test_autoguidance_is_swept_beside_a_classifier(place: Path) -> None:
    both = ("--over", "autoguide", "--autoguide", "weak.safetensors", "--scales", "1,3")
    assert sweep(*both, "--classifier", "judge.safetensors", "--guidance", "3", "--guidance-at", "x0", out="sw") == 0
    first, second = (Report.load(place / "sw" / f"autoguide-{scale}.json").samples for scale in (1, 3))
    assert (first["guidance"], first["guidance_at"], first.get("autoguide_scale")) == (3.0, "x0", None)
    assert (second["guidance"], second["autoguide_scale"]) == (3.0, 3.0)
    assert first["sha256"] != second["sha256"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--guidance", "2"), "--guidance is swept: use --scales to give its values"),
        (("--over", "cfg", "--cfg", "2"), "--cfg is swept"),
        (("--over", "autoguide"), "add --autoguide WEAK"),
        (("--over", "autoguide", "--autoguide", "weak.safetensors", "--autoguide-scale", "2"), "--autoguide-scale is"),
        (("--classifier", "judge.safetensors", "--classifier", "judge.safetensors"), "a sweep takes one classifier"),
        (("--solvers", "ddim", "--nfe", "2", "--guidance-interval", "0,1"), "--guidance-interval cannot be used with"),
        (("--solvers", "ddim", "--nfe", "2", "--over", "cfg", "--cfg", "2"), "--cfg cannot be used with a frontier"),
    ],
)
def test_what_cannot_be_swept(
    words: tuple[Any, ...], expected: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*words, out="sw") == 2
    assert expected in capsys.readouterr().err
    assert not (place / "sw").exists()
