"""The U-Net of diffusers (UNet2DModel), for models trained there; a new training is better served by `UNet`.

References:
    Blocks and embeddings after Ho et al. 2020 (DDPM), Dhariwal & Nichol 2021 (ADM) and Song et al. 2021 (NCSN++); which
    of them a network has is said by its configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.nets.blocks import channels_last
from undiffuse.nets.config import NetworkConfig
from undiffuse.nets.unet2d_blocks import ACTIVATIONS, DownLevel, Middle2D, Norm, UpLevel

DOWN_TYPES = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
UP_TYPES = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")
TIMES = ("positional", "fourier", "learned")
CLASS_EMBEDDINGS = ("table", "number", "vector")


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig(NetworkConfig):
    """A UNet2DModel by its arguments (see `NetworkConfig` for the shared ones).

    Attributes:
        architecture: "unet2d", which tells this configuration from others where both are dictionaries.
        down_types: diffusers' block type of each level, the full resolution first.
        up_types: The same on the way up, the lowest resolution first.
        head_channels: Channels of an attention head; None for one head whatever the width.
        norm_groups: Groups of the group norms; None where all levels are skip levels, which choose for themselves.
        mid_norm_groups: Groups of the norm in the middle attention. None: as `norm_groups`, or no norm at all where
            `time_scale_shift` is true.
        norm_eps: Epsilon of the group norms.
        activation: One of `ACTIVATIONS`, in residual blocks and behind the time embedding.
        time_scale_shift: Whether the embedding scales and shifts (true) or is added (false).
        time_type: "positional" (sinusoidal), "fourier" (of the time's logarithm, by drawn frequencies) or "learned" (a
            table of `time_steps` rows).
        divided_by_time: Whether the output of a network with Fourier times is divided by the time.
        time_steps: Rows of a learned time embedding.
        time_channels: Width of the embedding; 0 for four times the width of the first level.
        cosine_first: Whether cosines come before sines in a sinusoidal embedding.
        frequency_shift: Frequencies are 10000^(-i / (half - shift)).
        downsample_padding: Of convolutions that halve: 1 on all sides, 0 for right and below only.
        resnet_down, resnet_up: Whether levels with attention resample by residual blocks instead of convolutions.
        middle: Whether there is a middle block.
        mid_attention: Whether it attends.
        mid_scale: What its residual sums are divided by.
        unit_range: Whether it was trained on images in [0, 1]: the input is mapped there from [-1, 1] first.
        centre: Whether the input is then mapped from [0, 1] to [-1, 1].
        class_embedding: How classes are given: a "table" of `num_classes` rows (and one for `null_class`), a "number"
            that is embedded like the time, or a "vector" as wide as the embedding; None without classes. A number of
            classes means a table if nothing else is said, and a table without classes is none.
        num_classes: Number of classes where it is known.
        null_class: Whether the table has one more row, meaning "no class".
    """

    architecture: str = "unet2d"
    down_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    head_channels: int | None = 8
    norm_groups: int | None = 32
    mid_norm_groups: int | None = None
    norm_eps: float = 1e-5
    activation: str = "silu"
    time_scale_shift: bool = False
    time_type: str = "positional"
    divided_by_time: bool = True
    time_steps: int = 0
    time_channels: int = 0
    cosine_first: bool = True
    frequency_shift: float = 0
    downsample_padding: int = 1
    resnet_down: bool = False
    resnet_up: bool = False
    middle: bool = True
    mid_attention: bool = True
    mid_scale: float = 1.0
    unit_range: bool = False
    centre: bool = False
    class_embedding: str | None = None
    num_classes: int | None = None
    null_class: bool = False

    super_resolution: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("down_types", "up_types"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        attends = (2**level for level, kind in enumerate(self.down_types) if kind.startswith("Attn"))
        object.__setattr__(self, "attention_resolutions", tuple(attends))
        if self.class_embedding is None and self.num_classes is not None:
            object.__setattr__(self, "class_embedding", "table")
        elif self.class_embedding == "table" and self.num_classes is None:
            object.__setattr__(self, "class_embedding", None)
        super().__post_init__()
        if self.architecture != "unet2d":
            raise ValueError(f"this is the configuration of the architecture 'unet2d', not of {self.architecture!r}")
        if not len(self.down_types) == len(self.up_types) == len(self.channel_mult):
            raise ValueError("down_types, up_types and channel_mult must have one entry a level")
        for given, known in ((self.down_types, DOWN_TYPES), (self.up_types, UP_TYPES)):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise ValueError(f"unknown block type {unknown[0]!r}; known are {', '.join(known)}")
        words = (
            ("time_type", self.time_type, TIMES),
            ("activation", self.activation, tuple(ACTIVATIONS)),
            ("class_embedding", self.class_embedding, (None, *CLASS_EMBEDDINGS)),
            ("downsample_padding", self.downsample_padding, (0, 1)),
        )
        for name, value, allowed in words:
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(str, allowed))}")
        if any("Skip" in kind for kind in (*self.down_types, *self.up_types)) and self.in_channels != 3:
            raise ValueError(f"skip levels carry an image of 3 channels, and in_channels is {self.in_channels}")
        skips = ["Skip" in kind for kind in self.down_types[:-1]]
        if sorted(skips, reverse=True) != skips:
            raise ValueError("a skip level below a plain one gets no image: skip levels must come first in down_types")
        if self.time_type == "learned" and self.time_steps < 1:
            raise ValueError("a learned time embedding needs time_steps, its number of rows")

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return self.time_channels or 4 * self.widths[0]

    @property
    def groups(self) -> int:
        """Groups of ordinary group norms. ValueError where none are given."""
        if self.norm_groups is None:
            raise ValueError("norm_groups is needed wherever a level is no skip level")
        return self.norm_groups

    def build(self) -> UNet2D:
        """Build a freshly initialised network."""
        return UNet2D(self)


class TimeTable(nn.Module):
    """What a time becomes before its MLP, [B] -> [B, width]; its parameters, if any, are called `weight`."""

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        self.kind, self.cosine_first, self.shift = config.time_type, config.cosine_first, config.frequency_shift
        channels = config.widths[0]
        self.width = 2 * channels if self.kind == "fourier" else channels
        self.pairs = channels // 2
        if self.kind == "learned":
            self.weight = nn.Parameter(nn.init.normal_(torch.empty(config.time_steps, channels)))
        elif self.kind == "fourier":
            self.weight = nn.Parameter(16 * nn.init.normal_(torch.empty(channels)), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        if self.kind == "learned":
            return self.weight[t.round().long()]
        t = t.float()
        if self.kind == "fourier":
            angles = t.log()[:, None] * self.weight[None] * 2 * math.pi
            return torch.cat([angles.sin(), angles.cos()], dim=1)
        steps = torch.arange(self.pairs, dtype=torch.float32, device=t.device)
        angles = t[:, None] * torch.exp(-math.log(10_000.0) * steps / (self.pairs - self.shift))[None]
        parts = [angles.cos(), angles.sin()] if self.cosine_first else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(parts, dim=1), (0, self.width - 2 * self.pairs))


class EmbeddingMLP(nn.Module):
    """Two linear layers with a SiLU between them, in float32 also under autocast."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.linear_2(F.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))


