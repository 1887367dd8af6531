"""Train a UNet2DModel of diffusers: a wrapper turns its arguments and its output into those of a network here.

Run it with `python examples/diffusers_unet.py`; it takes a few seconds on a CPU. It needs `pip install diffusers`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from shapes import NAMES, squares_and_stripes
from torch import Tensor, nn

from undiffuse.denoiser import ProcessConfig
from undiffuse.models import load_diffusion
from undiffuse.nets import NetworkSpec, register_network
from undiffuse.noise import NoiseSource
from undiffuse.objectives import ObjectiveConfig
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.training import DiffusionTask, TrainConfig, train

SMALL: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
    "norm_num_groups": 8,
    "num_class_embeds": 2,
}
"""Arguments of UNet2DModel."""


@register_network("diffusers-unet2d")
class WrappedUNet(nn.Module):
    """A UNet2DModel, called as net(x, t, y).

    Registered as a class: a file keeps `config`, the arguments of this class, and they build it again. The fields of
    diffusers have other names than those that `undiffuse.nets.describe` reads, so `spec` says what they mean.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.config = arguments
        self.unet = UNet2DModel(**arguments)
        size = arguments["sample_size"]
        self.spec = NetworkSpec(
            size=(size, size),
            in_channels=arguments["in_channels"],
            out_channels=arguments["out_channels"],
            num_classes=arguments.get("num_class_embeds"),
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.unet(x, t, class_labels=y).sample


def main(folder: Path) -> None:
    task = DiffusionTask(
        WrappedUNet(**SMALL),
        ProcessConfig(steps=1000, schedule="linear", target="eps", variance="fixed_small"),
        ObjectiveConfig(loss="simple"),
        labels=NAMES,
    )
    config = TrainConfig(images=320, batch=16, lr=1e-3, ema_decays=(0.9,), preview_every=None, log_every=160)
    outcome = train(task, squares_and_stripes(256), config, folder / "run")

    model = load_diffusion(outcome.checkpoint)
    denoiser = model.denoiser(precision="fp32")
    classes = torch.tensor([0, 1, 0, 1])
    for solver, steps in (("ddim", "10"), ("dpmpp-2m", "10")):
        path = denoiser.chain.respaced(steps)
        noise = NoiseSource(0, range(4))
        images = generate(denoiser, path, build_solver(solver), noise, model.image_shape, cond={"y": classes})
        print(f"{solver}: {list(images.shape)}, mean {images.mean():.2f}, brightest {images.max():.2f}")


if __name__ == "__main__":
    try:
        import diffusers  # noqa: F401
    except ImportError:
        sys.exit("this example needs diffusers: pip install diffusers")
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
