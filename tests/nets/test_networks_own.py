"""Networks that are not the library's own: trained, saved, loaded again, sampled, exported and estimated."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undiffuse import checkpoints
from undiffuse.adapters.export_diffusers import export_diffusers
from undiffuse.adapters.export_graph import export_torch
from undiffuse.adapters.export_openai import export_openai
from undiffuse.cli.inspect_model import describe_model
from undiffuse.data import ArraySource, DataConfig, ImageDataset
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.grids import grid
from undiffuse.models import DiffusionModel, load_classifier, load_diffusion, load_model, save_model
from undiffuse.nets import NetworkSpec, UNetConfig, conditions_of, describe, registry
from undiffuse.noise import NoiseSource
from undiffuse.objectives import ObjectiveConfig
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.solvers.registry import SOLVERS
from undiffuse.training import ClassifierTask, DiffusionTask, TrainConfig, seeded, train
from undiffuse.training.initialisation import initialise

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROCESS = ProcessConfig(steps=50, schedule="cosine", target="v", variance="fixed_small")


@pytest.fixture(autouse=True)
def registrations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has a registry of its own."""
    monkeypatch.setattr(registry, "_registered", {})
    yield


@pytest.fixture
def dit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, its architecture registered."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("dit", "shapes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("dit")


class Plain(nn.Module):
    """A network that says nothing of itself; the class is told by scores added to the image."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(65, 64), nn.Embedding(classes, 64)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (self.layer(torch.cat([x.flatten(1), t[:, None] / 50], dim=1)) + self.table(y)).view(x.shape)


def data(count: int = 32, side: int = 8, classes: int | None = 3) -> ImageDataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, side, side), dtype=np.uint8)
    if classes is None:
        source = ArraySource(images)
    else:
        source = ArraySource(images, np.arange(count) % classes, [f"class {i}" for i in range(classes)])
    return ImageDataset(source, DataConfig(path="memory", size=side, channels=1))


def trained(net: nn.Module, folder: Path, *, images: int = 32, **about: Any) -> Path:
    task = DiffusionTask(net, PROCESS, ObjectiveConfig(loss="simple"), **about)
    config = TrainConfig(images=images, batch=16, lr=1e-2, ema_decays=(0.5,), preview_every=16, preview_count=4)
    outcome = train(task, data(), config, folder)
    assert outcome.checkpoint is not None
    return outcome.checkpoint


@pytest.mark.parametrize("name", ["own_unet", "dit", "diffusers_unet"])
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    if name == "diffusers_unet" and importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("[4, 1, 16, 16]" in line for line in lines)


def test_the_example_with_diffusers_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SystemExit, match="pip install diffusers"):
        runpy.run_path(str(EXAMPLES / "diffusers_unet.py"), run_name="__main__")


def test_a_transformer_learns_the_variance_and_is_loaded_as_it_was_saved(dit: Any, tmp_path: Path) -> None:
    config = dit.DiTConfig(image_size=8, out_channels=2, num_classes=3, null_class=True, width=32, depth=1)
    process = replace(PROCESS, variance="learned_range")
    task = DiffusionTask(config.build(), process, ObjectiveConfig(loss="hybrid"), label_dropout=0.5)
    settings = TrainConfig(images=48, batch=16, lr=1e-2, ema_decays=(0.5,), preview_every=None)
    checkpoint = train(task, data(), settings, tmp_path / "run").checkpoint
    assert checkpoint is not None
    net = checkpoints.read_manifest(checkpoint)["net"]
    assert net["architecture"] == "example-dit"
    assert net["num_classes"] == 3
    model = load_model(checkpoint)
    assert isinstance(model, DiffusionModel)
    assert model.net.config == config
    assert (model.image_shape, model.num_classes, model.null_class) == ((1, 8, 8), 3, 3)
    assert model.net.positions.device.type == "cpu"  # a table that files do not hold
    with torch.no_grad():
        x, t, y = torch.ones(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 3])
        want = task.net(x, t, y)
        assert not torch.equal(model.net(x, t, y), want)  # the average
        assert torch.equal(load_diffusion(checkpoint, weights="net").net(x, t, y), want)
    save_model(tmp_path / "model.safetensors", model)
    assert load_diffusion(tmp_path / "model.safetensors").digest == model.digest
    assert "architecture 'example-dit'" in describe_model(tmp_path / "model.safetensors", "model")
    resumed = train(task, data(), replace(settings, images=64), tmp_path / "run")
    assert resumed.images == 64


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_every_solver_samples_any_network(solver: str, dit: Any) -> None:
    config = dit.DiTConfig(image_size=8, width=16, depth=1, heads=2)
    model = DiffusionModel(config.build(), PROCESS)
    with seeded(0):
        nn.init.normal_(model.net.out.weight, std=0.05)
    denoiser = model.denoiser(precision="fp32")
    spacing = SOLVERS[solver].grid if hasattr(SOLVERS[solver], "grid") else "chain"
    path = grid(denoiser.chain, "6", spacing)
    images = generate(denoiser, path, build_solver(solver), NoiseSource(0, range(2)), model.image_shape)
    assert images.shape == (2, 1, 8, 8)
    assert bool(images.isfinite().all())


def test_a_network_that_says_nothing_is_trained_and_loaded_into_another(tmp_path: Path) -> None:
    about: dict[str, Any] = {"image_shape": (1, 8, 8), "num_classes": 3}
    net = Plain()
    checkpoint = trained(net, tmp_path / "run", **about)
    assert (tmp_path / "run" / "previews").exists() or list((tmp_path / "run").glob("**/*.png"))
    with pytest.raises(checkpoints.CheckpointError) as caught:
        load_model(checkpoint)
    message = str(caught.value)
    assert "unknown architecture 'tests.nets.test_networks_own.Plain'" in message
    assert "register_network('tests.nets.test_networks_own.Plain', its_config_class)" in message
    assert "load_model(..., net=net)" in message
    assert "'tests.nets.test_networks_own.Plain', which is not registered" in " ".join(
        describe_model(checkpoint, "run").split()
    )
    model = load_diffusion(checkpoint, net=Plain(), weights="net")
    assert torch.equal(model.net.layer.weight, net.layer.weight)
    assert (model.image_shape, model.num_classes) == ((1, 8, 8), 3)
    path = model.process.chain().respaced("5")
    cond = {"y": torch.tensor([0, 2])}
    images = generate(
        model.denoiser(precision="fp32"), path, build_solver("ddim"), NoiseSource(0, [0, 1]), (1, 8, 8), cond=cond
    )
    other = generate(
        ChainDenoiser(net.eval(), PROCESS), path, build_solver("ddim"), NoiseSource(0, [0, 1]), (1, 8, 8), cond=cond
    )
    assert torch.allclose(images, other, atol=1e-5)
    save_model(tmp_path / "model.safetensors", model)
    assert load_diffusion(tmp_path / "model.safetensors", net=Plain()).num_classes == 3
    with pytest.raises(checkpoints.CheckpointError, match=r"not those of its network; table.weight is \(3, 64"):
        load_diffusion(checkpoint, net=Plain(classes=4))


def test_a_classifier_of_ones_own_is_trained_and_guides(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class JudgeConfig:
        image_size: int = 8
        in_channels: int = 1
        num_classes: int = 3

        def build(self) -> nn.Module:
            return Judge(self)

    class Judge(nn.Module):
        def __init__(self, config: JudgeConfig) -> None:
            super().__init__()
            self.config, self.layer = config, nn.Linear(64, config.num_classes)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(x.flatten(1))

    registry.register_network("judge", JudgeConfig)
    task = ClassifierTask(JudgeConfig().build(), PROCESS)
    config = TrainConfig(images=32, batch=16, ema_decays=(), preview_every=None)
    checkpoint = train(task, data(), config, tmp_path / "run").checkpoint
    assert checkpoint is not None
    judge = load_classifier(checkpoint)
    x, level = torch.ones(2, 1, 8, 8), judge.process.chain().level(3)
    gradient = judge.level_classifier(precision="fp32").gradient(x, level, torch.tensor([0, 1]))
    assert gradient.abs().sum() > 0


def test_buffers_come_with_averages(tmp_path: Path) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(self.norm(x))

    net = Normalised()
    task = DiffusionTask(net, PROCESS, ObjectiveConfig(loss="simple"), image_shape=(1, 8, 8))
    config = TrainConfig(images=32, batch=16, ema_decays=(0.5,), preview_every=None)
    checkpoint = train(task, data(classes=None), config, tmp_path / "run").checkpoint
    assert checkpoint is not None
    model = load_diffusion(checkpoint, net=Normalised())
    assert model.weights == "0.5"
    assert torch.equal(model.net.norm.running_mean, net.norm.running_mean)
    assert int(model.net.norm.num_batches_tracked) == 2


def test_tied_parameters_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
            self.last.weight = self.first.weight

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.last(self.first(x.flatten(1))).view(x.shape)

    net = Tied()
    task = DiffusionTask(net, PROCESS, ObjectiveConfig(loss="simple"), image_shape=(1, 8, 8))
    config = TrainConfig(images=32, batch=16, lr=1e-2, ema_decays=(0.5,), preview_every=None)
    checkpoint = train(task, data(classes=None), config, tmp_path / "run").checkpoint
    assert checkpoint is not None
    average, last = load_diffusion(checkpoint, net=Tied()), load_diffusion(checkpoint, net=Tied(), weights="net")
    assert torch.equal(last.net.first.weight, net.first.weight)
    assert not torch.equal(average.net.first.weight, net.first.weight)
    assert all(model.net.first.weight is model.net.last.weight for model in (average, last))
    save_model(tmp_path / "model.safetensors", average)
    assert load_diffusion(tmp_path / "model.safetensors", net=Tied()).digest == average.digest


def test_export_writes_what_it_can_and_says_why_else(dit: Any, tmp_path: Path) -> None:
    config = dit.DiTConfig(image_size=8, num_classes=3, width=16, depth=1, heads=2)
    model = DiffusionModel(config.build(), PROCESS)
    with seeded(0):
        nn.init.normal_(model.net.out.weight, std=0.05)
    model.net.eval().requires_grad_(False)
    assert export_torch(model, tmp_path / "dit.pt2").difference < 1e-4
    for export, name in ((export_openai, "dit.pt"), (export_diffusers, "dit")):
        with pytest.raises(ValueError, match="cannot express this model: its network(, a DiT, is not one| is a DiT)"):
            export(model, tmp_path / name)

    class Undecided(nn.Module):
        spec = NetworkSpec(size=(8, 8), in_channels=1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ValueError, match="torch.export cannot trace the network Undecided"):
        export_torch(DiffusionModel(Undecided(), PROCESS), tmp_path / "other.pt2")


def test_weights_begin_a_training_of_the_same_network(dit: Any) -> None:
    config = dit.DiTConfig(image_size=8, width=16, depth=1, heads=2)
    model = DiffusionModel(config.build(), PROCESS)
    with seeded(0):
        nn.init.normal_(model.net.out.weight)
    net = config.build()
    report = initialise(net, model, PROCESS)
    assert torch.equal(net.out.weight, model.net.out.weight)
    assert report.loaded[0] == len(net.state_dict())
    with pytest.raises(ValueError, match="not those of this network"):
        initialise(replace(config, width=32).build(), model, PROCESS)


def test_what_a_network_is_for_is_read_in_one_place() -> None:
    spec = describe(UNetConfig(image_size=(8, 16), in_channels=1, out_channels=2, num_classes=4, null_class=True))
    assert spec == NetworkSpec(size=(8, 16), in_channels=1, out_channels=2, num_classes=4, null_class=True)
    assert (spec.image_shape, spec.null_index) == ((1, 8, 16), 4)
    assert describe(spec.to_dict()) == spec
    assert describe(spec) == spec
    assert describe(Plain(), image_shape=(1, 8, 8), num_classes=3) == NetworkSpec(
        size=(8, 8), in_channels=1, num_classes=3
    )
    assert describe({"image_size": 8, "in_channels": 3}, num_classes=5).num_classes == 5
    assert conditions_of(Plain()) == {"y"}
    assert conditions_of(lambda x, t: x) == frozenset()
    with pytest.raises(ValueError, match="Plain does not say which images it is for: pass image_shape="):
        describe(Plain())
    with pytest.raises(ValueError, match="num_classes=5 was given, but the network says None"):
        describe(UNetConfig(), num_classes=5)
    with pytest.raises(ValueError, match="does not accept the condition 'y'"):
        DiffusionTask(nn.Identity(), PROCESS, ObjectiveConfig(loss="simple"), image_shape=(1, 8, 8), num_classes=3)


def test_mistakes_in_registering_are_noticed() -> None:
    with pytest.raises(ValueError, match="cannot be called 'ddpm'"):
        registry.register_network("ddpm", Plain)
    registry.register_network("plain", Plain)
    registry.register_network("plain", Plain)  # a cell of a notebook, run again
    with pytest.raises(ValueError, match="already registered, for tests.nets.test_networks_own.Plain"):
        registry.register_network("plain", UNetConfig)
    with pytest.raises(ValueError, match="must have a config"):
        DiffusionTask(Plain(), PROCESS, ObjectiveConfig(loss="simple"), image_shape=(1, 8, 8))

    class Forgetful(nn.Module):
        """Its config does not say its width."""

        def __init__(self, width: int = 2) -> None:
            super().__init__()
            self.config = {"image_size": 8, "in_channels": 1}
            self.layer = nn.Conv2d(1, width, 1)

    registry.register_network("forgetful", lambda image_size, in_channels: Forgetful())
    net = Forgetful(3)
    net.architecture = "forgetful"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="builds another network: layer.bias differs"):
        DiffusionTask(net, PROCESS, ObjectiveConfig(loss="simple"))
    net = Forgetful(2)
    net.architecture = "forgetful"  # type: ignore[assignment]
    DiffusionTask(net, PROCESS, ObjectiveConfig(loss="simple"))
    net.config["when"] = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="JSON cannot express"):
        DiffusionTask(net, PROCESS, ObjectiveConfig(loss="simple"))


PACKAGE = """
from dataclasses import dataclass
import torch
@dataclass(frozen=True)
class Config:
    image_size: int = 8
    in_channels: int = 1
    def build(self):
        net = torch.nn.Conv2d(1, 1, 1)
        net.config = self
        return net
"""


def test_packages_offer_architectures_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_nets.py").write_text(PACKAGE)
    (tmp_path / "some_other_nets.py").write_text("raise AssertionError('loaded, although nobody needs it')")
    about = tmp_path / "some_nets-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-nets\nVersion: 1.0\n")
    points = "[undiffuse.networks]\nsome-net = some_nets:Config\nother-net = some_other_nets:Config\n"
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = registry.config_from_dict({"architecture": "some-net", "image_size": 16, "in_channels": 1})
    assert describe(config).size == (16, 16)
    registry._registered.clear()
    assert registry.config_to_dict(config.build()) == {"architecture": "some-net", "image_size": 16, "in_channels": 1}
    with pytest.raises(registry.UnknownArchitecture, match="third-net"):
        registry.config_from_dict({"architecture": "third-net"})
