"""Files that lie about the model they hold end in one clear error, whatever they say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse import checkpoints
from undiffuse.data import open_data
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import load_model, save_model
from undiffuse.nets import UNetConfig

CONFIG = UNetConfig(
    image_size=8, in_channels=1, out_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1,
    attention_resolutions=(),
)  # fmt: skip
PROCESS = ProcessConfig(schedule="cosine", steps=10, variance="fixed_small")


def manifest() -> dict[str, Any]:
    return {"kind": "diffusion", "net": asdict(CONFIG), "process": asdict(PROCESS), "labels": None, "ema": []}


def weights() -> dict[str, torch.Tensor]:
    return {f"net.{name}": value for name, value in CONFIG.build().state_dict().items()}


def save(path: Path, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    checkpoints.write(path, tensors, about)
    return path


def test_the_honest_file_loads_and_half_precision_becomes_single(tmp_path: Path) -> None:
    halves = {name: value.half() for name, value in weights().items()}
    model = load_model(save(tmp_path / "a.safetensors", manifest(), halves))
    assert all(p.dtype == torch.float32 for p in model.net.parameters())
    assert torch.isfinite(model.net(torch.zeros(1, 1, 8, 8), torch.zeros(1))).all()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "upscaler"}, {"kind": 3}, {"net": None}, {"net": [1]}, {"net": {"image_size": "large"}},
        {"net": {**asdict(CONFIG), "wings": 2}}, {"net": {**asdict(CONFIG), "model_channels": 64}},
        {"net": {**asdict(CONFIG), "channel_mult": 3}}, {"net": {**asdict(CONFIG), "image_size": None}},
        {"process": "linear"}, {"process": {"steps": "50"}}, {"process": {"steps": 50.5}},
        {"process": {"steps": 10**12}},
        {"process": {"schedule": "wavy"}}, {"process": {"betas": [0.1, 2.0]}}, {"labels": 3}, {"labels": [1, 2]},
        {"ema": ["fast"]}, {"weights": 1},
    ],
)  # fmt: skip
def test_a_lying_manifest_is_one_clear_error(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"a\.safetensors|decay|expected|could not convert") as caught:
        load_model(save(path, {**manifest(), **change}, weights()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("net.out.2.weight"),
        lambda t: t.update({"net.extra": torch.zeros(2)}),
        lambda t: t.update({"net.out.2.weight": t["net.out.2.weight"].flatten()}),
        lambda t: t.update({"net.out.2.bias": torch.zeros(1, dtype=torch.int64)}),
    ],
)
def test_weights_that_do_not_fit_are_one_clear_error(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    tensors = weights()
    spoil(tensors)
    with pytest.raises(checkpoints.CheckpointError, match="not describe a model that can be built"):
        load_model(save(tmp_path / "a.safetensors", manifest(), tensors))


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    def full(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match=r"a\.safetensors could not be written: .*No space left"):
        save(tmp_path / "a.safetensors", manifest(), weights())
    assert not list(tmp_path.iterdir())


def test_pipes_and_locked_folders_among_images_are_named(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    with pytest.raises(ValueError, match=r"loop\.png"):
        open_data(tmp_path)
    assert len(open_data(tmp_path, on_broken="skip")) == 1
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is no file"):
        open_data(tmp_path)


def test_a_slim_model_keeps_how_images_are_prepared_and_forgets_where_they_lay(tmp_path: Path) -> None:
    """Scoring other images needs the same preparation; nobody needs the path on the trainer's disk."""
    data = {
        "fingerprint": "f", "source": "folder somewhere", "count": 3, "size": [8, 8, 1],
        "config": {"path": "somewhere", "fit": "pad", "pad_value": 7, "size": 8, "channels": 1, "background": 255},
    }  # fmt: skip
    model = load_model(save(tmp_path / "a.safetensors", {**manifest(), "data": data}, weights()))
    save_model(tmp_path / "slim.safetensors", model)
    kept = checkpoints.read_manifest(tmp_path / "slim.safetensors")["data"]
    assert kept["config"] == {"fit": "pad", "pad_value": 7, "size": 8, "channels": 1, "background": 255}
    assert kept["fingerprint"] == "f"
    assert "somewhere" not in str(kept)
