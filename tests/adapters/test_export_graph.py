"""Networks as graphs for torch.export and ONNX, and that the JSON beside them is all one needs to sample."""

from __future__ import annotations

import importlib.util
import json
from math import exp, inf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.export_models import SMALL, model
from tests.nets.test_prepared_networks import CONFIGS
from undiffuse.adapters import export_graph as out
from undiffuse.denoiser import ProcessConfig
from undiffuse.grids import grid
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.noise import NoiseSource
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM, DDPM
from undiffuse.solvers.consistency import Consistency

TINY: dict[str, Any] = {**SMALL, "image_size": 8, "channel_mult": (1,), "attention_resolutions": ()}
CONDITIONAL = UNetConfig(**{**TINY, "out_channels": 6}, num_classes=3, use_scale_shift_norm=True)
PROCESS = ProcessConfig(schedule="cosine", steps=40, rescale_timesteps=True)


def log(value: float) -> float:
    return float(np.log(value)) if value > 0 else -inf


def walk(about: dict[str, Any], network: Any, x: np.ndarray, steps: list[int], kind: str, draw: Any) -> np.ndarray:
    """Sampling by the JSON alone: its lines are Python, executed as they stand."""
    lines, abar = about["step"], about["abar"]
    order = ["x0", "ddim"] if kind == "ddim" else ["x0", "beta", "small", "mean", "ancestral"]
    for k, j in zip(steps, [*steps[1:], -1], strict=True):
        output = network(x, k * about["time_scale"])
        half = output.shape[1] // 2
        out_, v = (output[:, :half], output[:, half:]) if "second half" in lines["split"] else (output, None)
        names: dict[str, Any] = {
            "x": x, "out": out_, "v": v, "k": k, "j": j, "abar": abar, "sqrt": sqrt, "log": log, "clip": np.clip,
            "exp": np.exp if v is not None and "v" in lines["ancestral"] else exp, "normal": draw,
        }  # fmt: skip
        with np.errstate(invalid="ignore"):
            for name in order:
                exec(lines[name], {}, names)
        x = names["x"]
    return x


def run_net(given: Any) -> Any:
    def network(x: np.ndarray, t: float) -> np.ndarray:
        with torch.no_grad():
            return given.net(torch.from_numpy(x).float(), torch.full((len(x),), t)).double().numpy()

    return network


@pytest.mark.parametrize("variance", ["learned_range", "learned", "fixed_large", "fixed_small"])
@pytest.mark.parametrize("target", ["eps", "x0", "v", "previous_mean"])
def test_a_step_by_the_json_is_ours(target: str, variance: str) -> None:
    """For whatever a network predicts: DDIM and ancestral sampling, with the same noise."""
    channels = 6 if variance in ("learned_range", "learned") else 3
    adjacent = variance == "learned" or target == "previous_mean"  # in steps of one, and few: each magnifies rounding
    total = 6 if adjacent else 40
    process = ProcessConfig(schedule="cosine", steps=total, target=target, variance=variance, rescale_timesteps=True)
    given = model(UNetConfig(**{**TINY, "out_channels": channels}), process)
    about = json.loads(json.dumps(out.instructions(given)))
    assert len(about["abar"]) == total + 1
    assert about["step"]["begin"].startswith(f"x = normal numbers, k = {total - 1};")
    steps = list(range(total - 1, -1, -1)) if adjacent else [39, 20, 5, 0]
    chain = process.chain().respaced(sorted(steps))
    noise = NoiseSource(1, [0, 1])
    start = noise.normal((3, 8, 8), 0, "x_T")
    for kind, solver in (("ddim", DDIM()), ("ddpm", DDPM())):
        drawn = iter(noise.normal((3, 8, 8), step, "step").double().numpy() for step in range(len(steps)))
        theirs = walk(about, run_net(given), start.double().numpy(), steps, kind, lambda drawn=drawn: next(drawn))
        ours = generate(given.denoiser(), chain, solver, noise, (3, 8, 8)).double().numpy()
        assert np.abs(theirs - ours).max() < 2e-4 * max(1.0, np.abs(ours).max()), kind


