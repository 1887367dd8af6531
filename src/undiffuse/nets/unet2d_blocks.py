"""Blocks of diffusers' UNet2DModel: residual block, attention, resampling, and the levels made of them.

Modules are called as in diffusers, so that its weights load by their own names. What is peculiar to these networks:

    residual blocks    additive or scale-shift conditioning, any activation, the sum divided by `output_scale`
    skip levels        "Skip..." types carry an image along that is resampled by a [1, 3, 3, 1] filter (NCSN++, Song et
                       al. 2021), use other numbers of groups than all else, and divide sums by sqrt(2)
    middle attention   without a group norm where conditioning is by scale and shift and no number of groups is given
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.kernels import norm_act
from undiffuse.nets.blocks import Conv3x3, Upsample, convolved_onto, downsample, maybe_checkpointed, projected, upsample

if TYPE_CHECKING:
    from undiffuse.nets.unet2d import UNet2DConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}
SQRT2 = math.sqrt(2.0)


class Norm(nn.GroupNorm):
    """Group norm with statistics in float32, which may be followed by scale, shift and an activation."""

    def __init__(self, channels: int, groups: int, eps: float, act: str = "") -> None:
        if groups < 1 or channels % groups:
            raise ValueError(f"{channels} channels cannot be normalised in {groups} groups")
        super().__init__(groups, channels, eps=eps)
        self.act = act

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        fused = self.act in ("silu", "swish")
        out = norm_act(x, self.num_groups, self.weight, self.bias, self.eps, scale=scale, shift=shift, act=fused)
        return out if fused or not self.act else ACTIVATIONS[self.act](out)


class ResBlock2D(nn.Module):
    """A residual block conditioned on an embedding, which may halve or double the resolution.

    Shapes: x [B, in, H, W], emb [B, E] after its activation -> [B, out, H', W'].
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        config: UNet2DConfig,
        *,
        groups: int | None = None,
        groups_out: int | None = None,
        scale: float = 1.0,
        resample: Callable[[Tensor], Tensor] | None = None,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = config.use_checkpoint
        self.output_scale, self.resample = scale, resample
        self.scale_shift = config.time_scale_shift
        groups = groups or config.groups
        self.norm1 = Norm(channels, groups, config.norm_eps, config.activation)
        self.conv1 = Conv3x3(channels, out_channels)
        self.time_emb_proj = nn.Linear(config.time_width, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = Norm(out_channels, groups_out or groups, config.norm_eps, config.activation)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        joined = shortcut or channels != out_channels
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if joined else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return maybe_checkpointed(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.norm1(x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        conditioning = projected(self.time_emb_proj, emb)
        if self.scale_shift:
            h = self.norm2(h, *conditioning.chunk(2, dim=1))
        else:
            h = self.norm2(h + conditioning[:, :, None, None].to(h.dtype))
        out = convolved_onto(self.conv_shortcut(x), self.conv2, self.dropout(h))
        return out / self.output_scale if self.output_scale != 1.0 else out


class Attention2D(nn.Module):
    """Self-attention over all pixels: (x + to_out(MHA(GN(x)))) / scale, [B, C, H, W] -> the same."""

    def __init__(self, channels: int, config: UNet2DConfig, groups: int | None, scale: float = 1.0) -> None:
        super().__init__()
        self.use_checkpoint = config.use_checkpoint
        self.output_scale = scale
        head = config.head_channels or channels
        self.heads = channels // head
        if self.heads < 1:
            raise ValueError(f"{channels} channels are fewer than the {head} of one attention head")
        self.group_norm = None if groups is None else Norm(channels, groups, config.norm_eps)
        inner = self.heads * head
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return maybe_checkpointed(self._forward, self.use_checkpoint, x)

    def _forward(self, x: Tensor) -> Tensor:
        h = x if self.group_norm is None else self.group_norm(x)
        tokens = h.permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = (part(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.projections)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = self.to_out[0](attended).unflatten(1, tuple(x.shape[2:])).permute(0, 3, 1, 2)
        out = x + out.to(x.dtype)
        return out / self.output_scale if self.output_scale != 1.0 else out

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """The layers of queries, keys and values."""
        return self.to_q, self.to_k, self.to_v


class Downsample2D(nn.Module):
    """Halve the resolution by a stride-2 3x3 convolution, padded on all sides or, with padding 0, right and below."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.one_sided = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.one_sided else x)


def _filter(x: Tensor) -> Tensor:
    """The separable filter [1, 3, 3, 1] / 8 as one 4x4 filter a channel, [C, 1, 4, 4]."""
    near = (torch.arange(4, device=x.device) - 1.5).abs() < 1  # made on the device, so that CUDA graphs can hold it
    taps = (1 + 2 * near).to(x.dtype) / 8
    return torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)


def filtered_down(x: Tensor) -> Tensor:
    """Halve height and width behind the filter; beyond the edges are zeros."""
    return F.conv2d(x, _filter(x), stride=2, padding=1, groups=x.shape[1])


def filtered_up(x: Tensor) -> Tensor:
    """Double height and width by zeros between pixels and the filter, times 4."""
    return F.conv_transpose2d(x, 4 * _filter(x), stride=2, padding=1, groups=x.shape[1])


class DownLevel(nn.Module):
    """One resolution on the way down; `kind` is diffusers' name of the block type."""

    def __init__(self, kind: str, channels: int, out_channels: int, last: bool, config: UNet2DConfig) -> None:
        super().__init__()
        self.skips = "Skip" in kind
        few = min(out_channels // 4, 32)
        resnets = []
        for i in range(config.num_res_blocks):
            width = channels if i == 0 else out_channels
            own = {"groups": min(width // 4, 32), "groups_out": few, "scale": SQRT2} if self.skips else {}
            resnets.append(ResBlock2D(width, out_channels, config, **own))  # type: ignore[arg-type]
        self.resnets = nn.ModuleList(resnets)
        self.attentions = attentions(kind, out_channels, config.num_res_blocks, config)
        self.downsamplers = nn.ModuleList()
        if last:
            return
        if self.skips:
            self.resnet_down = ResBlock2D(
                out_channels, out_channels, config, groups=few, scale=SQRT2, resample=filtered_down, shortcut=True
            )
            self.skip_conv = nn.Conv2d(3, out_channels, 1)
        elif kind.startswith("Resnet") or (kind.startswith("Attn") and config.resnet_down):
            self.downsamplers.append(ResBlock2D(out_channels, out_channels, config, resample=downsample))
        else:
            self.downsamplers.append(Downsample2D(out_channels, config.downsample_padding))
        self.resamples = True

    resamples = False

    def forward(self, x: Tensor, emb: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of the blocks and of the layer that halves the last, and the image carried along."""
        outputs = []
        for i, block in enumerate(self.resnets):
            x = block(x, emb)
            x = self.attentions[i](x) if len(self.attentions) else x
            outputs.append(x)
        if not self.resamples:
            return outputs, image
        if self.skips:
            image = filtered_down(image)
            return [*outputs, self.skip_conv(image) + self.resnet_down(x, emb)], image
        layer = self.downsamplers[0]
        return [*outputs, layer(x, emb) if isinstance(layer, ResBlock2D) else layer(x)], image


class UpLevel(nn.Module):
    """One resolution on the way up; every block takes the newest of the skip connections and removes it."""

    def __init__(self, kind: str, inputs: list[int], skips: list[int], out_channels: int, last: bool,
                 config: UNet2DConfig) -> None:  # fmt: skip
        super().__init__()
        self.skips = "Skip" in kind
        few = min(out_channels // 4, 32)
        resnets = []
        for width, skip in zip(inputs, skips, strict=True):
            # diffusers divides the skip connection alone by 4 in the skip level with attention
            many = width + skip // 4 if kind.startswith("Attn") else (width + skip) // 4
            own = {"groups": min(many, 32), "groups_out": few, "scale": SQRT2} if self.skips else {}
            resnets.append(ResBlock2D(width + skip, out_channels, config, **own))  # type: ignore[arg-type]
        self.resnets = nn.ModuleList(resnets)
        self.attentions = attentions(kind, out_channels, 1 if self.skips else len(inputs), config)
        self.upsamplers = nn.ModuleList()
        if last:
            return
        if self.skips:
            self.resnet_up = ResBlock2D(
                out_channels, out_channels, config, groups=few, scale=SQRT2, resample=filtered_up, shortcut=True
            )
            self.skip_conv = nn.Conv2d(out_channels, 3, 3, padding=1)
            self.skip_norm = Norm(out_channels, few, config.norm_eps, "silu")
        elif kind.startswith("Resnet") or (kind.startswith("Attn") and config.resnet_up):
            self.upsamplers.append(ResBlock2D(out_channels, out_channels, config, resample=upsample))
        else:
            self.upsamplers.append(Upsample(out_channels, use_conv=True))
        self.resamples = True

    resamples = False

    def forward(self, x: Tensor, emb: Tensor, held: list[Tensor], image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the level's output and the image that the skip levels add up."""
        for i, block in enumerate(self.resnets):
            x = block(torch.cat([x, held.pop()], dim=1), emb)
            x = self.attentions[i](x) if len(self.attentions) and not self.skips else x
        if self.skips:
            x = self.attentions[0](x) if len(self.attentions) else x
            image = None if image is None else filtered_up(image)
            if self.resamples:
                part = self.skip_conv(self.skip_norm(x))
                image = part if image is None else image + part
                x = self.resnet_up(x, emb)
            return x, image
        if self.resamples:
            layer = self.upsamplers[0]
            x = layer(x, emb) if isinstance(layer, ResBlock2D) else layer(x)
        return x, image


def attentions(kind: str, channels: int, count: int, config: UNet2DConfig) -> nn.ModuleList:
    """The attention layers of a level, none where its type has none."""
    if not kind.startswith("Attn"):
        return nn.ModuleList()
    groups, scale = (32, SQRT2) if "Skip" in kind else (config.groups, 1.0)
    return nn.ModuleList(Attention2D(channels, config, groups, scale) for _ in range(count))


class Middle2D(nn.Module):
    """Residual block, attention if there is any, residual block at the lowest resolution."""

    def __init__(self, channels: int, config: UNet2DConfig) -> None:
        super().__init__()
        groups = config.norm_groups or min(channels // 4, 32)
        scale = config.mid_scale
        self.resnets = nn.ModuleList(
            ResBlock2D(channels, channels, config, groups=groups, scale=scale) for _ in range(2)
        )
        norm = config.mid_norm_groups or (None if config.time_scale_shift else groups)
        self.attentions = nn.ModuleList([Attention2D(channels, config, norm, scale)] if config.mid_attention else [])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        x = self.attentions[0](x) if len(self.attentions) else x
        return self.resnets[1](x, emb)
