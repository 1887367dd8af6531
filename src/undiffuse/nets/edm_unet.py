"""Implements the U-Nets of EDM (Karras et al. 2022): DDPM++ and NCSN++ of Song et al. 2021, and ADM's in EDM's form.

All use the same block, with different conditioning and scaling. Parameters have the names of EDM's network pickles, by
resolution: "enc.32x32_block0.conv0.weight". The labels of augmented training are left out, because sampling never uses
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.kernels import norm_act
from undiffuse.nets.blocks import Conv3x3, channels_last, downsample, maybe_checkpointed, projected, upsample
from undiffuse.nets.config import NetworkConfig
from undiffuse.nets.unet2d_blocks import filtered_down, filtered_up

DESIGNS = ("song", "dhariwal")
TIMES = ("positional", "fourier")
_HEAD = 64  # channels of a head in ADM's design; the other has one head


@dataclass(frozen=True, kw_only=True)
class EDMUNetConfig(NetworkConfig):
    """The configuration of a network of EDM (see `NetworkConfig` for the shared fields).

    Attributes:
        architecture: "edm"; identifies this configuration in a dictionary.
        design: "song" (DDPM++ and NCSN++) or "dhariwal" (ADM).
        time_type: "positional" or, in NCSN++, "fourier".
        log_time: Whether the logarithm of the time input is embedded.
        time_mult: Width of the embedded time in `model_channels`.
        embedding_mult: Width of the embedding in `model_channels`.
        residual_input: Whether the downsampled and convolved input is added at every level (NCSN++).
        filtered: Whether resampling uses the filter [1, 3, 3, 1] (NCSN++) instead of 2x2 means and repeated pixels.
        num_classes: Number of classes; None for an unconditional network.
        null_class: Whether it was trained with label dropout, so that it has a null class.
    """

    architecture: str = "edm"
    design: str = "song"
    num_res_blocks: int = 4
    time_type: str = "positional"
    log_time: bool = False
    time_mult: int = 1
    embedding_mult: int = 4
    residual_input: bool = False
    filtered: bool = False
    num_classes: int | None = None
    null_class: bool = False

    super_resolution: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture != "edm":
            raise ValueError(f"this is the configuration of the architecture 'edm', not of {self.architecture!r}")
        if self.design not in DESIGNS or self.time_type not in TIMES:
            raise ValueError(f"design is one of {', '.join(DESIGNS)} and time_type one of {', '.join(TIMES)}")
        if self.size[0] != self.size[1]:
            raise ValueError("EDM's networks are for square images")

    @property
    def embedding(self) -> int:
        """Width of the embedding."""
        return self.model_channels * self.embedding_mult

    def build(self) -> EDMUNet:
        """Builds a newly initialized network."""
        return EDMUNet(self)


class Norm(nn.GroupNorm):
    """A group norm with up to 32 groups of at least four channels, optionally followed by scale, shift and SiLU."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(min(32, channels // 4), channels, eps=eps)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, act: bool = False) -> Tensor:
        return norm_act(x, self.num_groups, self.weight, self.bias, self.eps, scale=scale, shift=shift, act=act)


