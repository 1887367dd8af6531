"""The U-Net of denoising-diffusion-pytorch (version 2): RMS norms, linear attention, and full attention where said.

It differs from `UNet` in these respects:

    first convolution    7x7; its output is a skip connection to the last block, too
    norms                x / |x| over the channels, times sqrt(C) and a gain (RMS norm)
    attention            behind every level, linear in the number of pixels but where `full` says otherwise, with a few
                         learned keys and values beside those of the pixels
    resampling           pixels to channels and a 1x1 convolution; nearest neighbours and a 3x3 convolution

Parameter names and shapes are those of that program's files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.nets.blocks import channels_last, maybe_checkpointed, projected, upsample
from undiffuse.nets.config import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class RMSUNetConfig(NetworkConfig):
    """A U-Net of denoising-diffusion-pytorch by its arguments (see `NetworkConfig` for the shared ones).

    Level i works at the width of level i - 1 and ends at its own, `channel_mult[i]` times `model_channels`; two blocks
    a level.

    Attributes:
        architecture: "unet-rms", which tells this configuration from others where both are dictionaries.
        first_channels: Width behind the first convolution; 0 for `model_channels`.
        full: Which levels attend fully, the others linearly.
        heads, head_channels: Attention heads and their channels, a number for each level.
        memory: Learned keys and values of each attention.
        theta: Longest period of the sinusoidal embedding, over 2 pi.
        fourier: Half the number of random or learned frequencies of the embedding; 0 for a sinusoidal one.
    """

    architecture: str = "unet-rms"
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    first_channels: int = 0
    full: tuple[bool, ...] = (False, False, False, True)
    heads: tuple[int, ...] = (4, 4, 4, 4)
    head_channels: tuple[int, ...] = (32, 32, 32, 32)
    memory: int = 4
    theta: float = 10_000.0
    fourier: int = 0

    num_classes: ClassVar[None] = None
    null_class: ClassVar[bool] = False
    super_resolution: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("full", "heads", "head_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        attends = (2**level for level, full in enumerate(self.full) if full)
        object.__setattr__(self, "attention_resolutions", tuple(attends))
        super().__post_init__()
        if self.architecture != "unet-rms":
            raise ValueError(f"this is the configuration of the architecture 'unet-rms', not of {self.architecture!r}")
        if not len(self.channel_mult) == len(self.full) == len(self.heads) == len(self.head_channels):
            raise ValueError("channel_mult, full, heads and head_channels must have one entry a level")
        if self.num_res_blocks != 2:
            raise ValueError(f"this network has 2 blocks a level, got num_res_blocks={self.num_res_blocks}")
        if self.model_channels < 4 and not self.fourier:
            raise ValueError(f"the time embedding needs model_channels of at least 4, got {self.model_channels}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Widths at the ends of all levels, the first convolution's included."""
        return (self.first_channels or self.model_channels, *self.widths)

    def build(self) -> RMSUNet:
        """Build a freshly initialised network."""
        return RMSUNet(self)


