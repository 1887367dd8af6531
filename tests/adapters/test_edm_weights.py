"""Network pickles of EDM: numbers frozen from its own code, and pickles with its classes' names read as data."""

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
from support.foreign_files import layout_of
from support.golden_files import draw_weights
from undiffuse.adapters import edm_weights, pickled
from undiffuse.checkpoints import CheckpointError
from undiffuse.config.sampler import SamplerConfig
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.models import load_diffusion, load_model
from undiffuse.nets import EDMUNetConfig, config_from_dict
from undiffuse.noise_levels import Level
from undiffuse.pipelines import Pipeline

DATA = Path(__file__).parents[1] / "data" / "edm_unet.safetensors"
OTHERS = DATA.with_name("edm_preconditionings.safetensors")
CLOSE = 1e-5
SIZE = 16
CASES: dict[str, dict[str, Any]] = {
    "ddpmpp": {"model_type": "SongUNet", "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 2,
               "attn_resolutions": [8], "augment_dim": 9},
    "ncsnpp": {"model_type": "SongUNet", "model_channels": 32, "channel_mult": [1, 2, 2], "num_blocks": 1,
               "attn_resolutions": [8], "embedding_type": "fourier", "channel_mult_noise": 2,
               "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    "classes": {"model_type": "SongUNet", "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1,
                "attn_resolutions": [16], "label_dim": 10, "label_dropout": 0.1},
    "adm": {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1,
            "attn_resolutions": [8], "label_dim": 10, "augment_dim": 9},
}  # fmt: skip


class Module(nn.Module):
    """An object with a network's weights by their names; what counts is the name of its class in the pickle."""


_NAMES = ("EDMPrecond", "SongUNet", "DhariwalUNet", "VPPrecond", "VEPrecond", "iDDPMPrecond", "OtherPrecond")
EDMPrecond, SongUNet, DhariwalUNet, VPPrecond, VEPrecond, iDDPMPrecond, OtherPrecond = (
    type(name, (Module,), {"__module__": __name__}) for name in _NAMES
)


def hold(state: dict[str, Tensor], root: nn.Module) -> nn.Module:
    """Put weights into a tree of modules."""
    for name, value in state.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, Module())
            at = at._modules[part]  # type: ignore[assignment]
        at.register_parameter(last, nn.Parameter(value, requires_grad=False))
    return root


def pickle_of(path: Path, arguments: dict[str, Any], state: dict[str, Tensor], outer: Any = None) -> Path:
    """A network pickle as EDM's training writes it."""
    arguments = dict(arguments)
    kind, classes = arguments.pop("model_type"), arguments.pop("label_dim", 0)
    inner = hold(state, {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[kind]())
    inner._init_kwargs = {  # type: ignore[assignment]
        "img_resolution": SIZE, "in_channels": 3, "out_channels": 3, "label_dim": classes, **arguments,
    }  # fmt: skip
    module = (outer or EDMPrecond)()
    module.model, module.sigma_data, module.img_channels = inner, 0.5, 3
    if isinstance(module, iDDPMPrecond):
        module.register_buffer("u", noise_table())
    path.write_bytes(pickle.dumps({"ema": module, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {}}))
    return path


def frozen(path: Path = DATA) -> dict[str, Any]:
    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["about"])


def inputs(case: str) -> dict[str, Tensor]:
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    given = {"x": x, "sigma": torch.tensor([0.7, 31.0])}
    return {**given, "y": torch.tensor([1, 9])} if CASES[case].get("label_dim") else given


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("case", CASES)
def test_denoised_images_are_those_that_edm_gave(case: str, tmp_path: Path) -> None:
    """From a pickle to the denoised image, with EDM's preconditioning: D(x; sigma)."""
    layout = frozen()["layouts"][case]
    file = pickle_of(tmp_path / "edm.pkl", CASES[case], draw_weights(layout, 2))
    model = load_diffusion(file)
    assert config_from_dict(json.loads(json.dumps(model.manifest["net"]))) == model.net.config
    given = inputs(case)
    sigma = given["sigma"].double()
    norm = (1 + sigma**2).sqrt()
    level = Level(1 / norm, sigma / norm)
    x = (given["x"].double() * sigma[:, None, None, None] / norm[:, None, None, None]).float()
    cond = {"y": given["y"]} if "y" in given else None
    with torch.no_grad():
        denoised = ChainDenoiser(model.net, model.process, "none")(x, level, cond).x0
    expected = load_file(DATA)[case]
    assert (denoised - expected).abs().max() < CLOSE * expected.abs().max()


def noise_table() -> Tensor:
    """The levels of Improved DDPM as sigma / alpha in EDM (table 1), the noisiest first and a final 0."""
    bar = (0.5 * torch.pi * torch.arange(1001) / 1000 / 1.008).sin() ** 2
    u = torch.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (bar[j - 1] / bar[j]).clip(min=0.001) - 1).sqrt()
    return u