class EDMBlock(nn.Module):
    """A residual block with optional attention; sums are scaled by 1/sqrt(2) in Song et al.'s design.

    Shapes: x [B, in, H, W], emb [B, E] -> [B, out, H', W']; `resample` halves or doubles the resolution.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        config: EDMUNetConfig,
        *,
        attends: bool = False,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        song = config.design == "song"
        eps = 1e-6 if song else 1e-5
        self.use_checkpoint = config.use_checkpoint
        self.adaptive, self.gain = not song, math.sqrt(0.5) if song else 1.0
        self.resample = resample
        self.norm0 = Norm(channels, eps)
        self.conv0 = Conv3x3(channels, out_channels)
        self.affine = nn.Linear(config.embedding, out_channels * (1 if song else 2))
        self.norm1 = Norm(out_channels, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = Conv3x3(out_channels, out_channels)
        joined = channels != out_channels or (song and resample is not None)
        self.skip = nn.Conv2d(channels, out_channels, 1) if joined else nn.Identity()
        self.heads = 0 if not attends else 1 if song else out_channels // _HEAD
        if self.heads:
            self.norm2 = Norm(out_channels, eps)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return maybe_checkpointed(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.norm0(x, act=True)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h)
        conditioning = projected(self.affine, emb)
        if self.adaptive:
            h = self.norm1(h, *conditioning.chunk(2, dim=1), act=True)
        else:
            h = self.norm1(h + conditioning[:, :, None, None].to(h.dtype), act=True)
        x = (self.conv1(self.dropout(h)) + self.skip(x)) * self.gain
        if not self.heads:
            return x
        rows = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))  # channels before q, k and v
        q, k, v = (part.transpose(2, 3) for part in rows.unbind(3))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        return (self.proj(attended.unflatten(2, tuple(x.shape[2:]))) + x) * self.gain


class InputResidual(nn.Conv2d):
    """A 3x3 convolution followed by the filter [1, 3, 3, 1] with stride 2, padded once."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        near = (torch.arange(4, device=x.device) - 1.5).abs() < 1  # made on the device, so that CUDA graphs can hold it
        taps = (1 + 2 * near).to(x.dtype) / 8
        kernel = torch.outer(taps, taps).expand(self.out_channels, 1, 4, 4)
        h = F.conv2d(x, self.weight.to(x.dtype), padding=2)
        h = F.conv2d(h, kernel, stride=2, groups=self.out_channels)
        assert self.bias is not None
        return h + self.bias.to(h.dtype)[:, None, None]


