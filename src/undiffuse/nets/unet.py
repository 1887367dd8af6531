"""The U-Net of DDPM (Ho 2020), Improved DDPM (2021) and ADM (2021), and its super-resolution form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.nets.blocks import GroupNorm, Upsample, zero_init
from undiffuse.nets.conditioning import NumberEmbedding, TagEmbedding, check_rows, enlarged, with_picture
from undiffuse.nets.encoder import Encoder, EncoderConfig, TimestepSequential


@dataclass(frozen=True, kw_only=True)
class UNetConfig(EncoderConfig):
    """The arguments of a U-Net; `NetworkConfig` and `EncoderConfig` explain the shared ones.

    Attributes:
        num_classes: Number of classes; None for an unconditional network.
        null_class: Whether the class table has one more row that means "no class", for classifier-free guidance.
        super_resolution: Whether the input image is concatenated with an enlarged low-resolution image (ADM, Appendix).
        num_tags: Number of labels of which an image has any number; 0 for none.
        num_numbers: Number of numbers that the network is conditioned on.
        cond_channels: Channels of a picture that the input image is concatenated with; 0 for none.

    DDPM CIFAR-10: model_channels=128, channel_mult=(1,2,2,2), attention_resolutions=(2,), dropout=0.1.
    ADM 64x64: model_channels=192, channel_mult=(1,2,3,4), num_res_blocks=3, attention_resolutions=(2,4,8),
    num_head_channels=64, use_scale_shift_norm, resblock_updown, use_new_attention_order.
    """

    num_classes: int | None = None
    null_class: bool = False
    super_resolution: bool = False
    num_tags: int = 0
    num_numbers: int = 0
    cond_channels: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(
                f"num_classes must be at least 1, or None for an unconditional network; got {self.num_classes}"
            )
        if self.null_class and self.num_classes is None:
            raise ValueError("null_class needs num_classes")
        for name in ("num_tags", "num_numbers", "cond_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a file, without conditions that the network does not have."""
        later = ("num_tags", "num_numbers", "cond_channels")
        return {name: value for name, value in asdict(self).items() if value or name not in later}

    def build(self) -> UNet:
        """Return a newly initialised network; its output is exactly zero until it is trained or loaded."""
        return UNet(self)


class UNet(Encoder):
    """A U-Net, called as net(x, t, y, low_res, tags, numbers, cond_image) -> [B, out_channels, H, W].

    x are images [B, C, H, W], t any real numbers [B], y class indices [B] from 0 to num_classes - 1 (num_classes: the
    null class, if there is one), low_res images to enlarge [B, C, h, w]. The other conditions are described in
    `conditioning`: tags [B, num_tags], numbers [B, num_numbers], cond_image [B, cond_channels, H, W]; None and NaN mean
    that one is not given. Height and width may differ from the trained size as long as they can be halved once per
    level.
    """

    def __init__(self, config: UNetConfig) -> None:
        beside = config.in_channels if config.super_resolution else 0
        beside += config.cond_channels + 1 if config.cond_channels else 0
        super().__init__(config, config.in_channels + beside)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes + int(config.null_class), 4 * config.model_channels)
        count = config.num_heads if config.num_heads_upsample == -1 else config.num_heads_upsample
        skips, channels = list(self.stage_channels), self.channels
        factor = config.downsampling
        stages: list[nn.Module] = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [config.res_block(channels + skips.pop(), int(config.model_channels * mult))]
                channels = int(config.model_channels * mult)
                if factor in config.attention_resolutions:
                    layers.append(config.attention(channels, count))
                if level and i == config.num_res_blocks:
                    up: nn.Module = Upsample(channels, config.conv_resample)
                    layers.append(config.res_block(channels, resample="up") if config.resblock_updown else up)
                    factor //= 2
                stages.append(TimestepSequential(*layers))
        self.output_blocks = nn.ModuleList(stages)
        self.out = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), zero_init(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )
        if config.num_tags:
            self.tag_emb = TagEmbedding(config.num_tags, 4 * config.model_channels)
        if config.num_numbers:
            self.number_emb = NumberEmbedding(config.num_numbers, 4 * config.model_channels)

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions that the network accepts."""
        c = self.config
        accepted = {
            "y": c.num_classes is not None, "low_res": c.super_resolution, "tags": c.num_tags,
            "numbers": c.num_numbers, "cond_image": c.cond_channels,
        }  # fmt: skip
        return frozenset(name for name, there in accepted.items() if there)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        low_res: Tensor | None = None,
        tags: Tensor | None = None,
        numbers: Tensor | None = None,
        cond_image: Tensor | None = None,
    ) -> Tensor:
        c = self.config
        c.check_input(x, t)
        for name, value in (("tags", tags), ("numbers", numbers), ("cond_image", cond_image)):
            if value is not None and name not in self.conditions:
                raise ValueError(f"{name} was given to a network that does not take it")
        emb = F.silu(self._embed(x, t, y, tags, numbers))
        if c.super_resolution and low_res is None:
            raise ValueError("a super-resolution network needs low_res, the image [B, C, h, w] to enlarge")
        if low_res is not None and not c.super_resolution:
            raise ValueError("low_res was given to a network that is not a super-resolution network")
        h = x if low_res is None else enlarged(low_res, x)
        h = with_picture(h, cond_image, c.cond_channels) if c.cond_channels else h
        h, skips = self.encode(h, emb)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)
        # The last layers run in the input's precision (float32): the prediction itself is never rounded to 16 bit.
        with torch.autocast(x.device.type, enabled=False):
            norm, _, conv = self.out
            return conv(norm(h.float(), act=True))

    def _embed(self, x: Tensor, t: Tensor, y: Tensor | None, tags: Tensor | None, numbers: Tensor | None) -> Tensor:
        emb = self.embed_time(t)
        emb = self._embed_class(x, emb, y)
        rows = x.shape[0]
        for name, count, value in (("tag", self.config.num_tags, tags), ("number", self.config.num_numbers, numbers)):
            if count:
                value = emb.new_full((rows, count), float("nan")) if value is None else value
                check_rows(f"{name}s", value, rows, count)
                with torch.autocast(t.device.type, enabled=False):
                    emb = emb + getattr(self, f"{name}_emb")(value)
        return emb

    def _embed_class(self, x: Tensor, emb: Tensor, y: Tensor | None) -> Tensor:
        classes = self.config.num_classes
        if classes is None:
            if y is not None:
                raise ValueError("class labels were given to an unconditional network")
            return emb
        if y is None:
            if not self.config.null_class:
                raise ValueError(f"this network is conditional on {classes} classes; give y, one class index an image")
            y = torch.full((x.shape[0],), classes, device=x.device, dtype=torch.int64)
        if y.shape != (x.shape[0],):
            raise ValueError(f"expected one class index for each of the {x.shape[0]} images, got shape {list(y.shape)}")
        return emb + self.label_emb(y)
