"""The encoder that the U-Net and the noisy classifier share, and its configuration fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.nets.blocks import Attention, Downsample, ResBlock, channels_last, time_embedding
from undiffuse.nets.config import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(NetworkConfig):
    """Fields of the U-Net and the classifier in addition to those of `NetworkConfig`.

    Attributes:
        conv_resample: Whether resampling between levels uses convolutions.
        num_heads: Number of attention heads, used if `num_head_channels` is -1.
        num_head_channels: Channels per attention head; the number of heads follows (ADM: 64).
        num_heads_upsample: Number of heads in the decoder if heads are given by number; -1 means `num_heads`.
        use_scale_shift_norm: Whether conditioning is by adaptive group norm; otherwise it is added.
        resblock_updown: Whether BigGAN residual blocks resample instead.
        use_new_attention_order: Layout of the qkv rows, see `Attention`.
        rescale_residual: Whether the sum of residual and skip branch is multiplied by 1/sqrt(2) (ADM, Table 1).
    """

    conv_resample: bool = True
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    rescale_residual: bool = False

    def heads(self, channels: int, count: int) -> int:
        """Return the number of attention heads at a level of `channels` channels.

        Raises:
            ValueError: The channels cannot be split into heads.
        """
        if self.num_head_channels == -1:
            if channels % count:
                raise ValueError(f"{channels} channels cannot be split into {count} heads; change num_heads")
            return count
        if channels % self.num_head_channels:
            raise ValueError(
                f"{channels} channels cannot be split into heads of {self.num_head_channels} channels; "
                "change num_head_channels or channel_mult"
            )
        return channels // self.num_head_channels

    def res_block(self, channels: int, out_channels: int | None = None, resample: str = "none") -> ResBlock:
        """Build a residual block, see `ResBlock`."""
        return ResBlock(
            channels,
            4 * self.model_channels,
            out_channels,
            dropout=self.dropout,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resample=resample,
            rescale=self.rescale_residual,
            use_checkpoint=self.use_checkpoint,
        )

    def attention(self, channels: int, count: int) -> Attention:
        """Build an attention layer of `count` heads, if heads are given by number."""
        return Attention(
            channels,
            self.heads(channels, count),
            new_order=self.use_new_attention_order,
            rescale=self.rescale_residual,
            use_checkpoint=self.use_checkpoint,
        )


class TimestepSequential(nn.Sequential):
    """Runs layers in sequence; residual blocks among them also get the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class Encoder(nn.Module):
    """Time embedding, encoder and middle block: everything up to the lowest resolution.

    `encode` returns the middle block's output and the outputs of all encoder stages, of which the U-Net's decoder
    takes its skip connections and the "spatial" classifiers their features.
    """

    channels_last = True

    def __init__(self, config: EncoderConfig, in_channels: int) -> None:
        super().__init__()
        self.config: Any = config
        width, embedding = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        channels = int(width * config.channel_mult[0])
        stages: list[nn.Module] = [TimestepSequential(nn.Conv2d(in_channels, channels, 3, padding=1))]
        self.stage_channels = [channels]
        factor = 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [config.res_block(channels, int(width * mult))]
                channels = int(width * mult)
                if factor in config.attention_resolutions:
                    layers.append(config.attention(channels, config.num_heads))
                stages.append(TimestepSequential(*layers))
                self.stage_channels.append(channels)
            if level < len(config.channel_mult) - 1:
                down: nn.Module = Downsample(channels, config.conv_resample)
                if config.resblock_updown:
                    down = config.res_block(channels, resample="down")
                stages.append(TimestepSequential(down))
                self.stage_channels.append(channels)
                factor *= 2
        self.input_blocks = nn.ModuleList(stages)
        self.middle_block = TimestepSequential(
            config.res_block(channels), config.attention(channels, config.num_heads), config.res_block(channels)
        )
        self.channels = channels

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the embedding [B, 4 model_channels] of times t [B], before its last SiLU, in float32 always."""
        with torch.autocast(t.device.type, enabled=False):
            return self.time_embed(time_embedding(t, self.config.model_channels))

    def encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder and the middle block.

        Args:
            x: Input [B, C, H, W].
            emb: Embedding [B, E] after its SiLU.

        Returns:
            The output of the middle block, and the outputs of the encoder's stages.
        """
        first, *others = self.input_blocks
        x = channels_last(first(x, emb))
        outputs = [x]
        for stage in others:
            x = stage(x, emb)
            outputs.append(x)
        return self.middle_block(x, emb), outputs