class TimeEmbedding(nn.Module):
    """Embeds times [B] as sines and cosines [B, width]; sines come first in Song et al.'s design, cosines in ADM's."""

    def __init__(self, config: EDMUNetConfig) -> None:
        super().__init__()
        self.song, self.fourier = config.design == "song", config.time_type == "fourier"
        self.log = config.log_time
        self.pairs = config.model_channels * config.time_mult // 2
        if self.fourier:
            self.freqs = nn.Parameter(16 * nn.init.normal_(torch.empty(self.pairs)), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        t = t.float().log() if self.log else t.float()
        if self.fourier:
            angles = t[:, None] * (2 * math.pi * self.freqs)[None]
        else:
            steps = torch.arange(self.pairs, dtype=torch.float32, device=t.device)
            angles = t[:, None] * (1 / 10_000) ** (steps / (self.pairs - self.song))[None]
        parts = (angles.sin(), angles.cos()) if self.song else (angles.cos(), angles.sin())
        return torch.cat(parts, dim=1)


class EDMUNet(nn.Module):
    """The network: net(x [B, C, H, W], t [B], y [B] or None) -> [B, C, H, W].

    t is whatever its preconditioning gives it, ln(sigma) / 4 in EDM's own.
    """

    def __init__(self, config: EDMUNetConfig) -> None:
        super().__init__()
        self.config = config
        song, width, blocks = config.design == "song", config.model_channels, config.num_res_blocks
        down, up = (filtered_down, filtered_up) if config.filtered else (downsample, upsample)
        self.map_noise = TimeEmbedding(config)
        embedded = width * config.time_mult
        self.map_layer0 = nn.Linear(embedded, config.embedding)
        self.map_layer1 = nn.Linear(config.embedding, config.embedding)
        if config.num_classes is not None:
            self.map_label = nn.Linear(config.num_classes, embedded if song else config.embedding, bias=song)
        widths, top = config.widths, len(config.widths) - 1
        attends = [2**level in config.attention_resolutions for level in range(top + 1)]
        names = [f"{config.size[0] >> level}x{config.size[0] >> level}" for level in range(top + 1)]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, given, skips = width if song else widths[0], config.in_channels, []
        for level, out in enumerate(widths):
            if level == 0:
                self.enc[f"{names[0]}_conv"] = Conv3x3(config.in_channels, channels)
            else:
                self.enc[f"{names[level]}_down"] = EDMBlock(channels, channels, config, resample=down)
                if config.residual_input:
                    self.enc[f"{names[level]}_aux_residual"] = InputResidual(given, channels)
                    given = channels
            skips.append(channels)
            for i in range(blocks):
                self.enc[f"{names[level]}_block{i}"] = EDMBlock(channels, out, config, attends=attends[level])
                channels = out
                skips.append(channels)
        for level in range(top, -1, -1):
            if level == top:
                self.dec[f"{names[level]}_in0"] = EDMBlock(channels, channels, config, attends=True)
                self.dec[f"{names[level]}_in1"] = EDMBlock(channels, channels, config)
            else:
                self.dec[f"{names[level]}_up"] = EDMBlock(channels, channels, config, resample=up)
            for i in range(blocks + 1):
                here = attends[level] and (i == blocks or not song)
                self.dec[f"{names[level]}_block{i}"] = EDMBlock(
                    channels + skips.pop(), widths[level], config, attends=here
                )
                channels = widths[level]
        last = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        if song:
            self.dec[f"{names[0]}_aux_norm"] = Norm(channels, 1e-6)
            self.dec[f"{names[0]}_aux_conv"] = last
        else:
            self.out_norm, self.out_conv = Norm(channels, 1e-5), last

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions that the network takes besides image and time."""
        return frozenset(() if self.config.num_classes is None else ("y",))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.config.check_input(x, t)
        with torch.autocast(x.device.type, enabled=False):
            emb = self._embed(x, t, y)
        h = aux = x
        held: list[Tensor] = []
        for name, block in self.enc.items():
            if name.endswith("_aux_residual"):
                h = held[-1] = aux = (h + block(aux)) * math.sqrt(0.5)
            elif isinstance(block, EDMBlock):
                h = block(h, emb)
                held.append(h)
            else:
                h = channels_last(block(h))
                held.append(h)
        for name, block in self.dec.items():
            if isinstance(block, EDMBlock):
                h = block(torch.cat([h, held.pop()], dim=1) if "_block" in name else h, emb)
        # The last layers run in the input's precision (float32): the prediction itself is never rounded to 16 bit.
        with torch.autocast(x.device.type, enabled=False):
            norm, conv = self._last
            return conv(norm(h.to(self.map_layer0.weight.dtype), act=True))

    @property
    def _last(self) -> tuple[nn.Module, nn.Module]:
        if self.config.design != "song":
            return self.out_norm, self.out_conv
        name = f"{self.config.size[0]}x{self.config.size[0]}"
        return self.dec[f"{name}_aux_norm"], self.dec[f"{name}_aux_conv"]

    def _embed(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        emb = self.map_noise(t)
        label = self._label(x, y)
        if self.config.design == "song":
            emb = emb if label is None else emb + label
            return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        return F.silu(emb if label is None else emb + label)

    def _label(self, x: Tensor, y: Tensor | None) -> Tensor | None:
        """Returns the class embedding; None for an unconditional network."""
        classes = self.config.num_classes
        if classes is None:
            if y is not None:
                raise ValueError("class labels were given to an unconditional network")
            return None
        if y is None and self.config.null_class:
            y = torch.full((x.shape[0],), classes, device=x.device, dtype=torch.int64)
        if y is None or y.shape != (x.shape[0],):
            given = "none" if y is None else f"shape {list(y.shape)}"
            raise ValueError(f"expected one class index for each of the {x.shape[0]} images, got {given}")
        one = F.one_hot(y, classes + 1)[:, :classes].to(self.map_label.weight.dtype)  # nothing for "no class"
        return self.map_label(one * math.sqrt(classes) if self.config.design == "song" else one)
