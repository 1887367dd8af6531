"""Train a small diffusion transformer, without convolutions, and sample it with classifier-free guidance.

Run it with `python examples/dit.py`; it takes a few seconds on a CPU. The network follows Peebles & Xie, "Scalable
Diffusion Models with Transformers" (ICCV 2023, arXiv:2212.09748), with adaLN-Zero blocks (section 3.2): image patches
are tokens; every block is modulated by an embedding of time and class, and begins as the identity.
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
from undiffuse.guidance import ClassifierFree
from undiffuse.models import load_diffusion
from undiffuse.nets import register_network
from undiffuse.noise import NoiseSource
from undiffuse.objectives import ObjectiveConfig
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.training import DiffusionTask, TrainConfig, train


@register_network("example-dit")
@dataclass(frozen=True)
class DiTConfig:
    """The arguments of `DiT`.

    Attributes:
        image_size: Side of the images in pixels, a multiple of `patch`.
        in_channels: Channels of the images.
        out_channels: Channels of the output: twice `in_channels` if the process learns the variance.
        num_classes: Number of classes; None for an unconditional network.
        null_class: Whether the index `num_classes` means "no class", for classifier-free guidance.
        patch: Side of a patch in pixels.
        width: Channels of a token, a multiple of `heads` and of 4.
        depth: Number of blocks.
        heads: Number of attention heads.
    """

    image_size: int = 16
    in_channels: int = 1
    out_channels: int = 1
    num_classes: int | None = None
    null_class: bool = False
    patch: int = 2
    width: int = 64
    depth: int = 3
    heads: int = 4

    def build(self) -> DiT:
        return DiT(self)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding [N, width] of positions [N]: cosines, then sines."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift for tokens x [B, L, C] and modulations [B, C]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """A transformer block with adaLN-Zero: shift, scale and gate of both branches are functions of the embedding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(emb).chunk(6, dim=1)
        qkv = self.qkv(modulate(self.norm(x), shift_a, scale_a))
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate_a[:, None] * self.proj(attended)
        return x + gate_m[:, None] * self.mlp(modulate(self.norm(x), shift_m, scale_m))


class DiT(nn.Module):
    """net(x [B, C, H, W], t [B], y [B] or None) -> [B, out_channels, H, W]; its output is zero until it is trained."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        patch, width = config.patch, config.width
        side = config.image_size // patch
        self.patches = nn.Linear(config.in_channels * patch**2, width)
        rows, columns = (sinusoids(torch.arange(side), width // 2) for _ in range(2))
        table = torch.cat([rows[:, None].expand(-1, side, -1), columns[None].expand(side, -1, -1)], dim=2)
        self.register_buffer("positions", table.reshape(side * side, width), persistent=False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        classes = config.num_classes
        self.classes = None if classes is None else nn.Embedding(classes + config.null_class, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.out_channels * patch**2)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def conditions(self) -> set[str]:
        """The conditions that the network accepts; optional, `forward` has their names as well."""
        return {"y"} if self.classes is not None else set()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        patch = self.config.patch
        batch, channels, height, width = x.shape
        grid = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
        tokens = self.patches(grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch**2)) + self.positions
        emb = self.time(sinusoids(t, self.config.width))
        if self.classes is not None:
            emb = emb + self.classes(torch.full_like(t, self.config.num_classes, dtype=torch.long) if y is None else y)
        emb = F.silu(emb)
        for block in self.blocks:
            tokens = block(tokens, emb)
        shift, scale = self.modulation(emb).chunk(2, dim=1)
        out = self.out(modulate(self.norm(tokens), shift, scale))
        out = out.reshape(batch, height // patch, width // patch, -1, patch, patch)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)


def main(folder: Path) -> None:
    task = DiffusionTask(
        DiTConfig(num_classes=2, null_class=True).build(),
        ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small"),
        ObjectiveConfig(loss="simple"),
        labels=NAMES,
        label_dropout=0.1,
    )
    config = TrainConfig(images=640, batch=32, lr=2e-3, ema_decays=(0.9,), preview_every=None, log_every=320)
    outcome = train(task, squares_and_stripes(256), config, folder / "run")

    model = load_diffusion(outcome.checkpoint)  # the file says "example-dit" and the arguments
    denoiser = model.denoiser(precision="fp32")
    guided = ClassifierFree(denoiser, 1.5, {"y": model.null_class})
    classes = torch.tensor([0, 1, 0, 1])
    for solver, steps in (("euler", "20"), ("heun", "10")):
        path = denoiser.chain.respaced(steps)
        noise = NoiseSource(0, range(4))
        images = generate(guided, path, build_solver(solver), noise, model.image_shape, cond={"y": classes})
        print(f"{solver}: {list(images.shape)}, mean {images.mean():.2f}, brightest {images.max():.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
