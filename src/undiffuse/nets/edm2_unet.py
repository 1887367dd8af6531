"""Implements the magnitude-preserving U-Net of EDM2 (Karras et al. 2024) for inference.

Every layer keeps the expected magnitude of its input: convolutions have no bias and weights of fixed norm, sums and
concatenations are rescaled, and there are no group norms. Weights are held as they act, normalised and multiplied by
their learned gains, since these are constants after training. A network can be sampled, but not trained further: the
normalisation of the weights belongs to its training.

References:
    Karras, Aittala, Lehtinen, Hellsten, Aila, Laine: "Analyzing and Improving the Training Dynamics of Diffusion
    Models", CVPR 2024; equations 47, 75, 81, 88 and 103, and figure 21.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.nets.blocks import channels_last, downsample, upsample
from undiffuse.nets.config import NetworkConfig

EPS = 1e-4
"""Added to norms (equation 47)."""
_SILU = 0.596  # the magnitude of SiLU(x) for standard normal x (equation 81)


@dataclass(frozen=True, kw_only=True)
class EDM2UNetConfig(NetworkConfig):
    """The configuration of a network of EDM2 (see `NetworkConfig` for the shared fields).

    Attributes:
        architecture: "edm2"; identifies this configuration in a dictionary.
        time_channels: Number of Fourier features of the time.
        embedding: Width of the embedding.
        head_channels: Channels of an attention head.
        residual_balance: Share of the residual branch in a block's sum.
        attention_balance: Share of the attention in its sum.
        label_balance: Share of the class in the embedding.
        concat_balance: Share of the skip connection in a concatenation.
        limit: Largest magnitude of activations behind a block; None for no limit.
        num_classes: Number of classes; None for an unconditional network.
    """

    architecture: str = "edm2"
    model_channels: int = 192
    num_res_blocks: int = 3
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    attention_resolutions: tuple[int, ...] = (4, 8)
    time_channels: int = 192
    embedding: int = 768
    head_channels: int = 64
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    label_balance: float = 0.5
    concat_balance: float = 0.5
    limit: float | None = 256.0
    num_classes: int | None = None

    super_resolution: ClassVar[bool] = False
    null_class: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture != "edm2":
            raise ValueError(f"this is the configuration of the architecture 'edm2', not of {self.architecture!r}")
        balances = (self.residual_balance, self.attention_balance, self.label_balance, self.concat_balance)
        if not all(0 <= balance <= 1 for balance in balances):
            raise ValueError(f"the balances of sums are between 0 and 1; got {balances}")

    def build(self) -> EDM2UNet:
        """Builds a newly initialized network."""
        return EDM2UNet(self)


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """Divides by the root mean square along a dimension, to which `EPS` is added."""
    return x / (x.square().mean(dim, keepdim=True, dtype=torch.float32).sqrt() + EPS).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """Returns SiLU(x), scaled to keep the magnitude."""
    return F.silu(x) / _SILU


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Returns (1 - share) a + share b, scaled to keep the magnitude of independent a and b (equation 88)."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def joined(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Concatenates channels, weighted so that `b` contributes a share whatever their numbers (equation 103)."""
    size = (a.shape[1] + b.shape[1]) ** 0.5 / math.hypot(1 - share, share)
    return torch.cat([a * (size * (1 - share) / a.shape[1] ** 0.5), b * (size * share / b.shape[1] ** 0.5)], dim=1)


def _conv(channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)


class Attention(nn.Module):
    """Attention over all pixels with queries, keys and values of unit magnitude, mixed into its input."""

    def __init__(self, channels: int, config: EDM2UNetConfig) -> None:
        super().__init__()
        self.heads, self.share = channels // config.head_channels, config.attention_balance
        self.qkv, self.proj = _conv(channels, 3 * channels, 1), _conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))  # channels before q, k and v
        q, k, v = (part.transpose(2, 3) for part in pixel_norm(rows, 2).unbind(3))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        return mixed(x, self.proj(attended.unflatten(2, tuple(x.shape[2:]))), self.share)


class Block(nn.Module):
    """A residual block of the encoder or the decoder; x [B, in, H, W], emb [B, E] -> [B, out, H', W'].

    The encoder's normalises each pixel and adapts the number of channels before the residual branch, the decoder's
    adapts it behind.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        config: The network's configuration.
        encodes: Whether it is a block of the encoder.
        attends: Whether attention follows.
        factor: 2 to double the resolution first, 0.5 to halve it, else 1.
    """

    def __init__(
        self, channels: int, out_channels: int, config: EDM2UNetConfig, encodes: bool, attends: bool, factor: float = 1
    ) -> None:
        super().__init__()
        self.encodes, self.factor, self.config = encodes, factor, config
        self.skip = _conv(channels, out_channels, 1) if channels != out_channels else None
        self.conv0 = _conv(out_channels if encodes else channels, out_channels, 3)
        self.scale = nn.Linear(config.embedding, out_channels, bias=False)
        self.conv1 = _conv(out_channels, out_channels, 3)
        self.attention = Attention(out_channels, config) if attends else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.factor != 1:
            x = upsample(x) if self.factor == 2 else downsample(x)
        if self.encodes:
            x = pixel_norm(x if self.skip is None else self.skip(x))
        h = self.conv0(silu(x))
        h = self.conv1(silu(h * (1 + self.scale(emb))[:, :, None, None].to(h.dtype)))
        if not self.encodes and self.skip is not None:
            x = self.skip(x)
        x = mixed(x, h, self.config.residual_balance)
        x = x if self.attention is None else self.attention(x)
        limit = self.config.limit
        return x if limit is None else x.clamp(-limit, limit)


