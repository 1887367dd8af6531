"""Configuration fields of all of the library's networks: image size, channels, widths, and where attention is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

_MOST = {"in_channels": 1 << 16, "model_channels": 1 << 16, "out_channels": 1 << 24, "num_res_blocks": 1000}
"""The largest values of fields. They are far beyond any network, and a damaged file builds nothing for hours."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Fields common to all networks. Their names are those of the original constructors.

    Attributes:
        image_size: Trained size in pixels, one number or (height, width).
        in_channels: Channels of the images: 1 grey, 3 RGB, 4 RGBA, or any other number.
        model_channels: Width; level i has int(model_channels * channel_mult[i]) channels.
        out_channels: Channels of the output, or classes of a classifier.
        num_res_blocks: Residual blocks per level in the encoder; the decoder has one more.
        channel_mult: One multiplier per level, fractions allowed; each further level halves the resolution.
        attention_resolutions: Down-sampling factors at which attention is used (1 = full resolution). The published
            "32,16,8" are feature-map sizes: divide the image size by them. Factors that the network does not reach are
            ignored, as in the original.
        dropout: Dropout probability in residual blocks, 0 to below 1.
        use_checkpoint: Whether to recompute activations in the backward pass to save memory.

    Raises:
        ValueError: A field is out of its range, or the image size cannot be halved once per level.
    """

    image_size: int | tuple[int, int] = 64
    in_channels: int = 3
    model_channels: int = 128
    out_channels: int = 3
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] = (1, 2, 2, 2)
    attention_resolutions: tuple[int, ...] = (2, 4)
    dropout: float = 0.0
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the configuration hashable and comparable.
        for name in ("channel_mult", "attention_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.image_size, (list, tuple)):
            object.__setattr__(self, "image_size", tuple(self.image_size))
        if not self.channel_mult:
            raise ValueError("channel_mult is empty; give one multiplier a level, for example (1, 2, 2, 2)")
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be 1 to {most:,}, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for mult in self.channel_mult:
            if not math.isfinite(mult * self.model_channels):
                raise ValueError(f"channel_mult has the entry {mult}; expected numbers above 0")
        for mult, width in zip(self.channel_mult, self.widths, strict=True):
            if width < 1:
                raise ValueError(f"multiplier {mult} of {self.model_channels} channels leaves no channel")
            if width > _MOST["model_channels"]:
                raise ValueError(
                    f"multiplier {mult} of {self.model_channels} channels makes more than {_MOST['model_channels']:,}"
                )
        self.check_size(*self.size)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the trained image size."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, full resolution first."""
        return tuple(int(self.model_channels * mult) for mult in self.channel_mult)

    @property
    def downsampling(self) -> int:
        """Factor between the full and the lowest resolution."""
        return 2 ** (len(self.channel_mult) - 1)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if (height, width) cannot be halved as often as the network has levels."""
        factor = self.downsampling
        if height % factor or width % factor or height < 1 or width < 1:
            nearest = [max(factor, round(side / factor) * factor) for side in (height, width)]
            raise ValueError(
                f"images of {height}x{width} do not fit a network of {len(self.channel_mult)} levels: height and "
                f"width must be multiples of {factor}. Use {nearest[0]}x{nearest[1]}, or fewer entries in channel_mult"
            )

    def check_input(self, x: Tensor, t: Tensor) -> None:
        """Raise ValueError unless x is [B, in_channels, H, W] with divisible sides and t is [B]."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected images [batch, {self.in_channels}, height, width], got {list(x.shape)}")
        if t.shape != (x.shape[0],):
            raise ValueError(f"expected one time for each of the {x.shape[0]} images, got shape {list(t.shape)}")
        self.check_size(*x.shape[2:])
