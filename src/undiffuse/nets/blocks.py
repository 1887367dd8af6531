"""The layers of the U-Net: group norm, time embedding, residual block, attention, resampling.

Parameter names and shapes equal those of the released OpenAI models, so that their files load unchanged
(Nichol & Dhariwal 2021; Dhariwal & Nichol 2021, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undiffuse.kernels import attention, conv_3x3, norm_act

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def norm_groups(channels: int) -> int:
    """Return the number of groups for a group norm: 32, as in all published models, if 32 divides the channels.

    Narrow networks (channels not a multiple of 32) get the largest divisor that leaves at least four channels a
    group, since smaller groups normalise away the signal.
    """
    if channels % 32 == 0:
        return 32
    return next((channels // size for size in range(4, channels + 1) if channels % size == 0), 1)


class GroupNorm(nn.GroupNorm):
    """Group norm whose statistics are computed in float32, whatever the input's precision.

    eps is 1e-5 in Improved DDPM's and ADM's networks and 1e-6 in DDPM's. What follows a norm in these networks is part
    of the same operation, so that an activation is read and written once: with `scale` and `shift` [B, C] it is
    GN(x) (1 + scale) + shift, with `act` a SiLU follows.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(norm_groups(channels), channels, eps=eps)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, act: bool = False
    ) -> Tensor:
        return norm_act(x, self.num_groups, self.weight, self.bias, self.eps, scale=scale, shift=shift, act=act)


def time_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Return the sinusoidal embedding [B, width] of times t [B] (any real numbers): cosines first, then sines.

    frequency_i = max_period^(-i / half), half = width // 2; an odd width is padded with a zero column.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)[None]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return F.pad(embedding, (0, 1)) if width % 2 else embedding


def channels_last(x: Tensor) -> Tensor:
    """Lay x [B, C, H, W] out as [B, H, W, C], in which convolutions and norms are fastest; layers keep the layout.

    Applied behind the first convolution: of an image of one channel both layouts are the same, and a convolution takes
    it for the other one.
    """
    return x.contiguous(memory_format=torch.channels_last)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1 (`kernels.conv_3x3`), with nn.Conv2d's parameters."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv_3x3(x, self.weight, self.bias)