class Embedding(nn.Module):
    """The embedding [B, E] of times [B] and classes [B]: Fourier features with drawn frequencies and phases."""

    def __init__(self, config: EDM2UNetConfig) -> None:
        super().__init__()
        self.classes, self.share = config.num_classes, config.label_balance
        empty = torch.empty(2, config.time_channels)
        draws = nn.init.normal_(empty[0]), nn.init.uniform_(empty[1])
        self.frequencies, self.phases = (nn.Parameter(2 * math.pi * part, requires_grad=False) for part in draws)
        self.noise = nn.Linear(config.time_channels, config.embedding, bias=False)
        self.label = None if self.classes is None else nn.Linear(self.classes, config.embedding, bias=False)

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        features = math.sqrt(2) * (t.float()[:, None] * self.frequencies + self.phases).cos()
        emb = self.noise(features)
        if self.label is not None:
            assert y is not None and self.classes is not None  # the network checks it
            one = F.one_hot(y, self.classes).to(emb.dtype)
            emb = mixed(emb, self.label(math.sqrt(self.classes) * one), self.share)
        return silu(emb)


class EDM2UNet(nn.Module):
    """The network: net(x [B, C, H, W], t [B], y [B] or None) -> [B, C, H, W]; t is ln(sigma) / 4.

    The encoder has, for each resolution, a block that halves (a convolution at the first), and `num_res_blocks` blocks.
    The decoder has two blocks in the middle and, for each resolution, one that doubles (not at the last) and
    `num_res_blocks` + 1 blocks, each of which takes a skip connection.
    """

    def __init__(self, config: EDM2UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.widths, config.num_res_blocks
        attends = [2**level in config.attention_resolutions for level in range(len(widths))]
        self.embedding = Embedding(config)
        self.conv_in = _conv(config.in_channels + 1, widths[0], 3)
        channels, skips, encoder = widths[0], [widths[0]], []
        for level, width in enumerate(widths):
            row = [Block(channels, channels, config, True, False, 0.5)] if level else []
            skips += [channels] if level else []
            for _ in range(blocks):
                row.append(Block(channels, width, config, True, attends[level]))
                channels = width
                skips.append(width)
            encoder.append(nn.ModuleList(row))
        self.encoder = nn.ModuleList(encoder)
        self.middle = nn.ModuleList(Block(channels, channels, config, False, first) for first in (True, False))
        decoder = []
        for level in range(len(widths) - 1, -1, -1):
            row = [Block(channels, channels, config, False, False, 2)] if level < len(widths) - 1 else []
            for _ in range(blocks + 1):
                row.append(Block(channels + skips.pop(), widths[level], config, False, attends[level]))
                channels = widths[level]
            decoder.append(nn.ModuleList(row))
        self.decoder = nn.ModuleList(decoder)
        self.conv_out = _conv(channels, config.out_channels, 3)

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions that the network takes besides image and time."""
        return frozenset(() if self.config.num_classes is None else ("y",))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.config.check_input(x, t)
        self._check_classes(x, y)
        with torch.autocast(x.device.type, enabled=False):
            emb = self.embedding(t, y)
        h = channels_last(self.conv_in(torch.cat([x, torch.ones_like(x[:, :1])], dim=1)))
        held = [h]
        for block in _blocks(self.encoder):
            h = block(h, emb)
            held.append(h)
        for middle in self.middle:
            h = middle(h, emb)
        for block in _blocks(self.decoder):
            h = block(h if block.factor == 2 else joined(h, held.pop(), self.config.concat_balance), emb)
        # The last layer runs in the input's precision (float32): the prediction itself is never rounded to 16 bit.
        with torch.autocast(x.device.type, enabled=False):
            return self.conv_out(h.to(x.dtype))

    def _check_classes(self, x: Tensor, y: Tensor | None) -> None:
        if self.config.num_classes is None and y is not None:
            raise ValueError("class labels were given to an unconditional network")
        if self.config.num_classes is not None and (y is None or y.shape != (x.shape[0],)):
            given = "none" if y is None else f"shape {list(y.shape)}"
            raise ValueError(f"expected one class index for each of the {x.shape[0]} images, got {given}")


def _blocks(rows: nn.ModuleList) -> Iterator[Block]:
    for row in rows:
        assert isinstance(row, nn.ModuleList)
        yield from row  # type: ignore[misc]
