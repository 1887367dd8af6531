"""Extracts DINOv2 ViT-L/14 features: self-supervised, without Inception's bias towards ImageNet's classes.

The module's names are those of the published file. Distances are called FD-DINOv2.

References:
    Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undiffuse import downloads
from undiffuse.metrics.checks import as_images
from undiffuse.metrics.estimate import Card, MetricError
from undiffuse.metrics.extractors.base import (
    Extracted,
    Images,
    exact_arithmetic,
    load_exactly,
    read_weights,
    tensors_hash,
)
from undiffuse.metrics.extractors.resize import pillow_bicubic

__all__ = ["DinoV2", "DinoV2Extractor"]

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
WEIGHTS_SHA256 = "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
WEIGHTS_SIZE = 1_217_586_395
WHAT = "DINOv2 ViT-L/14"
SIZE = 224
TRAINED_SIZE = 518
PATCH = 14
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Attention(nn.Module):
    """Computes softmax attention of all tokens [B, L, D]; the rows of qkv are q, k, v, each by heads."""

    def __init__(self, dimension: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dimension, 3 * dimension)
        self.proj = nn.Linear(dimension, dimension)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dimension, 4 * dimension)
        self.fc2 = nn.Linear(4 * dimension, dimension)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dimension))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Applies a pre-norm transformer block with a learned scale on each residual."""

    def __init__(self, dimension: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dimension, eps=1e-6)
        self.attn = Attention(dimension, heads)
        self.ls1 = LayerScale(dimension)
        self.norm2 = nn.LayerNorm(dimension, eps=1e-6)
        self.mlp = Perceptron(dimension)
        self.ls2 = LayerScale(dimension)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dimension, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DinoV2(nn.Module):
    """Turns x [B, 3, H, W], sides multiples of 14, into the class token after the last norm [B, D]."""

    def __init__(self, dimension: int = 1024, depth: int = 24, heads: int = 16) -> None:
        super().__init__()
        self.side = TRAINED_SIZE // PATCH
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dimension))
        self.mask_token = nn.Parameter(torch.zeros(1, dimension))  # of the training; in the file, unused here
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, dimension))
        self.patch_embed = PatchEmbed(dimension)
        self.blocks = nn.Sequential(*(Block(dimension, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dimension, eps=1e-6)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Returns the position table for a grid of patches [1, rows * columns, D]; it was trained on 37 x 37.

        The published features come from a bicubic shrink without antialiasing whose scale is (rows + 0.1) / 37.
        """
        grid = self.pos_embed[:, 1:]
        if (rows, columns) == (self.side, self.side):
            return grid
        table = grid.transpose(1, 2).unflatten(2, (self.side, self.side))
        scale = ((rows + 0.1) / self.side, (columns + 0.1) / self.side)
        return F.interpolate(table, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        tokens = patches.flatten(2).transpose(1, 2) + self.positions(*patches.shape[2:])
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.blocks(torch.cat([first, tokens], dim=1))[:, 0])


class DinoV2Extractor:
    """Extracts DINOv2 ViT-L/14 features [B, 1024] of uint8 images [B, H, W, 3].

    Images are resized as a whole to 224x224 by Pillow's bicubic filter and normalised by ImageNet's mean and deviation.
    `load` reads or downloads the weights (1.2 GB).

    Args:
        state: Weights with the names of the published file.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        weights_sha256: str | None = None,
        device: torch.device | str = "cpu",
        grey: str = "refuse",
    ) -> None:
        self.device = torch.device(device)
        self.grey = grey
        net: Any = DinoV2()
        load_exactly(net, state, WHAT)
        self.net = net.to(self.device).eval().requires_grad_(False)
        self.mean = 255 * torch.tensor(MEAN, device=self.device)[:, None, None]
        self.std = 255 * torch.tensor(STD, device=self.device)[:, None, None]
        self.spatial_card: Card | None = None
        self.card = Card(
            protocol="dinov2-224",
            distance="FD-DINOv2" if weights_sha256 == WEIGHTS_SHA256 else "FD-dinov2-other-weights",
            extractor="dinov2-vitl14",
            weights_sha256=weights_sha256 or tensors_hash(state),
            layer="class token after the norm",
            dimension=1024,
            resize=f"{pillow_bicubic.__name__} to {SIZE}",
            normalisation="ImageNet mean and deviation",
        )

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        progress: Callable[[int, int | None], None] | None = None,
        **options: Any,
    ) -> DinoV2Extractor:
        """Loads the published file at `path`, or downloads it into the cache; another file is refused."""
        if path is None:
            where = downloads.cache_dir("weights", WEIGHTS_URL.rpartition("/")[2])
            path = downloads.fetch(WEIGHTS_URL, where, sha256=WEIGHTS_SHA256, size=WEIGHTS_SIZE, progress=progress)
        if not Path(path).is_file():
            raise MetricError(f"there is no file {path}; it should hold the weights of {WHAT}, from {WEIGHTS_URL}")
        digest = downloads.digest_of(path)
        if digest != WEIGHTS_SHA256:
            raise MetricError(f"{path} does not hold the published {WHAT} (sha256 {digest}, expected {WEIGHTS_SHA256})")
        return cls(read_weights(path, WHAT), weights_sha256=digest, **options)

    @torch.inference_mode()
    def __call__(self, images: Images) -> Extracted:
        """Turns images uint8 [B, H, W, 3] into features [B, 1024]."""
        pixels = as_images(images, 3, self.grey).to(self.device).permute(0, 3, 1, 2).float()
        with exact_arithmetic(self.device):
            return Extracted(self.net((pillow_bicubic(pixels, SIZE) - self.mean) / self.std))

    def scores(self, features: Tensor) -> Tensor | None:
        """Returns None: the network has no classes."""
        return None
