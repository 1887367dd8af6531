"""Files of denoising-diffusion-pytorch: numbers frozen from 2.3.1, and all settings where it is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from support import lucidrains
from support.foreign_files import layout_of, write
from support.golden_files import draw_weights
from support.variants import few
from undiffuse.adapters import ddp_weights
from undiffuse.checkpoints import CheckpointError
from undiffuse.models import load_diffusion, load_model
from undiffuse.nets import RMSUNetConfig
from undiffuse.noise_levels import named_schedule

DATA = Path(__file__).parents[1] / "data" / "ddp_unet.safetensors"
CLOSE = 1e-5
CASES: dict[str, dict[str, Any]] = {
    "plain": {"dim_mults": (1, 2, 4)},
    "all full": {"dim_mults": (1, 2), "full_attn": (True, True), "attn_heads": 2, "attn_dim_head": 16},
    "heads by level": {"dim_mults": (1, 2), "attn_heads": (2, 4), "attn_dim_head": (8, 32)},
    "first width": {"dim_mults": (1, 2), "init_dim": 24},
    "grey": {"dim_mults": (1, 2), "channels": 1},
    "learned variance": {"dim_mults": (1, 2), "learned_variance": True},
    "fourier": {"dim_mults": (1, 2), "learned_sinusoidal_cond": True},
}
FROZEN = ("plain", "all full", "first width", "fourier")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def inputs(channels: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(5))
    return x, torch.tensor([3.0, 91.0])


def drawn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return draw_weights({name: list(value.shape) for name, value in state.items()}, 4)


def their_unet(case: str) -> Any:
    unet = lucidrains.library().Unet(dim=16, **CASES[case]).eval()
    unet.load_state_dict(drawn(unet.state_dict()))
    return unet


def trainer_file(state: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `Trainer.save` writes."""
    ema = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    ema |= {f"online_model.{name}": value for name, value in state.items()}
    ema |= {f"ema_model.{name}": value for name, value in average.items()}
    return {"step": 7, "model": dict(state), "opt": {"state": {}, "param_groups": []}, "ema": ema, "scaler": None,
            "version": "2.3.1"}  # fmt: skip


def tables(
    objective: str = "pred_v", schedule: str = "sigmoid", steps: int = 100, gamma: float = 1e30
) -> dict[str, Tensor]:
    chain = named_schedule(schedule, steps)
    betas, abar = torch.from_numpy(chain.betas), torch.from_numpy(chain.alphas_cumprod)
    snr = abar / (1 - abar)
    weight = snr.clamp(max=gamma) / {"pred_noise": snr, "pred_x0": 1, "pred_v": snr + 1}[objective]
    return {"betas": betas.float(), "alphas_cumprod": abar.float(), "loss_weight": weight.float()}


CONFIG = RMSUNetConfig(
    image_size=16, model_channels=16, channel_mult=(1, 2), full=(False, True), heads=(4, 4), head_channels=(32, 32)
)


COMBINATIONS = list(product(["linear", "cosine", "sigmoid"], [1e30, 5.0], ["pred_noise", "pred_x0", "pred_v"]))


# By default every schedule, gamma and objective, but not every combination of them.
@pytest.mark.parametrize(("schedule", "gamma", "objective"), few(COMBINATIONS, count=0, first=(0, 4, 7, 11, 14, 15)))
def test_a_trainers_file_tells_all_but_the_size(tmp_path: Path, objective: str, gamma: float, schedule: str) -> None:
    weights = {f"model.{name}": value for name, value in draw_weights(layout_of(CONFIG), 1).items()}
    other = {name: value + 1 for name, value in weights.items()}
    known = tables(objective, schedule, gamma=gamma)
    file = write(tmp_path / "model-3.pt", trainer_file(known | other, known | weights))
    with pytest.raises(CheckpointError, match="does not record the image size.*FILE@image_size"):
        load_model(file)
    model = load_diffusion(f"{file}@image_size=16")
    assert model.net.config == CONFIG
    assert all(model.net.state_dict()[name.removeprefix("model.")].equal(value) for name, value in weights.items())
    target = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[objective]
    assert (model.process.schedule, model.process.steps, model.process.target) == (schedule, 100, target)
    assert model.process.variance == "fixed_small"
    assert (model.weights, model.advice.solver, model.advice.steps) == ("ema_model", "ddpm", "100")  # type: ignore[union-attr]
    trained = load_diffusion(f"{file}@image_size=16", weights="model")
    assert trained.net.final_conv.bias.equal(other["model.final_conv.bias"])


