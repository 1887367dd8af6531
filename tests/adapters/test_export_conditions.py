"""Exports of models with conditions besides the class: graphs take them, formats of other programs refuse them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from support.export_models import SMALL
from undiffuse.adapters import export_diffusers, export_graph, export_openai
from undiffuse.adapters.exporting import call, example_inputs
from undiffuse.conditions import ImageCondition, ModelConditions, NumberCondition
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import DiffusionModel
from undiffuse.nets import UNetConfig
from undiffuse.training import seeded

DECLARED = ModelConditions(
    tags=("a", "b", "c"),
    numbers=NumberCondition(names=("age",), mean=(40.0,), std=(10.0,), low=(20.0,), high=(60.0,)),
    image=ImageCondition(channels=2),
)


def _model() -> DiffusionModel:
    fields: dict[str, Any] = {**SMALL, "image_size": 8, "channel_mult": (1,), "attention_resolutions": ()}
    with seeded(0):
        net = UNetConfig(**{**fields, "out_channels": 3}, **DECLARED.widths).build().eval()
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    process = ProcessConfig(schedule="cosine", steps=20, variance="fixed_small")
    return DiffusionModel(net=net, process=process, manifest={"conditions": DECLARED.to_dict()})


def test_a_graph_takes_the_conditions_and_says_how_they_are_normalised(tmp_path: Path) -> None:
    model = _model()
    export_graph.export_torch(model, tmp_path / "m.pt2")
    about = json.loads((tmp_path / "m.pt2.json").read_text()) if (tmp_path / "m.pt2.json").exists() else None
    about = about or json.loads(next(tmp_path.glob("*.json")).read_text())
    assert list(about["inputs"]) == ["x", "t", "tags", "numbers", "cond_image"]
    assert about["inputs"]["cond_image"]["shape"] == ["batch", 2, 8, 8]
    assert about["conditions"]["numbers"]["mean"] == [40.0]
    program = torch.export.load(tmp_path / "m.pt2")
    inputs = example_inputs(model, 3)
    with torch.no_grad():
        expected = call(model.net, inputs)
        found = program.module()(*inputs.values())
        assert torch.allclose(found, expected, atol=1e-4)
        inputs["numbers"][0] = float("nan")
        inputs["cond_image"][1] = float("nan")
        found, expected = program.module()(*inputs.values()), call(model.net, inputs)
        assert torch.allclose(found, expected, atol=1e-4), "not given, in the graph as in the network"


def test_formats_of_other_programs_cannot_express_conditions() -> None:
    for module in (export_openai, export_diffusers):
        assert any("conditioned on more than a class" in text for text in module.obstacles(_model())), module.__name__