CONTINUOUS = {
    "edm": {"target": "edm", "sigma_data": 0.6},
    "consistency": {"preconditioning": "edm", "target": "consistency", "time_factor": 250.0},
    "edm of v": {"preconditioning": "edm", "target": "v"},
    "flow": {"target": "velocity"},
    "ve": {"target": "score", "sigma_min": 0.02, "sigma_max": 100.0},
    "vp": {"target": "eps"},
    "subvp": {"target": "eps", "beta_min": 0.2, "beta_max": 15.0},
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_step_by_the_json_at_continuous_levels(name: str) -> None:
    """Euler's method, or consistency sampling, with the lines of the JSON as they stand."""
    import math

    process = ProcessConfig(**{"preconditioning": name, "variance": "fixed_small", "steps": 40, **CONTINUOUS[name]})
    given = model(UNetConfig(**TINY), process)
    about = json.loads(json.dumps(out.instructions(given)))
    assert about["inputs"]["x"]["what"] == "`seen` of `step`"
    assert "abar" not in about
    lines = about["step"]
    path = grid(process.chain(), "4", "karras:from=-6,to=5")
    levels = [path.transition(k).source for k in range(3, -1, -1)]
    noises = [float(level.sigma / level.alpha) for level in levels]
    noise = NoiseSource(1, [0, 1])
    start = noise.normal((3, 8, 8), 0, "x_T")
    drawn = iter(noise.normal((3, 8, 8), step, "step").double().numpy() for step in range(4))
    x = start.double().numpy() / float(levels[0].alpha)
    names: dict[str, Any] = {n: getattr(math, n) for n in ("sqrt", "log", "exp", "asinh")}
    names |= {"x": x, "normal": lambda: next(drawn)}
    exec(lines["constants"], names)
    for s, r in zip(noises, [*noises[1:], 0.0], strict=True):
        names |= {"s": s, "r": r}
        exec(lines["input"], names)
        names["out"] = run_net(given)(names["seen"], names["t"])
        exec(lines["x0"], names)
        exec(lines["step"], names)
    solver = Consistency() if name == "consistency" else DDIM()
    ours = generate(given.denoiser("none"), path, solver, noise, (3, 8, 8), x_T=start).double().numpy()
    assert np.abs(names["x"] - ours).max() < 2e-4 * max(1.0, np.abs(ours).max())


def test_the_json_describes_inputs_and_output() -> None:
    upsampler = out.instructions(model(UNetConfig(**TINY, num_classes=3, null_class=True, super_resolution=True)))
    assert list(upsampler["inputs"]) == ["x", "t", "y", "low_res"]
    assert upsampler["inputs"]["x"]["shape"] == upsampler["output"]["shape"] == ["batch", 3, 8, 8]
    assert upsampler["inputs"]["low_res"]["shape"] == ["batch", 3, "low_height", "low_width"]
    assert (upsampler["num_classes"], upsampler["null_class"]) == (3, 3)
    classifier = out.instructions(
        model(ClassifierConfig(**{**TINY, "out_channels": 5}, pool="adaptive"), labels="abcde")
    )
    assert (classifier["kind"], classifier["output"]["shape"]) == ("classifier", ["batch", 5])
    assert classifier["classes"] == list("abcde")
    assert "step" not in classifier
    assert out.instructions(model(CONDITIONAL, PROCESS))["time_scale"] == 25.0


def test_torch_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaded program computes what the network does for other numbers of images, and samples with the JSON."""
    given = model(CONDITIONAL, PROCESS)
    done = out.export_torch(given, tmp_path / "m.pt2")
    assert done.difference < 1e-6
    program = torch.export.load(tmp_path / "m.pt2").module()
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for count in (1, 5):
        t, y = torch.linspace(0, 975, count), torch.arange(count) % 3
        torch.testing.assert_close(program(x[:count], t, y), given.net(x[:count], t, y), rtol=1e-5, atol=1e-5)
    about = json.loads((tmp_path / "m.pt2.json").read_text())
    assert_samples(about, given, lambda x, t, y: program(x, t, y))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(done.usage, names)
    assert names["out"].shape == (4, 6, 8, 8)
    assert names["t"].tolist() == [975.0] * 4


PROCESSES: dict[str, ProcessConfig] = {
    "ncsn++": ProcessConfig(preconditioning="ve", target="score", variance="fixed_small"),
    "edm2": ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small"),
    "unet2d skips": ProcessConfig(preconditioning="ve", target="score", variance="fixed_small"),
    "rms": ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small"),
}


LATER = [pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in ("adm", "ddpm")]


@pytest.mark.parametrize("name", ["adm", "ddpm", *LATER])
def test_every_architecture_becomes_a_program(name: str, tmp_path: Path) -> None:
    """With a dynamic batch: checked with another number of images than it was traced with, and with one."""
    given = model(CONFIGS[name], PROCESSES.get(name, ProcessConfig(variance="fixed_large")))
    assert out.export_torch(given, tmp_path / "m.pt2").difference < 1e-5
    program = torch.export.load(tmp_path / "m.pt2").module()
    x, t = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0])
    with torch.no_grad():
        torch.testing.assert_close(program(x, t), given.net(x, t), rtol=1e-4, atol=1e-4)
    if all(importlib.util.find_spec(package) for package in out.ONNX_PACKAGES):
        assert out.export_onnx(given, tmp_path / "m.onnx").difference < 1e-4


def assert_samples(about: dict[str, Any], given: Any, program: Any) -> None:
    """Four DDIM steps with the graph and the JSON end where ours end."""
    y = torch.tensor([0, 2])
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))

    def network(x: np.ndarray, t: float) -> np.ndarray:
        return np.asarray(program(torch.from_numpy(x).float(), torch.full((2,), t), y)).astype("float64")

    theirs = walk(about, network, start.double().numpy(), [39, 25, 10, 0], "ddim", None)
    chain = given.process.chain().respaced([0, 10, 25, 39])
    noise = NoiseSource(0, range(2))
    ours = generate(given.denoiser(), chain, DDIM(), noise, (3, 8, 8), cond={"y": y}, x_T=start).double().numpy()
    assert np.abs(theirs - ours).max() < 1e-3


def test_a_classifiers_program_has_gradients(tmp_path: Path) -> None:
    """Guidance differentiates the scores by the image."""
    given = model(ClassifierConfig(**{**TINY, "out_channels": 4}, num_head_channels=16))
    done = out.export_torch(given, tmp_path / "m.pt2")
    assert done.difference < 1e-6
    assert "scores of 4 classes" in done.usage
    program = torch.export.load(tmp_path / "m.pt2").module()
    x, t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 500.0, 900.0])
    gradients = []
    for net in (program, given.net):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(net(leaf, t).log_softmax(-1)[:, 2].sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


ONNX = {
    "conditional": (CONDITIONAL, PROCESS),
    "upsampler with attention": (
        UNetConfig(**{**SMALL, "image_size": (16, 8)}, super_resolution=True, resblock_updown=True), None),
    "ddpm": (DDPMConfig(**{**SMALL, "image_size": 8}), None),
    "classifier": (ClassifierConfig(**{**SMALL, "out_channels": 4}, num_head_channels=16), None),
}  # fmt: skip


@pytest.mark.parametrize("case", ONNX)
def test_onnx(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime computes what the network does, for any number of images, and samples with the JSON."""
    for name in out.ONNX_PACKAGES:
        pytest.importorskip(name, reason="an extra: undiffuse[onnx]")
    import onnxruntime

    config, process = ONNX[case]
    given = model(config, process)
    done = out.export_onnx(given, tmp_path / "m.onnx")
    assert done.difference < 1e-5
    assert bool(done.notes) == (case == "classifier")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    about = json.loads((tmp_path / "m.onnx.json").read_text())
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes == {name: told["shape"] for name, told in about["inputs"].items()}
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("output", about["output"]["shape"])]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(done.usage, names)
    assert names["out"].shape[0] == 4
    if case == "conditional":

        def program(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> Any:
            return session.run(None, {"x": x.numpy(), "t": t.numpy(), "y": y.numpy()})[0]

        assert_samples(about, given, program)


def test_large_onnx_weights_lie_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocol buffers hold at most 2 GiB: beyond that the weights are a file of their own."""
    for name in out.ONNX_PACKAGES:
        pytest.importorskip(name, reason="an extra: undiffuse[onnx]")
    monkeypatch.setattr(out, "EXTERNAL", 1000)
    given = model(UNetConfig(**TINY))
    out.export_onnx(given, tmp_path / "m.onnx")
    numbers = sum(value.numel() for value in given.net.state_dict().values())
    assert (tmp_path / "m.onnx.data").stat().st_size > 0.9 * 4 * numbers > (tmp_path / "m.onnx").stat().st_size


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"ONNX export requires onnxscript: pip install 'undiffuse\[onnx\]'"):
        out.export_onnx(model(UNetConfig(**TINY)), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
