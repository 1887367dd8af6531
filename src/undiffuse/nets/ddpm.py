"""DDPM's U-Net as its authors' weights need it (Ho, Jain & Abbeel 2020, arXiv:2006.11239, Appendix B).

`UNet` with DDPM's arguments has the same layers and is what a new training should use; weights trained by the authors'
code, or by DDIM's, need a network that differs from it in these details:

    time embedding    sines before cosines, frequency_i = 10000^(-i / (half - 1))
    group norm        eps 1e-6
    down-sampling     the stride-2 convolution is padded on the right and at the bottom only
    attention         one head; q, k and v are layers of their own
    conditioning      by addition, after the first convolution; the variance is not learned

Parameter names and shapes are those of the PyTorch conversions of the authors' files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.nets.blocks import (
    Conv3x3,
    GroupNorm,
    Upsample,
    channels_last,
    convolved_onto,
    maybe_checkpointed,
    multi_head_attention,
    projected,
    zero_init,
)
from undiffuse.nets.config import NetworkConfig

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(NetworkConfig):
    """The arguments of DDPM's U-Net, see `NetworkConfig`; the defaults are the authors' for CIFAR-10.

    Their network for 256x256: image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,). Attention
    is always used in the middle block too. The network takes no condition and, its variance being fixed, has as many
    channels out as in. `architecture` tells this configuration from a `UNetConfig` where both are dictionaries.
    """

    architecture: str = "ddpm"
    image_size: int | tuple[int, int] = 32
    attention_resolutions: tuple[int, ...] = (2,)

    # Fields that `describe` reads of any network.
    num_classes: ClassVar[None] = None
    null_class: ClassVar[bool] = False
    super_resolution: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture != "ddpm":
            raise ValueError(f"this is the configuration of the architecture 'ddpm', not of {self.architecture!r}")
        if self.out_channels != self.in_channels:
            raise ValueError(
                f"DDPM's network predicts an image and no variance: it has {self.in_channels} channels in, so "
                f"out_channels must be {self.in_channels}, got {self.out_channels}"
            )
        if self.model_channels < 4:
            raise ValueError(f"DDPM's time embedding needs model_channels of at least 4, got {self.model_channels}")

    def build(self) -> DDPMUNet:
        """Return a newly initialised network; its output is exactly zero until it is trained or loaded."""
        return DDPMUNet(self)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding [B, width] of times t [B] (any real numbers): sines first, then cosines.

    frequency_i = 10000^(-i / (half - 1)), half = width // 2; an odd width is padded with a zero column.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10_000.0) / (half - 1))
    angles = t.float()[:, None] * torch.exp(exponents)[None]
    return F.pad(torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1), (0, width % 2))


class Downsample(nn.Module):
    """Halves the resolution by a stride-2 3x3 convolution that is padded at the right and lower edges only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResBlock(nn.Module):
    """out = shortcut(x) + conv2(dropout(SiLU(GN(conv1(SiLU(GN(x))) + linear(SiLU(emb)))))); conv2 starts at zero.

    Shapes: x [B, in, H, W], emb [B, E] -> [B, out, H, W]; the shortcut is a 1x1 convolution where in differs from out.
    """

    def __init__(self, channels: int, out_channels: int, config: DDPMConfig) -> None:
        super().__init__()
        self.use_checkpoint = config.use_checkpoint
        self.norm1 = GroupNorm(channels, EPS)
        self.conv1 = Conv3x3(channels, out_channels)
        self.temb_proj = nn.Linear(4 * config.model_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """`emb` is the embedding after its SiLU, which is the same for all blocks."""
        return maybe_checkpointed(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, act=True))
        h = h + projected(self.temb_proj, emb)[:, :, None, None].to(h.dtype)
        return convolved_onto(self.nin_shortcut(x), self.conv2, self.dropout(self.norm2(h, act=True)))


