"""Train a network of your own: a small U-Net that knows nothing of undiffuse.

Run it with `python examples/own_unet.py`; it takes a few seconds on a CPU. Three things make a network usable:

1. It is called as `net(x, t, y)`: images [B, C, H, W], times [B], class indices [B]. It returns [B, C, H, W].
2. `net.config` says what its images and classes are: `image_size`, `in_channels`, `num_classes`.
3. `register_network` gives the architecture a name, so that files can be loaded again.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from shapes import NAMES, squares_and_stripes
from torch import Tensor, nn

from undiffuse.denoiser import ProcessConfig
from undiffuse.models import load_diffusion
from undiffuse.nets import register_network
from undiffuse.noise import NoiseSource
from undiffuse.objectives import ObjectiveConfig
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.training import DiffusionTask, TrainConfig, train


@dataclass(frozen=True)
class OwnUNetConfig:
    """The arguments of `OwnUNet`. Files keep them."""

    image_size: int = 16
    in_channels: int = 1
    num_classes: int | None = 2
    width: int = 32

    def build(self) -> OwnUNet:
        return OwnUNet(self)


class Block(nn.Module):
    """Two convolutions with a residual connection; the embedding shifts what lies between them."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.shift = nn.Linear(embedding, out)
        self.skip = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.first(x)) + self.shift(emb)[:, :, None, None]
        return self.skip(x) + self.second(F.silu(h))


class OwnUNet(nn.Module):
    """A U-Net of two resolutions. Its conditions are the parameters of `forward` after `x` and `t`: here `y`."""

    def __init__(self, config: OwnUNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.classes = nn.Embedding(config.num_classes, width) if config.num_classes else None
        self.down = Block(config.in_channels, width, width)
        self.middle = Block(width, width, width)
        self.up = Block(2 * width, width, width)
        self.out = nn.Conv2d(width, config.in_channels, 1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        half = self.config.width // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angles = t[:, None] * frequencies
        emb = self.embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.classes is not None and y is not None:
            emb = emb + self.classes(y)
        fine = self.down(x, emb)
        coarse = self.middle(F.avg_pool2d(fine, 2), emb)
        return self.out(self.up(torch.cat([fine, F.interpolate(coarse, scale_factor=2)], dim=1), emb))


def main(folder: Path) -> None:
    register_network("own-unet", OwnUNetConfig)
    dataset = squares_and_stripes(256)
    task = DiffusionTask(
        OwnUNetConfig().build(),
        ProcessConfig(steps=200, schedule="cosine", target="v", variance="fixed_small"),
        ObjectiveConfig(loss="simple"),
        labels=NAMES,
    )
    config = TrainConfig(images=640, batch=32, lr=2e-3, ema_decays=(0.9,), preview_every=None, log_every=320)
    outcome = train(task, dataset, config, folder / "run")

    model = load_diffusion(outcome.checkpoint)  # the file says what the network is
    denoiser = model.denoiser(precision="fp32")
    classes = torch.tensor([0, 1, 0, 1])
    for solver, steps in (("ddim", "20"), ("dpmpp-2m", "10")):
        path = denoiser.chain.respaced(steps)
        noise = NoiseSource(0, range(4))
        images = generate(denoiser, path, build_solver(solver), noise, model.image_shape, cond={"y": classes})
        print(f"{solver}: {list(images.shape)}, mean {images.mean():.2f}, brightest {images.max():.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
