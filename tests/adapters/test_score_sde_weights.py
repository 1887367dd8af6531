"""Checkpoints of score_sde_pytorch: numbers frozen from its own code with drawn weights."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from support.cli_runs import call
from support.golden_files import draw_weights
from undiffuse.checkpoints import CheckpointError
from undiffuse.config.sampler import SamplerConfig
from undiffuse.denoiser import ChainDenoiser
from undiffuse.models import load_diffusion
from undiffuse.nets import EDMUNetConfig, UNet2DConfig, config_from_dict
from undiffuse.noise_levels import Level

DATA = Path(__file__).parents[1] / "data" / "score_sde.safetensors"
CLOSE = 2e-5
CASES = ("ve ncsnpp", "vp ddpmpp", "subvp ncsnpp", "vp ncsnpp", "vp ddpmpp discrete", "ve skip")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def frozen(case: str) -> dict[str, Any]:
    with safe_open(str(DATA), framework="pt") as file:
        return json.loads(file.metadata()["about"])[case]


def drawn(case: str, seed: int) -> dict[str, Tensor]:
    about = frozen(case)
    low, high = (torch.tensor(end).log() for end in about["ends"])
    weights = draw_weights({name: shape for name, shape in about["layout"].items() if name != "sigmas"}, seed)
    return {"sigmas": torch.linspace(high, low, about["layout"]["sigmas"][0]).exp(), **weights}


def trained(state: dict[str, Tensor]) -> list[str]:
    """Names of the parameters that have an average."""
    return [name for name, value in state.items() if name != "sigmas" and (name[-2:] != ".W" or value.ndim > 1)]


def checkpoint(path: Path, case: str, **changes: Any) -> Path:
    """A file as the program writes it: other weights beside the EMA, which lacks what is not trained."""
    ema, raw = drawn(case, 3), drawn(case, 4)
    names = trained(ema)
    raw |= {name: value for name, value in ema.items() if name not in names}
    content = {
        "optimizer": {"state": {}, "param_groups": []},
        "model": OrderedDict((f"module.{name}", value) for name, value in raw.items()),
        "ema": {"decay": 0.999, "num_updates": 8, "shadow_params": [ema[name] for name in names]},
        "step": 8,
    }
    torch.save({**content, **changes}, path)
    return path


def denoised(model: Any, case: str) -> Tensor:
    s = load_file(DATA)[f"{case}.s"].double()
    norm = (1 + s**2).sqrt()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return ChainDenoiser(model.net, model.process, "none")(x, Level(1 / norm, s / norm)).eps


@pytest.mark.parametrize("case", CASES)
def test_noise_is_that_of_its_score_function(case: str, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "checkpoint_8.pth", case)
    model = load_diffusion(f"{file}@{frozen(case)['said']}")
    assert model.weights == "ema"
    assert config_from_dict(json.loads(json.dumps(model.manifest["net"]))) == model.net.config
    assert type(model.net.config) is (UNet2DConfig if case == "ve skip" else EDMUNetConfig)
    expected = load_file(DATA)[case]
    assert (denoised(model, case) - expected).abs().max() < CLOSE * expected.abs().max()
    raw = load_diffusion(f"{file}@{frozen(case)['said']}", weights="model")
    assert (denoised(raw, case) - expected).abs().max() > 0.01 * expected.abs().max()


def test_the_process_is_that_of_the_sde(tmp_path: Path) -> None:
    made = {}
    for case in CASES:
        file = checkpoint(tmp_path / f"{case}.pth", case)
        made[case] = load_diffusion(f"{file}@{frozen(case)['said']}").process
    assert [made[case].preconditioning for case in CASES] == ["ve", "vp", "subvp", "vp", "chain", "ve"]
    assert (made["ve ncsnpp"].sigma_min, made["ve ncsnpp"].sigma_max) == pytest.approx((0.02, 100))
    assert made["ve skip"].sigma_max == pytest.approx(696)
    assert made["vp ddpmpp discrete"].betas == pytest.approx(torch.linspace(1e-4, 0.02, 1000).tolist())


def test_a_checkpoint_is_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = f"{checkpoint(tmp_path / 'checkpoint_8.pth', 've ncsnpp')}@{frozen('ve ncsnpp')['said']}"
    model = load_diffusion(file)
    settings = SamplerConfig().resolved(model.process, model.advice)
    assert (settings.solver, settings.steps, settings.grid, settings.clip) == ("heun", "18", "karras", "none")
    words = ("--model", file, "--count", 1, "--steps", 3, "--device", "cpu", "--out", tmp_path / "o")
    assert call("sample", *words) == 0
    capsys.readouterr()
    assert call("inspect", file) == 0
    assert "NCSN++ of score_sde_pytorch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "said", "message"),
    [
        ("ve ncsnpp", "", "does not record sde, the SDE of its training: give sde=vesde or sde=vpsde"),
        ("ve ncsnpp", "sde=vesde", "does not record the image size"),
        ("ve ncsnpp", "sde=heat image_size=16", "sde heat: expected vesde or vpsde or subvpsde"),
        ("vp ddpmpp", "sde=vpsde image_size=16", "does not record continuous"),
        ("vp ddpmpp", "sde=vpsde image_size=16 continuous=True", "does not record fir, whether"),
        ("vp ddpmpp", "sde=vesde image_size=16 fir=False continuous=True", "takes the number of its noise level"),
        ("vp ddpmpp", "sde=vpsde image_size=16 fir=False continuous=maybe", "continuous maybe: expected True or False"),
        ("ve ncsnpp", "sde=vesde image_size=16 centered=True", "take sde, image_size, .*, not centered"),
        ("ve ncsnpp", "sde=vesde image_size=16 sigma_max=high", "sigma_max high: expected a number"),
        ("ve ncsnpp", "64x64_diffusion", "only settings that it lacks can be given"),
    ],
)
def test_what_a_file_cannot_tell_is_asked(case: str, said: str, message: str, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "checkpoint_8.pth", case)
    with pytest.raises(CheckpointError, match=message) as error:
        load_diffusion(f"{file}@{said}" if said else file)
    assert "\n" not in str(error.value)


def test_other_networks_and_damaged_averages_are_refused(tmp_path: Path) -> None:
    case = "ve ncsnpp"
    said = frozen(case)["said"]
    state = drawn(case, 3)
    path = tmp_path / "checkpoint_8.pth"
    checkpoint(path, case, ema={"decay": 0.9, "num_updates": 1, "shadow_params": [torch.zeros(2)]})
    with pytest.raises(CheckpointError, match="does not match the parameters of its model"):
        load_diffusion(f"{path}@{said}")
    without = {f"module.{name}": value for name, value in state.items() if ".40." not in name and ".8." not in name}
    checkpoint(path, case, model=without, ema={})
    with pytest.raises(CheckpointError, match="unsupported parts, first all_modules"):
        load_diffusion(f"{path}@{said}")
    plain = {f"module.{name.replace('Conv_2', 'NIN_0')}".replace("NIN_0.weight", "NIN_0.W"): value
             for name, value in state.items()}  # fmt: skip
    checkpoint(path, case, model=plain, ema={})
    with pytest.raises(CheckpointError, match="resblock_type 'ddpm'"):
        load_diffusion(f"{path}@{said}")
    checkpoint(path, case, model={f"module.{n}": v for n, v in state.items() if int((n + ".0").split(".")[1]
               if n != "sigmas" else 0) < 4}, ema={})  # fmt: skip
    with pytest.raises(CheckpointError, match="neither DDPM.. nor NCSN.."):
        load_diffusion(f"{path}@{said}")