class Attention(nn.Module):
    """Single-head self-attention over all pixels, with a residual connection; proj_out starts at zero.

    y = x + proj_out(softmax(q k^T / sqrt(C)) v), with q, k, v 1x1 convolutions of GN(x); [B, C, H, W] -> the same.
    """

    def __init__(self, channels: int, use_checkpoint: bool) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.norm = GroupNorm(channels, EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return maybe_checkpointed(self._forward, self.use_checkpoint, x)

    def _forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        qkv = torch.cat([self.q(h), self.k(h), self.v(h)], dim=1)
        attended = multi_head_attention(qkv.flatten(2).transpose(1, 2), heads=1, new_order=True)
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class TimeMLP(nn.Module):
    """Embedding [B, 4 width] of times t [B] (any real numbers), in float32 also under autocast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.dense = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])

    def forward(self, t: Tensor) -> Tensor:
        first, second = self.dense
        with torch.autocast(t.device.type, enabled=False):
            return second(F.silu(first(time_embedding(t, self.width))))


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention if `attends`; `inputs` are the channels of each block."""

    def __init__(self, inputs: list[int], channels: int, attends: bool, config: DDPMConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(count, channels, config) for count in inputs)
        self.attn = nn.ModuleList(Attention(channels, config.use_checkpoint) for _ in inputs if attends)

    def apply_block(self, i: int, x: Tensor, emb: Tensor) -> Tensor:
        x = self.block[i](x, emb)
        return self.attn[i](x) if len(self.attn) else x


class Down(Level):
    """One resolution on the way down: the outputs of its blocks, and of the layer that halves the last."""

    def __init__(self, inputs: list[int], channels: int, attends: bool, last: bool, config: DDPMConfig) -> None:
        super().__init__(inputs, channels, attends, config)
        self.downsample = None if last else Downsample(channels)

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        outputs = []
        for i in range(len(self.block)):
            x = self.apply_block(i, x, emb)
            outputs.append(x)
        return outputs if self.downsample is None else [*outputs, self.downsample(x)]


class Up(Level):
    """One resolution on the way up: every block takes the newest of `skips` (and removes it), the last is doubled."""

    def __init__(self, inputs: list[int], channels: int, attends: bool, last: bool, config: DDPMConfig) -> None:
        super().__init__(inputs, channels, attends, config)
        self.upsample = None if last else Upsample(channels, use_conv=True)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.block)):
            x = self.apply_block(i, torch.cat([x, skips.pop()], dim=1), emb)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, config: DDPMConfig) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, config)
        self.attn_1 = Attention(channels, config.use_checkpoint)
        self.block_2 = ResBlock(channels, channels, config)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, emb)), emb)


class DDPMUNet(nn.Module):
    """DDPM's U-Net, called as net(x, t) -> [B, C, H, W].

    x are images [B, C, H, W], t any real numbers [B]. Height and width may differ from the trained size as long as they
    can be halved once per level. `up[i]` has the resolution of `down[i]`.
    """

    conditions: frozenset[str] = frozenset()
    channels_last = True

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__()
        self.config = config
        width, blocks = config.model_channels, config.num_res_blocks
        self.temb = TimeMLP(width)
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        channels, skips, top = width, [width], len(config.widths) - 1
        down: list[nn.Module] = []
        for i, out in enumerate(config.widths):
            attends = 2**i in config.attention_resolutions
            down.append(Down([channels, *[out] * (blocks - 1)], out, attends, i == top, config))
            skips += [out] * (blocks if i == top else blocks + 1)
            channels = out
        self.down = nn.ModuleList(down)
        self.mid = Middle(channels, config)
        up: list[nn.Module] = []
        for i, out in reversed(list(enumerate(config.widths))):
            inputs = [(channels if n == 0 else out) + skips.pop() for n in range(blocks + 1)]
            up.append(Up(inputs, out, 2**i in config.attention_resolutions, i == 0, config))
            channels = out
        self.up = nn.ModuleList(reversed(up))
        self.norm_out = GroupNorm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """As in the authors' code: uniform with variance 2 / (fan_in + fan_out), biases and last layers zero."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResBlock):
                zero_init(module.conv2)
            elif isinstance(module, Attention):
                zero_init(module.proj_out)
        zero_init(self.conv_out)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.config.check_input(x, t)
        emb = F.silu(self.temb(t))
        skips = [channels_last(self.conv_in(x))]
        for level in self.down:
            skips += level(skips[-1], emb)
        h = self.mid(skips[-1], emb)
        for level in reversed(self.up):
            h = level(h, emb, skips)
        # The last layers run in the input's precision (float32): the prediction itself is never rounded to 16 bit.
        with torch.autocast(x.device.type, enabled=False):
            return self.conv_out(self.norm_out(h.to(self.norm_out.weight.dtype), act=True))