def zero_init(module: AnyModule) -> AnyModule:
    """Set all parameters of `module` to zero and return it (last layer of every residual branch)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def downsample(x: Tensor) -> Tensor:
    """Halve height and width by 2x2 means."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Double height and width by repeating pixels."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Downsample(nn.Module):
    """Halves the resolution by a stride-2 3x3 convolution, or by 2x2 means without parameters."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the resolution by repeating pixels, followed by a 3x3 convolution if `use_conv`."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(upsample(x))


class ResBlock(nn.Module):
    """Residual block conditioned on an embedding; `resample` makes it a BigGAN up- or down-sampling block.

        h = conv(resample(SiLU(GN(x))))
        AdaGN     (use_scale_shift_norm):  h = GN(h) (1 + scale) + shift,  [scale, shift] = linear(SiLU(emb))
        additive:                          h = GN(h + linear(SiLU(emb)))
        out = skip(resample(x)) + conv0(dropout(SiLU(h)))           times 1/sqrt(2) if `rescale`

    The last convolution starts at zero. Shapes: x [B, in, H, W], emb [B, E] -> [B, out, H', W'].
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        out_channels: int | None = None,
        *,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        resample: str = "none",
        rescale: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.resample = {"none": None, "up": upsample, "down": downsample}[resample]
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), Conv3x3(channels, out_channels))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(Conv3x3(out_channels, out_channels)),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """`emb` is the embedding after its SiLU, which is the same for all blocks."""
        return maybe_checkpointed(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm_in, _, conv_in = self.in_layers
        h = norm_in(x, act=True)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv_in(h)
        norm_out, _, dropout, conv_out = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = projected_halves(self.emb_layers[1], emb)
            h = norm_out(h, scale, shift, act=True)
        else:
            h = norm_out(h + projected(self.emb_layers[1], emb)[:, :, None, None].to(h.dtype), act=True)
        if dropout.training:
            h = dropout(h)
        out = convolved_onto(self.skip_connection(x), conv_out, h)
        return out * self.gain if self.gain != 1.0 else out


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual connection: y = x + proj(MHA(qkv(GN(x)))).

    Two layouts of the 3C rows of `qkv` exist in published files and cannot be told apart by shape:
    "legacy" (Improved DDPM and most of ADM: heads outermost, then q, k, v) and "new" (`new_order=True`; q, k, v
    outermost, then heads; ADM's 64x64 model). Weights are those of 1x1 Conv1d layers: [3C, C, 1], [C, C, 1].
    """

    def __init__(
        self, channels: int, heads: int, *, new_order: bool = False, rescale: bool = False, use_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.use_checkpoint = use_checkpoint
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return maybe_checkpointed(self._forward, self.use_checkpoint, x)

    def _forward(self, x: Tensor) -> Tensor:
        attended = multi_head_attention(tokens_of(self.qkv, self.norm(x)), self.heads, self.new_order)
        out = convolved_onto(x, self.proj_out, as_image(attended, x.shape[2:]))
        return out * self.gain if self.gain != 1.0 else out


def as_image(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Return tokens [B, H W, C] as a channels-last image [B, C, H, W]."""
    return tokens.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def tokens_of(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution to x [B, C, H, W]; return tokens [B, H W, C'], of a channels-last x without a copy."""
    if isinstance(conv, nn.Conv1d):
        return pointwise(conv, x.permute(0, 2, 3, 1).flatten(1, 2))
    if (tokens := getattr(conv, "tokens", None)) is not None:
        return tokens(x)
    return conv(x).permute(0, 2, 3, 1).flatten(1, 2)


def projected(linear: nn.Module, emb: Tensor) -> Tensor:
    """Return linear(emb) in float32, also under autocast: these products are tiny and steer every channel."""
    if getattr(linear, "leaves_autocast", False) or not torch.is_autocast_enabled(emb.device.type):
        return linear(emb)
    with torch.autocast(emb.device.type, enabled=False):
        return linear(emb)


def projected_halves(linear: nn.Module, emb: Tensor) -> Sequence[Tensor]:
    """Return the two halves of `projected`'s columns, for example scale and shift."""
    halves = getattr(linear, "halves", None)
    return projected(linear, emb).chunk(2, dim=1) if halves is None else halves(emb)


def convolved_onto(base: Tensor, conv: nn.Module, x: Tensor) -> Tensor:
    """Return base + conv(x) [B, C, H, W], computed by the convolution itself if it can."""
    onto = getattr(conv, "onto", None)
    if onto is not None:
        return onto(base, x)
    if isinstance(conv, nn.Conv1d):  # a 1x1 convolution as a plain product
        out = as_image(pointwise(conv, x.permute(0, 2, 3, 1).flatten(1, 2)), x.shape[2:])
    else:
        out = conv(x)
    return out.add_(base) if out.dtype == base.dtype else base + out  # nothing else needs a convolution's result


def pointwise(conv: nn.Conv1d, tokens: Tensor) -> Tensor:
    """Apply a 1x1 Conv1d to tokens [B, L, C] as a linear layer."""
    return F.linear(tokens, conv.weight[:, :, 0], conv.bias)


def multi_head_attention(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """Return softmax attention [B, L, C] of projections qkv [B, L, 3C], see `kernels.attention`.

    Each head computes softmax(q k^T / sqrt(C / heads)) v; `new_order` is the layout of the 3C columns, see `Attention`.
    """
    b, length, width = qkv.shape
    d = width // (3 * heads)
    if new_order:
        q, k, v = qkv.view(b, length, 3, heads, d).permute(2, 0, 3, 1, 4)
    else:
        q, k, v = qkv.view(b, length, heads, 3, d).permute(3, 0, 2, 1, 4)
    return attention(q, k, v).transpose(1, 2).reshape(b, length, heads * d)


def maybe_checkpointed(function, use_checkpoint: bool, *inputs: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """Return function(*inputs); with `use_checkpoint`, what lies between is recomputed for the gradient, not kept."""
    if use_checkpoint and torch.is_grad_enabled():
        # Non-reentrant: works with frozen weights and double backward, and replays the random state, so that the
        # recomputed dropout masks are those of the forward pass.
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=True)
    return function(*inputs)
