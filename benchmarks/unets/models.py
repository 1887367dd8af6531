"""The networks that are measured: their arguments, weights, inputs. Imports no library that is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLASSES = 10
STEPS = 1000  # of the trained chain, linear schedule
STRIDE = "ddim25"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A U-Net of ADM's kind: 3 channels in, 6 out (learned variance), heads of 64 channels, residual blocks that
    resample, scale and shift in the norms, `CLASSES` classes.

    `attention`  sizes of the feature maps that have it, as the original's flags count them
    `classifier` the noisy classifier with the same encoder instead
    """

    name: str
    size: int
    channels: int
    mult: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    classifier: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the original's constructor; azula's and ours take the same."""
        known: dict[str, Any] = {
            "image_size": self.size,
            "in_channels": 3,
            "model_channels": self.channels,
            "out_channels": CLASSES if self.classifier else 6,
            "num_res_blocks": self.blocks,
            "attention_resolutions": tuple(self.size // side for side in self.attention),
            "channel_mult": self.mult,
            "num_head_channels": min(64, self.channels),
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        }
        return {**known, "pool": "attention"} if self.classifier else {**known, "num_classes": CLASSES}

    @property
    def about(self) -> str:
        """Its arguments in a few words."""
        mult, sides = ",".join(map(str, self.mult)), ",".join(map(str, self.attention))
        return (
            f"{self.size}x{self.size}, {self.channels} channels times ({mult}), {self.blocks} residual "
            f"block{'s' if self.blocks > 1 else ''} a level, attention at {sides}"
        )

    def weights(self, folder: Path, library: str = "") -> Path:
        """The file of its weights, by the original's names or (library "diffusers") by diffusers'."""
        return folder / f"{self.name}{'.' if library else ''}{library}.safetensors"


MODELS = {
    model.name: model
    for model in (
        Model(name="S", size=32, channels=64, mult=(1, 2, 2), blocks=2, attention=(16, 8)),
        Model(name="M", size=64, channels=128, mult=(1, 2, 3, 4), blocks=1, attention=(32, 16, 8)),
        # ADM's 256x256 network with a quarter of its channels.
        Model(name="L", size=256, channels=64, mult=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8)),
        Model(name="S-classifier", size=32, channels=64, mult=(1, 2, 2), blocks=2, attention=(16, 8), classifier=True),
    )
}


LARGE = {
    model.name: model
    for model in (
        Model(
            name="M-classifier", size=64, channels=128, mult=(1, 2, 3, 4), blocks=1, attention=(32, 16, 8),
            classifier=True,
        ),
        Model(name="ADM-64", size=64, channels=192, mult=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8)),
        Model(name="ADM-256", size=256, channels=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8)),
        # For dry runs.
        Model(name="tiny", size=8, channels=32, mult=(1, 2), blocks=1, attention=(4,)),
        Model(name="tiny-classifier", size=8, channels=32, mult=(1, 2), blocks=1, attention=(4,), classifier=True),
    )
}  # fmt: skip
"""The networks of `gpu.sh` beside `MODELS`. Heads have 64 channels, of the dry run's 32."""


def find(name: str) -> Model:
    """The network of that name."""
    return {**MODELS, **LARGE}[name]


def drawn(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of those names and shapes, none of them zero: what a new network does not compute is not timed.

    Products keep the size of what goes through them, norms scale by about 1. A network that comes fresh from its
    constructor would return zeros, and errors could not be told.
    """
    generator = np.random.default_rng(seed)
    out = {}
    for name, tensor in state.items():
        values = generator.normal(size=tuple(tensor.shape))
        if tensor.ndim > 1:
            values /= math.sqrt(tensor[0].numel())
        else:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        out[name] = torch.from_numpy(values.astype(np.float32))
    return out


@dataclass(frozen=True)
class Batch:
    """Images (or noise) x [B, 3, H, W], step numbers t [B] int64, classes y [B] int64."""

    x: Tensor
    t: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.x.to(device), self.t.to(device), self.y.to(device))

    def __len__(self) -> int:
        return len(self.x)


def batch(model: Model, size: int, seed: int = 1) -> Batch:
    """Inputs of a network: normal noise, and steps from the whole chain, first and last among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, model.size, model.size, generator=generator)
    t = torch.linspace(STEPS - 1, 0, size).round().long() if size > 1 else torch.tensor([STEPS // 2])
    return Batch(x, t, torch.arange(size) % CLASSES)


def training_images(model: Model, size: int, seed: int = 2) -> Tensor:
    """Smooth random pictures [B, 3, H, W] in [-1, 1], on 8-bit levels as images are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(size, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(model.size, model.size), mode="bilinear")
    return (smooth.clamp(-1, 1) * 127.5).round() / 127.5
