"""`undiffuse export`: what is said, where files go, and that nothing is lost or left half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from support.cli_runs import call, write_classifier, write_model
from support.export_models import SMALL, model
from support.training_runs import run, tiny_config, tiny_task
from undiffuse import checkpoints
from undiffuse.adapters import export_openai, exporting
from undiffuse.adapters.exporting import staged
from undiffuse.cli import export
from undiffuse.models import load_classifier, load_diffusion, save_model
from undiffuse.nets import UNetConfig


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model that all formats can hold."""
    config = UNetConfig(**{**SMALL, "channel_mult": (1,), "out_channels": 6}, num_classes=3)
    save_model(tmp_path / "small.safetensors", model(config, labels=["a", "b", "c"]))
    return tmp_path / "small.safetensors"


def test_safetensors_of_a_run_load_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file with the chosen weights: the run is not needed, nor where it was, nor any option."""
    task = tiny_task()
    run(tmp_path / "runs" / "r", task, steps=2, save_every=8)
    monkeypatch.chdir(tmp_path)
    assert call("export", "runs/r", "--to", "safetensors") == 0
    assert call("export", "runs/r", "--to", "safetensors", "--weights", "net", "--out", "net.safetensors") == 0
    told = capsys.readouterr().out
    assert "written  r.safetensors (" in told
    assert "outputs equal those of the model" in told
    newest = checkpoints.latest(tmp_path / "runs" / "r")
    slow = load_diffusion(newest)
    net = load_diffusion(newest, weights="net")
    (tmp_path / "runs").rename(tmp_path / "gone")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_diffusion(tmp_path / "r.safetensors")
    assert (again.digest, again.labels, again.process, again.weights) == (
        slow.digest,
        slow.labels,
        slow.process,
        "0.99",
    )
    assert load_diffusion("../net.safetensors").digest == net.digest != slow.digest
    assert tiny_config().ema_decays == (0.9, 0.99)


def test_a_classifier_as_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write_classifier(tmp_path / "c.safetensors")
    assert call("export", given, "--to", "safetensors", "--out", tmp_path / "d.safetensors") == 0
    assert load_classifier(tmp_path / "d.safetensors").digest == load_classifier(given).digest
    assert "--classifier d.safetensors" in capsys.readouterr().out


def test_what_is_said(small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written and how large, what was found, and how to use it, in a hundred columns but for code."""
    monkeypatch.chdir(small.parent)
    assert call("export", small, "--to", "openai") == 0
    told = capsys.readouterr().out
    assert "written  small.pt (" in told
    assert "small.pt.json (" in told
    assert "checked  read back by its arguments" in told
    assert "note     Its flags cannot express num_classes = 3; use its classes" in told
    assert "To use it:\n    import json, torch\n" in told
    before, _, _ = told.partition("To use it:")
    assert told.isascii()
    assert max(map(len, before.splitlines())) <= 100
    assert call("export", small, "--to", "diffusers") == 0
    assert "written  small-diffusers/ (5 files, " in capsys.readouterr().out
    about = json.loads((small.parent / "small-diffusers" / "undiffuse.json").read_text())
    assert (about["classes"], about["kind"]) == (["a", "b", "c"], "diffusion")
    assert about["sha256"] == load_diffusion(small).digest