def test_a_learned_variance_goes_with_predicted_noise(tmp_path: Path) -> None:
    """LearnedGaussianDiffusion trains and samples noise; its objective, pred_v by default, has no effect."""
    config = replace(CONFIG, out_channels=6)
    weights = {f"model.{name}": value for name, value in draw_weights(layout_of(config), 1).items()}
    state = tables("pred_v") | weights
    file = write(tmp_path / "model-3.pt", trainer_file(state, state))
    process = load_diffusion(f"{file}@image_size=16").process
    assert (process.target, process.variance, process.schedule) == ("eps", "learned_range", "sigmoid")
    with pytest.raises(CheckpointError, match="predicts the noise whatever the objective"):
        load_diffusion(f"{file}@image_size=16 objective=pred_v")


def test_a_network_without_its_process(tmp_path: Path) -> None:
    file = write(tmp_path / "unet.pt", draw_weights(layout_of(CONFIG), 1))
    with pytest.raises(CheckpointError, match="append objective, beta_schedule, timesteps to the path"):
        load_model(f"{file}@image_size=16")
    said = "image_size=16 objective=pred_noise beta_schedule=cosine timesteps=50"
    process = load_diffusion(f"{file}@{said}").process
    assert (process.schedule, process.steps, process.target) == ("cosine", 50, "eps")
    with pytest.raises(CheckpointError, match="not num_heads"):
        load_model(f"{file}@{said} num_heads=3")


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    weights = draw_weights(layout_of(CONFIG), 1)
    doubled = {**weights, "init_conv.weight": weights["init_conv.weight"].repeat(1, 2, 1, 1)}
    with pytest.raises(CheckpointError, match="self_condition"):
        load_model(f"{write(tmp_path / 'a.pt', doubled)}@image_size=16")
    old = {name.replace(".norm.g", ".norm.weight"): value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match="not the U-Net of its version 2"):
        load_model(f"{write(tmp_path / 'b.pt', old)}@image_size=16")
    odd = tables() | {"loss_weight": torch.rand(100, generator=torch.Generator().manual_seed(0))}
    state = odd | {f"model.{name}": value for name, value in weights.items()}
    file = write(tmp_path / "c.pt", trainer_file(state, state))
    with pytest.raises(CheckpointError, match="does not show what the network predicts"):
        load_model(f"{file}@image_size=16")
    assert load_diffusion(f"{file}@image_size=16 objective=pred_v").process.target == "v"


@pytest.mark.parametrize("name", FROZEN)
def test_outputs_are_those_that_the_program_gave(name: str) -> None:
    with safe_open(str(DATA), framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["version"] == "2.3.1"
    weights = draw_weights(about["layouts"][name], 4)
    said = {"image_size": "16", "objective": "pred_v", "beta_schedule": "sigmoid", "timesteps": "100"}
    config, _, state = ddp_weights.read(weights, said)
    net = config.build().eval()
    net.load_state_dict(state)
    expected = load_file(DATA)[name]
    with torch.no_grad():
        assert (net(*inputs(config.in_channels)) - expected).abs().max() < CLOSE * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_networks_are_the_programs(name: str) -> None:
    unet = their_unet(name)
    said = {"image_size": "16", "objective": "pred_v", "beta_schedule": "sigmoid", "timesteps": "100"}
    config, _, state = ddp_weights.read(unet.state_dict(), said)
    net = config.build().eval()
    net.load_state_dict(state)
    x, t = inputs(config.in_channels)
    with torch.no_grad():
        expected = unet(x, t)
        assert (net(x, t) - expected).abs().max() < CLOSE * expected.abs().max()


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("min_snr", [False, True])
def test_processes_are_the_programs(objective: str, schedule: str, min_snr: bool) -> None:
    program = lucidrains.library()
    unet = program.Unet(dim=16, dim_mults=(1, 2))
    process = program.GaussianDiffusion(
        unet, image_size=16, timesteps=1000, objective=objective, beta_schedule=schedule, min_snr_loss_weight=min_snr
    )
    _, ours, _ = ddp_weights.read(process.state_dict(), {"image_size": "16"})
    assert ours.target == {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[objective]
    assert (ours.schedule, ours.betas) == (schedule, None)
    theirs = process.alphas_cumprod.double()
    assert torch.allclose(torch.from_numpy(ours.chain().alphas_cumprod), theirs, rtol=1e-4, atol=1e-7)