class UNet2D(nn.Module):
    """net(x [B, C, H, W], t [B], y [B] or [B, E] or None) -> [B, out_channels, H, W].

    `t` may be any real number; a learned time embedding takes the nearest row. `y` are class indices, or an embedding
    where the configuration says so. Height and width may differ from the trained size as long as they can be halved
    once a level.
    """

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.widths, config.num_res_blocks
        self.time_proj = TimeTable(config)
        self.time_embedding = EmbeddingMLP(self.time_proj.width, config.time_width)
        if config.class_embedding == "table":
            assert config.num_classes is not None
            self.class_embedding: nn.Module = nn.Embedding(config.num_classes + config.null_class, config.time_width)
        elif config.class_embedding == "number":
            self.class_embedding = EmbeddingMLP(self.time_proj.width, config.time_width)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        top = len(widths) - 1
        before = (widths[0], *widths)
        self.down_blocks = nn.ModuleList(
            DownLevel(kind, before[i], widths[i], i == top, config) for i, kind in enumerate(config.down_types)
        )
        self.mid_block = Middle2D(widths[-1], config) if config.middle else None
        up = []
        for i, kind in enumerate(config.up_types):
            out = widths[top - i]
            inputs = [widths[min(top, top - i + 1)], *[out] * blocks]
            skips = [*[out] * blocks, widths[max(0, top - i - 1)]]
            up.append(UpLevel(kind, inputs, skips, out, i == top, config))
        self.up_blocks = nn.ModuleList(up)
        groups = config.norm_groups or min(widths[0] // 4, 32)
        self.conv_norm_out = Norm(widths[0], groups, config.norm_eps, "silu")
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions the network takes besides image and time."""
        return frozenset(() if self.config.class_embedding is None else ("y",))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.config.check_input(x, t)
        emb = ACTIVATIONS[self.config.activation](self._embed(x, t, y))
        image = x
        if self.config.unit_range != self.config.centre:  # one map undoes the other
            image = (x + 1) / 2 if self.config.unit_range else 2 * x - 1
        h = channels_last(self.conv_in(image))
        held = [h]
        for down in self.down_blocks:
            outputs, image = down(h, emb, image)
            held += outputs
            h = outputs[-1]
        if self.mid_block is not None:
            h = self.mid_block(h, emb)
        summed: Tensor | None = None
        for up in self.up_blocks:
            h, summed = up(h, emb, held, summed)
        # The last layers run in the input's precision (float32): the prediction itself is never rounded to 16 bit.
        with torch.autocast(x.device.type, enabled=False):
            out = self.conv_out(self.conv_norm_out(h.to(self.conv_norm_out.weight.dtype)))
            if summed is not None:
                out = out + summed.to(out.dtype)
            if self.config.time_type == "fourier" and self.config.divided_by_time:
                out = out / t.reshape(-1, 1, 1, 1).to(out.dtype)
            return out

    def _embed(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        emb = self.time_embedding(self.time_proj(t))
        kind = self.config.class_embedding
        if kind is None:
            if y is not None:
                raise ValueError("class labels were given to an unconditional network")
            return emb
        if y is None and self.config.null_class:
            y = torch.full((x.shape[0],), self.config.num_classes or 0, device=x.device, dtype=torch.int64)
        wanted = (x.shape[0], self.config.time_width) if kind == "vector" else (x.shape[0],)
        if y is None or y.shape != wanted:
            given = "none" if y is None else f"shape {list(y.shape)}"
            what = "an embedding" if kind == "vector" else "one class index for each image"
            raise ValueError(f"this network is conditional: expected y, {what} {list(wanted)}, got {given}")
        if kind == "vector":
            return emb + y.to(emb.dtype)
        return emb + self.class_embedding(self.time_proj(y) if kind == "number" else y)
