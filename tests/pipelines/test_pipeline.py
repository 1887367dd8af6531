"""`Pipeline.from_pretrained`: from names, files and models in memory; how models and pipelines print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undiffuse.denoiser import ProcessConfig
from undiffuse.models import DiffusionModel, load_diffusion, save_model
from undiffuse.nets import NetworkSpec
from undiffuse.pipelines import Pipeline
from undiffuse.util.errors import ConfigError

MODEL = "fashion-mnist-32"


class Plain(nn.Module):
    """A network of an architecture that is not registered."""

    config = {"image_size": 8, "in_channels": 1, "out_channels": 1}

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x)


def test_a_model_in_memory_gives_the_same_images() -> None:
    model = load_diffusion(MODEL)
    ours = Pipeline.from_pretrained(model, solver="ddim", steps=2).sample(2, classes="dress", seed=3)
    named = Pipeline.from_pretrained(MODEL, solver="ddim", steps=2).sample(2, classes="dress", seed=3)
    assert (ours.images == named.images).all()
    assert ours.run["model"] == named.run["model"]


def test_a_model_in_memory_has_its_weights_already() -> None:
    model = load_diffusion(MODEL)
    assert Pipeline.from_pretrained(model, weights=model.weights, steps=2).model is model
    with pytest.raises(ConfigError, match="^weights cannot be chosen for a model in memory"):
        Pipeline.from_pretrained(model, weights="net")
    with pytest.raises(ConfigError, match="^net cannot be chosen for a model in memory"):
        Pipeline.from_pretrained(model, net=model.net)


@pytest.mark.parametrize("what", [Plain, Plain(), 3], ids=["class", "network", "number"])
def test_what_is_no_model_is_refused(what: Any) -> None:
    with pytest.raises(ConfigError, match="^model: expected a file, a name or a DiffusionModel"):
        Pipeline.from_pretrained(what)


def test_a_file_of_another_architecture_takes_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Plain()
    save_model(tmp_path / "plain.safetensors", DiffusionModel(net, ProcessConfig(variance="fixed_small")))
    pipeline = Pipeline.from_pretrained(tmp_path / "plain.safetensors", net=Plain(), solver="ddim", steps=3)
    expected = Pipeline.from_pretrained(
        DiffusionModel(net, ProcessConfig(variance="fixed_small")), solver="ddim", steps=3
    )
    assert (pipeline.sample(1).images == expected.sample(1).images).all()


def test_models_print_in_one_line() -> None:
    assert repr(load_diffusion(MODEL)) == (
        "DiffusionModel(UNet of 2.73M parameters, 1x32x32, 10 classes, weights '0.999')"
    )
    spec = NetworkSpec(size=(8, 12), in_channels=3)
    assert repr(DiffusionModel(nn.Conv2d(3, 3, 1), ProcessConfig(), net_spec=spec)) == (
        "DiffusionModel(Conv2d of 1.2e-05M parameters, 3x8x12, weights 'net')"
    )
    assert "images of any shape" in repr(DiffusionModel(nn.Conv2d(3, 3, 1), ProcessConfig()))
    assert repr(Pipeline.from_pretrained(load_diffusion(MODEL), steps=2)).startswith("Pipeline(a model in memory, ")
