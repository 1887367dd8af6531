"""Small networks of OpenAI's code as the files that people have, and registry entries for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from support.golden_files import draw_weights
from undiffuse.adapters.published import Published
from undiffuse.config.advice import advice

DIFFUSION = Published(
    name="tiny_diffusion",
    file="tiny_diffusion.pt",
    family="guided-diffusion",
    data="ImageNet",
    parameters=1,
    flags={
        "image_size": 32,
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": "1,2",
        "attention_resolutions": "16",
        "num_head_channels": 16,
        "class_cond": True,
        "learn_sigma": True,
        "resblock_updown": True,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
        "diffusion_steps": 20,
    },
    url="http://127.0.0.1:9/tiny_diffusion.pt",
    page="http://127.0.0.1:9/",
    licence="of the tests",
    paper="none",
    sampling=advice("3", guidance=1.0, classifier="tiny_classifier"),
)
CLASSIFIER = Published(
    name="tiny_classifier",
    file="tiny_classifier.pt",
    family="guided-diffusion classifier",
    data="ImageNet",
    parameters=1,
    flags={
        "image_size": 32,
        "classifier_width": 64,
        "classifier_depth": 1,
        "classifier_attention_resolutions": "8",
    },
    schedule="cosine",
    url="http://127.0.0.1:9/tiny_classifier.pt",
    page="http://127.0.0.1:9/",
    licence="of the tests",
    paper="none",
)


def layout_of(config: Any) -> dict[str, list[int]]:
    """Names and shapes of a network's weights."""
    with torch.device("meta"):
        return {name: list(value.shape) for name, value in config.build().state_dict().items()}


def weights_of(entry: Published, seed: int = 5) -> dict[str, torch.Tensor]:
    """Weights for the network of an entry, by the golden recipe."""
    return draw_weights(layout_of(entry.net), seed)


def with_planes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as consistency_models writes them: attention's projections are 1x1 convolutions of images."""
    ends = (".qkv.weight", ".proj_out.weight")
    return {name: value.unsqueeze(-1) if name.endswith(ends) else value for name, value in weights.items()}


def write(path: Path, content: Any, legacy: bool = False) -> Path:
    """A file as `torch.save` writes it, or as it did before 2020."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def outputs(net: torch.nn.Module, classes: int | None = None, size: int = 32) -> torch.Tensor:
    """What a network says of fixed inputs."""
    x = torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)
    more: Mapping[str, torch.Tensor] = {} if classes is None else {"y": torch.tensor([1, classes - 1])}
    with torch.no_grad():
        return net(x, torch.tensor([3.25, 11.0]), **more)


class Malicious:
    """What an attacker would save: opening it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"echo > {self.mark}",)
