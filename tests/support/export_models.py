"""Small models with random weights for the tests of the ways out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from support.golden_files import draw_weights
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import ClassifierModel, DiffusionModel
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig

SMALL: dict[str, Any] = {
    "image_size": 16, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,),
}  # fmt: skip


def model(
    config: UNetConfig | DDPMConfig | ClassifierConfig,
    process: ProcessConfig | None = None,
    labels: Sequence[str] | None = None,
    **manifest: Any,
) -> Any:
    """A model of `config` with weights drawn by the golden files' recipe, as `load_model` gives it."""
    net: Any = config.build()
    net.load_state_dict(draw_weights({name: list(value.shape) for name, value in net.state_dict().items()}, 0))
    net = net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    learned = not isinstance(config, ClassifierConfig) and config.out_channels == 2 * config.in_channels
    process = process or ProcessConfig(variance="learned_range" if learned else "fixed_large")
    kind = ClassifierModel if isinstance(config, ClassifierConfig) else DiffusionModel
    return kind(net=net, process=process, labels=tuple(labels) if labels else None, manifest=manifest)


def bare(config: Any, process: ProcessConfig) -> Any:
    """A model without weights, however large: all its parameters have is a shape."""
    with torch.device("meta"):
        net = config.build()
    return (ClassifierModel if isinstance(config, ClassifierConfig) else DiffusionModel)(net=net, process=process)