@pytest.mark.parametrize("case", ["vp ddpmpp", "ve ncsnpp", "ve ddpmpp", "iddpm adm"])
def test_baselines_denoise_as_in_edm(case: str, tmp_path: Path) -> None:
    """The preconditionings of the paper's baselines: numbers frozen from its own code."""
    about, expected = frozen(OTHERS), load_file(OTHERS)
    outer, arguments = about["cases"][case]
    state = draw_weights(about["layouts"][case], 2)
    model = load_diffusion(pickle_of(tmp_path / "edm.pkl", arguments, state, globals()[outer]))
    sigma = expected[f"{case}.sigma"].double()
    norm = (1 + sigma**2).sqrt()[:, None, None, None]
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).double() * sigma[:, None, None, None]
    cond = {"y": torch.tensor([1, 9])} if arguments.get("label_dim") else None
    level = Level(1 / norm.flatten(), sigma / norm.flatten())
    with torch.no_grad():
        denoised = ChainDenoiser(model.net, model.process, "none")((x / norm).float(), level, cond).x0
    assert (denoised - expected[case]).abs().max() < CLOSE * expected[case].abs().max()
    ends = {"vp ddpmpp": (0.002, 80), "iddpm adm": (0.0064, 80)}.get(case, (0.02, 80))
    path = Pipeline.load(SamplerConfig(), "cpu", model=model).path
    for step, end in zip((path.steps - 1, 0), (ends[1], ends[0]), strict=True):
        at = path.transition(step).source
        assert float(at.sigma / at.alpha) == pytest.approx(end, rel=0.01)


def test_who_froze_the_numbers() -> None:
    assert frozen()["cases"] == CASES


def test_a_pickle_is_sampled_as_edm_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pickle_of(tmp_path / "edm.pkl", CASES["classes"], draw_weights(frozen()["layouts"]["classes"], 2))
    model = load_diffusion(file)
    assert (model.num_classes, model.null_class, model.weights) == (10, 10, "ema")
    settings = SamplerConfig().resolved(model.process, model.advice)
    assert (settings.solver, settings.steps, settings.grid, settings.clip) == ("heun", "18", "karras", "none")
    words = ("--model", file, "--count", 1, "--class", 3, "--steps", 3, "--device", "cpu", "--out", tmp_path / "o")
    assert call("sample", *words) == 0
    capsys.readouterr()
    assert call("inspect", file) == 0
    assert "CC BY-NC-SA" in capsys.readouterr().out


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    weights = draw_weights(frozen()["layouts"]["ddpmpp"], 2)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"ema": hold({}, OtherPrecond())}))
    with pytest.raises(CheckpointError, match="no weights of a known"):
        load_model(path)
    outer = pickle_of(path, CASES["ddpmpp"], weights, VPPrecond)
    assert load_diffusion(outer).process.preconditioning == "vp"
    module = pickle.loads(outer.read_bytes())
    module["ema"].M = 500
    path.write_bytes(pickle.dumps(module))
    with pytest.raises(CheckpointError, match="M = 500 timesteps"):
        load_model(path)
    with pytest.raises(CheckpointError, match="unsupported settings.*decoder_type"):
        load_model(pickle_of(tmp_path / "b.pkl", {**CASES["ddpmpp"], "decoder_type": "skip"}, weights))
    with pytest.raises(CheckpointError, match="weights do not match its SongUNet arguments"):
        load_model(pickle_of(tmp_path / "c.pkl", {**CASES["ddpmpp"], "num_blocks": 3}, weights))
    file = pickle_of(tmp_path / "d.pkl", CASES["ddpmpp"], weights)
    with pytest.raises(CheckpointError, match="has no weights 'net'; it has: ema"):
        load_model(file, weights="net")
    with pytest.raises(CheckpointError, match="contains its own settings"):
        load_model(f"{file}@64x64_diffusion")


def test_persistent_objects_are_read(tmp_path: Path) -> None:
    """NVIDIA's own classes are saved by a call with all their source code; the attributes lie in its argument."""

    class Persistent:
        def __init__(self, kind: str, state: dict[str, Any]) -> None:
            self.kind, self.state = kind, state

        def __reduce__(self) -> Any:
            about = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": self.kind,
                     "state": self.state}  # fmt: skip
            return _reconstruct_persistent_obj, (about,)

    case = CASES["ddpmpp"]
    file = pickle_of(tmp_path / "x.pkl", case, draw_weights(frozen()["layouts"]["ddpmpp"], 2))
    made = pickle.loads(file.read_bytes())
    inner = Persistent("SongUNet", made["ema"].model.__dict__)
    outer = Persistent("EDMPrecond", {"sigma_data": 0.5, "img_channels": 3, "_modules": {"model": inner}})
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps({"ema": outer}))
    read = pickled.read(path)
    assert isinstance(read["ema"], pickled.Inert)
    assert isinstance(load_diffusion(path).net.config, EDMUNetConfig)


def _reconstruct_persistent_obj(about: Any) -> Any:
    raise AssertionError("nobody calls this")


def test_advice_for_larger_images() -> None:
    assert edm_weights.advice(EDMUNetConfig(image_size=64), ProcessConfig()).steps == "40"
    assert layout_of(EDMUNetConfig(image_size=16, channel_mult=(1,), num_res_blocks=1))["enc.16x16_conv.weight"]
