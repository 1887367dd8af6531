"""The noisy-image classifier: the U-Net's encoder with a pooling head (ADM, section 4 and Appendix)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.nets.blocks import GroupNorm, multi_head_attention, pointwise, zero_init
from undiffuse.nets.encoder import Encoder, EncoderConfig

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(EncoderConfig):
    """The arguments of a classifier; `NetworkConfig` and `EncoderConfig` explain the shared ones.

    Attributes:
        out_channels: Number of classes; of a regressor of K numbers, 2 K: their means and the logarithms of their
            variances.
        regression: Whether it is a regressor: it predicts numbers, as Gaussians, and no classes.
        pool: "attention" (the published classifiers: a CLIP-style attention pool whose position table fixes the image
            size), "adaptive" (global mean), "spatial" or "spatial_v2" (means of every stage's output, then an MLP).
    """

    pool: str = "attention"
    regression: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in POOLS:
            raise ValueError(f"unknown pool {self.pool!r}; choose one of {', '.join(POOLS)}")
        if self.regression and self.out_channels % 2:
            raise ValueError(f"a regressor has two outputs for each number; got out_channels = {self.out_channels}")

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for a regressor."""
        return None if self.regression else self.out_channels

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as files have them: `regression` only where it is true, so that old files compare equal."""
        fields = asdict(self)
        return fields if self.regression else {name: v for name, v in fields.items() if name != "regression"}

    def build(self) -> NoisyClassifier:
        """Return a newly initialised classifier."""
        return NoisyClassifier(self)


class AttentionPool(nn.Module):
    """Attention pooling [B, C, H, W] -> [B, out]: the mean of all positions is the query.

    Tokens are the mean and the H*W positions, plus a learned position table [C, H*W + 1]; q, k, v are laid out in
    the "new" order in all published files.
    """

    def __init__(self, size: tuple[int, int], channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.size = size
        self.heads = heads
        tokens = size[0] * size[1] + 1
        # A fresh model is always loaded or trained under a seeded generator; this is ordinary parameter initialisation.
        self.positional_embedding = nn.Parameter(torch.empty(channels, tokens))
        nn.init.normal_(self.positional_embedding, std=1 / math.sqrt(channels))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"the attention pool was built for a {self.size[0]}x{self.size[1]} feature map and got "
                f"{x.shape[2]}x{x.shape[3]}; use images of the trained size, or a classifier with pool='adaptive'"
            )
        tokens = x.flatten(2).transpose(1, 2)  # [B, HW, C]
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding.t()[None]
        attended = multi_head_attention(pointwise(self.qkv_proj, tokens), self.heads, new_order=True)
        return pointwise(self.c_proj, attended[:, :1])[:, 0]


class NoisyClassifier(Encoder):
    """A classifier of noisy images, called as net(x, t) -> scores [B, K], log-probabilities up to a constant.

    x are images [B, C, H, W], t any real numbers [B].
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config, config.in_channels)
        channels, classes = self.channels, config.out_channels
        if config.pool == "attention":
            size = (config.size[0] // config.downsampling, config.size[1] // config.downsampling)
            if config.num_head_channels == -1:
                raise ValueError("pool='attention' needs num_head_channels, the channels of a head (published: 64)")
            pool = AttentionPool(size, channels, config.heads(channels, 1), classes)
            self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), pool)
        elif config.pool == "adaptive":
            conv = zero_init(nn.Conv2d(channels, classes, 1))
            self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.AdaptiveAvgPool2d((1, 1)), conv, nn.Flatten())
        else:
            first = nn.Linear(sum(self.stage_channels) + channels, 2048)
            last = nn.Linear(2048, classes)
            middle = [nn.ReLU()] if config.pool == "spatial" else [GroupNorm(2048), nn.SiLU()]
            self.out = nn.Sequential(first, *middle, last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.config.check_input(x, t)
        h, outputs = self.encode(x, F.silu(self.embed_time(t)))
        with torch.autocast(x.device.type, enabled=False):
            dtype = next(self.out.parameters()).dtype
            if self.config.pool.startswith("spatial"):
                return self.out(torch.cat([o.to(dtype).mean(dim=(2, 3)) for o in [*outputs, h]], dim=1))
            norm, _, *head = self.out
            h = norm(h.to(dtype), act=True)
            for layer in head:
                h = layer(h)
            return h
