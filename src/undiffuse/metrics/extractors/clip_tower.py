"""Defines CLIP's image towers: vision transformers whose class token is projected into the space of captions.

The network's names are those of OpenAI's published files below "visual.".

References:
    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ImageTower", "tower_weights"]


class Attention(nn.Module):
    """Computes softmax attention of all tokens [B, L, D]; the rows of the projection are q, k, v, each by heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rows.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Applies two layers around x sigmoid(1.702 x), the approximation of GELU used with the published weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.702 * h))


class Block(nn.Module):
    """Applies a pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class ImageTower(nn.Module):
    """Turns x [B, 3, size, size], normalised, into image embeddings [B, dimension], which are not of length 1.

    They are the projected class token after the last norm. There is a norm before the first block too.
    """

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, dimension: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, dimension))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], dim=1)
        h = self.transformer(self.ln_pre(tokens + self.positional_embedding))
        return self.ln_post(h[:, 0]) @ self.proj


# Hugging Face's names and OpenAI's, below the tower.
RENAMED = (
    (r"vision_model\.embeddings\.class_embedding", "class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"vision_model\.pre_layrnorm\.(.*)", r"ln_pre.\1"),
    (r"vision_model\.post_layernorm\.(.*)", r"ln_post.\1"),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
)


def tower_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the weights of the image tower by the names of `ImageTower`, from either naming of a CLIP."""
    if not any(name.startswith("vision_model.") for name in state):
        return {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    tower: dict[str, Any] = {}
    for name, tensor in state.items():
        for pattern, new in RENAMED:
            if match := re.fullmatch(pattern, name):
                tower[match.expand(new)] = tensor
        if name == "visual_projection.weight" and isinstance(tensor, Tensor) and tensor.ndim == 2:
            tower["proj"] = tensor.T
        elif match := re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state.get(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
            same = [part for part in parts if isinstance(part, Tensor) and part.shape == tensor.shape]
            if len(same) == 3:
                tower[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(same)
    return tower