@pytest.mark.parametrize("to", ["openai", "diffusers"])
def test_what_cannot_be_expressed_is_refused(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reasons, exit status 2, and no file."""
    given = write_model(tmp_path / "m.safetensors")  # of eight channels, two groups
    out = tmp_path / ("m.pt" if to == "openai" else "m")
    assert call("export", given, "--to", to, "--out", out) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "groups" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_existing_files_are_kept_and_replaced_whole(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small.parent
    beside = folder / "small.pt.json"
    beside.write_text("mine")
    words = ("export", small, "--to", "openai", "--out", folder / "small.pt")
    assert call(*words) == 2
    assert "small.pt.json already exists" in capsys.readouterr().err
    assert beside.read_text() == "mine"
    assert not (folder / "small.pt").exists()
    assert call(*words, "--overwrite") == 0
    assert json.loads(beside.read_text())["format"] == "guided-diffusion"
    assert sorted(path.name for path in folder.iterdir()) == ["small.pt", "small.pt.json", "small.safetensors"]


def test_folders_of_other_things_are_never_replaced(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small.parent / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    words = ("export", small, "--to", "diffusers", "--out", folder, "--overwrite")
    assert call(*words) == 2
    assert "is a folder with other files, not an earlier export" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "years"
    (folder / "thesis.txt").unlink()
    assert call(*words) == 0
    (folder / "unet" / "config.json").write_text("{}")
    assert call(*words) == 0  # now it is an earlier export
    assert json.loads((folder / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"


MISTAKES = [
    (["--to", "openai", "--out", "m.bin"], "the name must end in .pt"),
    (["--to", "tensorflow"], "'tensorflow': expected one of safetensors, openai, diffusers, onnx, torch"),
    (["--to", "safetensors", "--out", "small.safetensors", "--overwrite"], "is the model itself"),
    (["--to", "safetensors", "--out", "x.safetensors", "--weights", "0.5"], "has no weights '0.5'"),
    ([], "--to"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes(
    words: list[str], message: str, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    digest = load_diffusion(small).digest
    assert call("export", "small.safetensors", *words) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in small.parent.iterdir()] == ["small.safetensors"]
    assert load_diffusion(small).digest == digest


def test_a_file_that_is_not_the_model_is_not_kept(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back is compared with the model, and does not get its name when it differs."""
    whole = export_openai.state_dict

    def spoiled(net: Any) -> Any:
        state = whole(net)
        state["out.2.bias"] = state["out.2.bias"] + 0.01
        return state

    monkeypatch.setattr(export_openai, "state_dict", spoiled)
    with pytest.raises(RuntimeError, match="the output of small.pt differs from the model's"):
        call("export", small, "--to", "openai", "--out", small.parent / "small.pt")
    assert [path.name for path in small.parent.iterdir()] == ["small.safetensors"]


def test_default_names(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    assert export._default("runs/v1.5", "onnx", ".onnx") == Path("v1.5.onnx")
    assert export._default("runs/x/", "diffusers", "") == Path("x-diffusers")
    assert export._default("256x256_diffusion", "torch", ".pt2") == Path("256x256_diffusion.pt2")
    assert export._default(f"{tmp_path}/w.pt@64x64_diffusion", "safetensors", ".safetensors") == Path("w.safetensors")


def test_files_have_ordinary_permissions(small: Path) -> None:
    assert call("export", small, "--to", "diffusers", "--out", small.parent / "d") == 0
    plain = small.parent / "plain"
    plain.touch()
    modes = {path.stat().st_mode for path in (small.parent / "d").rglob("*") if path.is_file()}
    assert modes == {plain.stat().st_mode}


def test_staging_puts_back_what_it_could_not_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, beside = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    target.write_text("old")
    beside.write_text("old data")
    replace = os.replace

    def failing(source: Any, destination: Any) -> None:
        if Path(destination) == target and "new" in Path(source).parts:
            raise OSError("disk")
        replace(source, destination)

    monkeypatch.setattr(exporting.os, "replace", failing)
    with pytest.raises(OSError, match="disk"), staged(target, [beside], overwrite=True) as path:
        path.write_text("new")
        path.with_name("m.onnx.data").write_text("new data")
    assert (target.read_text(), beside.read_text()) == ("old", "old data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_staging_removes_companions_that_belong_to_the_old_file(tmp_path: Path) -> None:
    target, beside = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    target.write_text("old")
    beside.write_text("old data")
    with staged(target, [beside], overwrite=True) as path:
        path.write_text("new")
    assert target.read_text() == "new"
    assert not beside.exists()


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    with staged(tmp_path / "m.pt") as path:
        path.write_text("x")
        (working,) = tmp_path.glob(".undiffuse-*.export")
        left = tmp_path / ".undiffuse-0123.export"
        (left / "new").mkdir(parents=True)
        with staged(tmp_path / "other.pt") as other:
            other.write_text("y")
        assert working.exists()
        assert not left.exists()
    assert ((tmp_path / "m.pt").read_text(), (tmp_path / "other.pt").read_text()) == ("x", "y")


def test_differences() -> None:
    one = torch.tensor([1.0, -4.0])
    assert exporting.relative_difference(one + torch.tensor([0.0, 0.004]), one) == pytest.approx(1e-3, rel=1e-3)
    assert exporting.relative_difference(one[:1], one) == float("inf")
    assert exporting.relative_difference(one / 0, one) == float("inf")
    for nothing_to_compare in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the export was discarded: check the model's weights for NaN"):
            exporting.accept(nothing_to_compare, "x")
    with pytest.raises(RuntimeError, match="relative difference 0.5, .* the export was discarded"):
        exporting.accept(0.5, "x")
    assert exporting.accept(1e-6, "x") == 1e-6
