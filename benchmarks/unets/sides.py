"""Who is measured: a library in a precision; what a benchmark asks of it. A program: DEVICE -> the sides, in JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from unets.models import Batch, Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEARNING_RATE, DECAY = 1e-4, 0.9999


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that a library needs to set up: the network, where weights lie, where and how to compute."""

    model: Model
    folder: Path
    device: torch.device
    precision: str = "fp32"
    kernels: str = "auto"
    compiled: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """16-bit arithmetic by torch's autocast, where this is a 16-bit precision."""
        dtype = DTYPES[self.precision]
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype=dtype)


Sampling = Callable[[Batch], Tensor]
"""Noise x [B, 3, H, W] and classes -> images in [-1, 1] after 25 steps of DDIM."""
Training = Callable[[], Tensor]
"""One step: forward, backward, optimiser, average. Returns the loss."""


class Library(Protocol):
    """A library's network in a `Setting`. Constructing it imports the library, builds the network, loads weights."""

    same: bool  # whether it is the same network with the same weights as the original's

    @property
    def net(self) -> nn.Module: ...

    def __init__(self, setting: Setting) -> None: ...

    def forward(self, batch: Batch) -> Tensor:
        """The network's output [B, 6, H, W] in float32, without gradients."""
        ...

    def sampling(self) -> Sampling:
        """25 steps of DDIM as this library does them."""
        ...

    def guided(self) -> Sampling | None:
        """The same with classifier guidance of scale 1, None where the library has none."""
        ...

    def training(self, batch: Batch) -> Training:
        """Steps on x = images, from here on on the network in training mode."""
        ...


@dataclass(frozen=True, kw_only=True)
class Side:
    """A row of the tables. `library` is the name of a class in `unets.peers` or `unets.ours`."""

    title: str
    library: str
    precision: str = "fp32"
    kernels: str = "auto"
    compiled: bool = False

    def setting(self, model: Model, folder: Path, device: torch.device) -> Setting:
        return Setting(
            model=model,
            folder=folder,
            device=device,
            precision=self.precision,
            kernels=self.kernels,
            compiled=self.compiled,
        )

    def load(self, setting: Setting) -> Library:
        """Imports and builds."""
        if self.library == "Undiffuse":
            from unets.ours import Undiffuse

            return Undiffuse(setting)
        from unets import peers

        library: type[Library] = getattr(peers, self.library)
        return library(setting)


GUIDED, OURS = "guided", "ours"
_PEERS = {
    GUIDED: Side(title="guided-diffusion", library="Guided"),
    "guided-bf16": Side(title="guided-diffusion, bf16 autocast", library="Guided", precision="bf16"),
    "azula": Side(title="azula", library="Azula"),
    "diffusers": Side(title="diffusers", library="Diffusers"),
    "lucidrains": Side(title="denoising-diffusion-pytorch (another network)", library="Lucidrains"),
}
SIDES = {
    "cpu": {
        **_PEERS,
        "ours-pure": Side(title="undiffuse, no compiled kernels", library="Undiffuse", kernels="pure"),
        OURS: Side(title="**undiffuse**", library="Undiffuse"),
        "ours-pure-bf16": Side(
            title="undiffuse bf16, no compiled kernels", library="Undiffuse", precision="bf16", kernels="pure"
        ),
        "ours-bf16": Side(title="**undiffuse bf16**", library="Undiffuse", precision="bf16"),
    },
    "cuda": {
        **_PEERS,
        "guided-fp16": Side(title="guided-diffusion, its own fp16", library="Guided", precision="fp16"),
        "diffusers-fp16": Side(title="diffusers, fp16", library="Diffusers", precision="fp16"),
        "diffusers-fp16-compiled": Side(
            title="diffusers, fp16, torch.compile", library="Diffusers", precision="fp16", compiled=True
        ),
        OURS: Side(title="**undiffuse**", library="Undiffuse"),
        "ours-bf16": Side(title="**undiffuse bf16**", library="Undiffuse", precision="bf16"),
        "ours-fp16": Side(title="**undiffuse fp16**", library="Undiffuse", precision="fp16"),
    },
}
"""By device: what is compared there, the original first."""


def main(device: str) -> None:
    """Prints what tables say about the sides, the device's name, and which of our kernels are used and why."""
    from undiffuse import kernels

    status = kernels.status()
    used = status.active if status.active == "compiled" else f"{status.active} ({status.reason})"
    about = {name: {"title": side.title, "precision": side.precision} for name, side in SIDES[device].items()}
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    print(json.dumps({"sides": about, "device": name, "kernels": used}))


if __name__ == "__main__":
    main(sys.argv[1])