class RMSNorm(nn.Module):
    """x / |x| sqrt(C) g, the norm taken over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return (F.normalize(wide, dim=1) * self.g.to(wide.dtype) * math.sqrt(x.shape[1])).to(x.dtype)


class TimeEmbedding(nn.Module):
    """What a time becomes before its MLP, [B] -> [B, width]."""

    def __init__(self, config: RMSUNetConfig) -> None:
        super().__init__()
        self.pairs, self.theta = config.model_channels // 2, config.theta
        self.width = 2 * config.fourier + 1 if config.fourier else 2 * self.pairs
        if config.fourier:
            self.weights = nn.Parameter(nn.init.normal_(torch.empty(config.fourier)))

    def forward(self, t: Tensor) -> Tensor:
        t = t.float()[:, None]
        if hasattr(self, "weights"):
            angles = t * self.weights[None] * 2 * math.pi
            return torch.cat([t, angles.sin(), angles.cos()], dim=1)
        steps = torch.arange(self.pairs, dtype=torch.float32, device=t.device)
        angles = t * torch.exp(-math.log(self.theta) / (self.pairs - 1) * steps)[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """SiLU(RMSNorm(conv(x)) (1 + scale) + shift)."""

    def __init__(self, channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm = RMSNorm(out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        h = self.norm(self.proj(x))
        if scale is not None and shift is not None:
            h = h * (scale + 1).to(h.dtype) + shift.to(h.dtype)
        return self.dropout(F.silu(h))


class ResnetBlock(nn.Module):
    """Two blocks, the first conditioned on the time, and a shortcut; x [B, in, H, W], emb [B, E] -> [B, out, H, W]."""

    def __init__(self, channels: int, out_channels: int, config: RMSUNetConfig) -> None:
        super().__init__()
        self.use_checkpoint = config.use_checkpoint
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, 2 * out_channels))
        self.block1 = Block(channels, out_channels, config.dropout)
        self.block2 = Block(out_channels, out_channels)
        self.res_conv = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return maybe_checkpointed(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = projected(self.mlp[1], F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, scale, shift)) + self.res_conv(x)


class FullAttention(nn.Module):
    """Self-attention over all pixels and some learned keys and values; [B, C, H, W] -> the same, without a residual."""

    def __init__(self, channels: int, heads: int, head: int, memory: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.mem_kv = nn.Parameter(nn.init.normal_(torch.empty(2, heads, memory, head)))
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        q, k, v = (part.unflatten(1, (self.heads, -1)).transpose(2, 3) for part in parts)
        own = self.mem_kv.to(k.dtype).expand(x.shape[0], -1, -1, -1, -1).unbind(1)
        k, v = torch.cat([own[0], k], dim=2), torch.cat([own[1], v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(attended.transpose(2, 3).flatten(1, 2).unflatten(2, tuple(x.shape[2:])))


class LinearAttention(nn.Module):
    """Attention linear in the number of pixels (Katharopoulos et al. 2020), softmax as its feature map.

    q is normalised over the channels of a head, k over the pixels; [B, C, H, W] -> the same, without a residual.
    """

    def __init__(self, channels: int, heads: int, head: int, memory: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, head**-0.5
        self.norm = RMSNorm(channels)
        self.mem_kv = nn.Parameter(nn.init.normal_(torch.empty(2, heads, head, memory)))
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * head, channels, 1), RMSNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in parts)  # [B, heads, channels, pixels]
        own = self.mem_kv.to(k.dtype).expand(x.shape[0], -1, -1, -1, -1).unbind(1)
        k, v = torch.cat([own[0], k], dim=3), torch.cat([own[1], v], dim=3)
        context = k.float().softmax(dim=3).to(v.dtype) @ v.transpose(2, 3)
        attended = context.transpose(2, 3) @ (q.float().softmax(dim=2) * self.scale).to(v.dtype)
        return self.to_out(attended.flatten(1, 2).unflatten(2, tuple(x.shape[2:])))


class Down(nn.Module):
    """Halve the resolution: 2x2 pixels become channels, and a 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class Up(nn.Module):
    """Double the resolution by repeating pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample(x)


def _parts(level: Any) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """The two blocks of a level, its attention, and what resamples."""
    first, second, attend, resample = level
    return first, second, attend, resample


class RMSUNet(nn.Module):
    """net(x [B, C, H, W], t [B]) -> [B, out_channels, H, W]; `t` may be any real number."""

    conditions: frozenset[str] = frozenset()

    def __init__(self, config: RMSUNetConfig) -> None:
        super().__init__()
        self.config = config
        dims, width = config.dims, config.model_channels
        self.init_conv = nn.Conv2d(config.in_channels, dims[0], 7, padding=3)
        embedding = TimeEmbedding(config)
        self.time_mlp = nn.Sequential(
            embedding, nn.Linear(embedding.width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width)
        )

        def attention(level: int, channels: int, full: bool) -> nn.Module:
            kind = FullAttention if full else LinearAttention
            return kind(channels, config.heads[level], config.head_channels[level], config.memory)

        downs, ups = [], []
        top = len(config.widths) - 1
        for level, (begin, end) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            last = level == top
            halve = nn.Sequential(Down(), nn.Conv2d(4 * begin, end, 1))
            blocks = [ResnetBlock(begin, begin, config) for _ in range(2)]
            attend = attention(level, begin, config.full[level])
            resample = nn.Conv2d(begin, end, 3, padding=1) if last else halve
            downs.append(nn.ModuleList([*blocks, attend, resample]))
        self.downs = nn.ModuleList(downs)
        self.mid_block1 = ResnetBlock(dims[-1], dims[-1], config)
        self.mid_attn = attention(top, dims[-1], True)
        self.mid_block2 = ResnetBlock(dims[-1], dims[-1], config)
        for level in range(top, -1, -1):
            begin, end = dims[level], dims[level + 1]
            blocks = [ResnetBlock(end + begin, end, config) for _ in range(2)]
            conv = nn.Conv2d(end, begin, 3, padding=1)
            attend = attention(level, end, config.full[level])
            ups.append(nn.ModuleList([*blocks, attend, conv if level == 0 else nn.Sequential(Up(), conv)]))
        self.ups = nn.ModuleList(ups)
        self.final_res_block = ResnetBlock(2 * dims[0], dims[0], config)
        self.final_conv = nn.Conv2d(dims[0], config.out_channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.config.check_input(x, t)
        with torch.autocast(t.device.type, enabled=False):
            emb = self.time_mlp(t)
        h = first = channels_last(self.init_conv(x))
        held: list[Tensor] = []
        for level in self.downs:
            first_block, second_block, attend, resample = _parts(level)
            h = first_block(h, emb)
            held.append(h)
            h = second_block(h, emb)
            h = attend(h) + h
            held.append(h)
            h = resample(h)
        h = self.mid_block1(h, emb)
        h = self.mid_block2(self.mid_attn(h) + h, emb)
        for level in self.ups:
            first_block, second_block, attend, resample = _parts(level)
            h = first_block(torch.cat([h, held.pop()], dim=1), emb)
            h = second_block(torch.cat([h, held.pop()], dim=1), emb)
            h = resample(attend(h) + h)
        h = self.final_res_block(torch.cat([h, first], dim=1), emb)
        # The last layer runs in the input's precision (float32): the prediction itself is never rounded to 16 bit.
        with torch.autocast(x.device.type, enabled=False):
            return self.final_conv(h.to(self.final_conv.weight.dtype))
