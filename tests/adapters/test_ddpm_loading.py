"""Files and folders with DDPM's U-Net as models by their path alone, in the library and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support.cli_runs import call
from support.golden_files import Golden, draw_weights
from undiffuse import checkpoints
from undiffuse.adapters.ddpm_weights import convert
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import load_diffusion
from undiffuse.nets import DDPMConfig, UNet2DConfig
from undiffuse.pictures import read_samples

GOLDEN = Path(__file__).parents[1] / "data" / "ddpm_unet2d.safetensors"
SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_start": 1e-4, "beta_end": 0.02,
    "beta_schedule": "linear", "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_small",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def theirs() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in diffusers' layout, and config.json."""
    about = Golden(GOLDEN).meta["networks"]["cifar"]
    return draw_weights(about["layout"], about["seed"]), about["config"]


@pytest.fixture(scope="module")
def original(theirs: tuple[dict[str, Tensor], dict[str, Any]]) -> dict[str, Tensor]:
    """The same weights in the original layout."""
    return convert(theirs[0], unet=theirs[1])[2]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def check(reference: Path, size: int, variance: str) -> None:
    """The model of this path computes what the reference did, and is of this size and variance."""
    model = load_diffusion(reference)
    golden = Golden(GOLDEN)
    x, t, expected = (golden.take(f"cifar.{what}") for what in ("x", "t", "output"))
    with torch.no_grad():
        assert (model.net(x, t) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert isinstance(model.net.config, DDPMConfig)
    assert model.net.config.image_size == size
    assert model.process == ProcessConfig(variance=variance)


@pytest.mark.parametrize("layout", ["root", "pipeline", "pickle"])
def test_folders_of_diffusers(layout: str, theirs: Any, tmp_path: Path) -> None:
    state, unet = theirs
    root = tmp_path / "model"
    home = root / "unet" if layout == "pipeline" else root
    write_json(home / "config.json", unet)
    scheduler = root / "scheduler" if layout == "pipeline" else root
    write_json(scheduler / "scheduler_config.json", SCHEDULER)
    if layout == "pickle":
        torch.save(state, home / "diffusion_pytorch_model.bin")
    else:
        save_file(state, home / "diffusion_pytorch_model.safetensors")
    check(root, 16, "fixed_small")


FILES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "model-790000.ckpt": lambda state: state,
    "wrapped.pt": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "ckpt.pth": lambda state: [
        {f"module.{name}": torch.zeros_like(tensor) for name, tensor in state.items()},
        {"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        1, 999, dict(state),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_in_the_original_layout(name: str, original: dict[str, Tensor], tmp_path: Path) -> None:
    """Plain ones, of parallel training, and DDIM's list, of which the averaged weights are taken."""
    torch.save(FILES[name](original), tmp_path / name)
    check(tmp_path / name, 32, "fixed_large")


def test_a_unet2d_without_its_configuration_is_refused(theirs: Any, tmp_path: Path) -> None:
    save_file(theirs[0], tmp_path / "diffusion_pytorch_model.safetensors")
    torch.save(theirs[0], tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"a\.bin.*give the folder with its config\.json"):
        load_diffusion(tmp_path / "a.bin")


def test_a_unet2d_that_is_not_ddpms_is_another_network(theirs: Any, tmp_path: Path) -> None:
    save_file(theirs[0], tmp_path / "diffusion_pytorch_model.safetensors")
    write_json(tmp_path / "config.json", {**theirs[1], "flip_sin_to_cos": True})
    with pytest.raises(checkpoints.CheckpointError, match="no scheduler_config.json.*say beta_schedule"):
        load_diffusion(tmp_path)
    said = "beta_schedule=linear num_train_timesteps=1000 prediction_type=epsilon"
    assert isinstance(load_diffusion(f"{tmp_path}@{said}").net.config, UNet2DConfig)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_the_command_line_samples_from_a_foreign_file(
    solver: str, original: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(original, tmp_path / "model.ckpt")
    words = ("--steps", 2, "--solver", solver, "--device", "cpu", "--out", tmp_path / "out")
    assert call("sample", "--model", tmp_path / "model.ckpt", "--count", 1, *words) == 0
    assert read_samples(tmp_path / "out").images.shape == (1, 32, 32, 3)
    capsys.readouterr()
    assert call("inspect", tmp_path / "model.ckpt") == 0
    assert "DDPM's" in capsys.readouterr().out
