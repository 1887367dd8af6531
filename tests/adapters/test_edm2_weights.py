"""Network pickles of EDM2: numbers frozen from its own code, and pickles with its classes' names read as data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from support.cli_runs import call
from support.golden_files import draw_weights
from tests.adapters.test_edm_weights import Module, hold
from undiffuse.adapters.edm2_weights import folded
from undiffuse.checkpoints import CheckpointError
from undiffuse.config.sampler import SamplerConfig
from undiffuse.denoiser import ChainDenoiser
from undiffuse.models import load_diffusion, load_model
from undiffuse.nets import EDM2UNetConfig, config_from_dict
from undiffuse.nets.edm2_unet import joined, mixed, pixel_norm, silu
from undiffuse.noise_levels import Level

DATA = Path(__file__).parents[1] / "data" / "edm2_unet.safetensors"
CLOSE = 1e-5
SIZE = 16

Precond, UNet = (type(name, (Module,), {"__module__": __name__}) for name in ("Precond", "UNet"))


class EasyDict(dict):
    """EDM2's files are dictionaries of a class of their own."""


EasyDict.__module__ = "dnnlib.util"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def frozen() -> dict[str, Any]:
    with safe_open(str(DATA), framework="pt") as file:
        return json.loads(file.metadata()["about"])


def drawn(case: str) -> dict[str, Tensor]:
    """Weights by the golden files' recipe, with gains around 0.8 and times of some spread."""
    layout = frozen()["layouts"][case]
    weights = {name: value.reshape(layout[name]) for name, value in
               draw_weights({name: shape or [1] for name, shape in layout.items()}, 2).items()}  # fmt: skip
    gained = {name: value + 0.8 for name, value in weights.items() if name.endswith("gain")}
    return weights | gained | {name: 6 * value for name, value in weights.items() if name.startswith("emb_fourier")}


def pickle_of(path: Path, case: str, monkeypatch: pytest.MonkeyPatch | None = None, **changes: Any) -> Path:
    """A network pickle as EDM2's training writes it."""
    module: Any = Precond()
    module.unet = hold(drawn(case), UNet())
    module._init_kwargs = {"img_resolution": SIZE, "img_channels": 3, "use_fp16": True, **frozen()["cases"][case],
                           **changes}  # fmt: skip
    module.logvar_fourier = hold({"freqs": torch.zeros(3)}, nn.Module())
    path.write_bytes(pickle.dumps({"encoder": None, "loss_fn": None, "ema": module}))
    return path


@pytest.mark.parametrize("case", ["classes", "plain"])
def test_denoised_images_are_those_that_edm2_gave(case: str, tmp_path: Path) -> None:
    """From a pickle to the denoised image, with its preconditioning: D(x; sigma)."""
    model = load_diffusion(pickle_of(tmp_path / "edm2.pkl", case))
    assert config_from_dict(json.loads(json.dumps(model.manifest["net"]))) == model.net.config
    sigma = torch.tensor([0.7, 31.0], dtype=torch.float64)
    norm = (1 + sigma**2).sqrt()
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).double()
    x = (x * (sigma / norm)[:, None, None, None]).float()
    cond = {"y": torch.tensor([1, 9])} if case == "classes" else None
    with torch.no_grad():
        denoised = ChainDenoiser(model.net, model.process, "none")(x, Level(1 / norm, sigma / norm), cond).x0
    expected = load_file(DATA)[case]
    assert (denoised - expected).abs().max() < CLOSE * expected.abs().max()


def test_a_pickle_is_sampled_as_edm2_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pickle_of(tmp_path / "edm2.pkl", "classes")
    model = load_diffusion(file)
    assert (model.num_classes, model.null_class, model.weights) == (10, None, "ema")
    settings = SamplerConfig().resolved(model.process, model.advice)
    assert (settings.solver, settings.steps, settings.grid, settings.clip) == ("heun", "32", "karras", "none")
    words = ("--model", file, "--count", 1, "--class", 3, "--steps", 3, "--device", "cpu", "--out", tmp_path / "o")
    assert call("sample", *words) == 0
    capsys.readouterr()
    assert call("inspect", file) == 0
    assert "CC BY-NC-SA" in capsys.readouterr().out


def test_files_are_dictionaries_of_a_class_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "dnnlib", types.ModuleType("dnnlib"))
    monkeypatch.setitem(sys.modules, "dnnlib.util", types.ModuleType("dnnlib.util"))
    sys.modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    content = pickle.loads(pickle_of(tmp_path / "a.pkl", "classes").read_bytes())
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(EasyDict(content)))
    monkeypatch.undo()
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    assert load_diffusion(tmp_path / "b.pkl").digest == load_diffusion(tmp_path / "a.pkl").digest


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="latents of an autoencoder .4 channels.*use edm2-img64"):
        load_model(pickle_of(tmp_path / "a.pkl", "classes", img_channels=4))
    with pytest.raises(CheckpointError, match=r"unsupported settings: \['rotary'\]"):
        load_model(pickle_of(tmp_path / "b.pkl", "classes", rotary=True))
    with pytest.raises(CheckpointError, match="do not match its arguments, first"):
        load_model(pickle_of(tmp_path / "c.pkl", "classes", num_blocks=2))
    with pytest.raises(CheckpointError, match="EDM2 contains its own settings"):
        load_model(f"{pickle_of(tmp_path / 'd.pkl', 'classes')}@64x64_diffusion")
    with pytest.raises(ValueError, match="between 0 and 1"):
        EDM2UNetConfig(image_size=16, label_balance=1.5)


def test_operations_keep_magnitudes() -> None:
    """On normal numbers: what the network's name promises."""
    a, b = (torch.randn(4, 64, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def magnitude(x: Tensor) -> float:
        return float(x.square().mean().sqrt())

    assert magnitude(silu(a)) == pytest.approx(1, abs=0.01)
    assert magnitude(mixed(a, b, 0.3)) == pytest.approx(1, abs=0.01)
    both = joined(a, b[:, :16], 0.4)
    assert magnitude(both) == pytest.approx(1, abs=0.01)
    shares = both[:, :64].square().sum() / both[:, 64:].square().sum()
    assert float(shares) == pytest.approx((0.6 / 0.4) ** 2, rel=0.02)
    assert pixel_norm(7 * a).square().mean(1).sub(1).abs().max() < 1e-3
    weight = folded(torch.randn(8, 5, 3, 3), 2.0)
    torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.full((8,), 2.0), rtol=1e-3, atol=0)
