"""A small residual network that classifies clean images; its features see texture as well as classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.nets.blocks import GroupNorm, channels_last
from undiffuse.nets.config import NetworkConfig

__all__ = ["ResNet", "ResNetConfig"]

FEATURES = ("means", "moments")


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(NetworkConfig):
    """The arguments of a residual classifier; `NetworkConfig` explains the shared ones.

    Level i of `channel_mult` works at 1/2^i of the image's resolution. The first level is one convolution, every other
    halves the resolution and has `num_res_blocks` residual blocks. There is no attention. `architecture` tells this
    configuration from others where both are dictionaries.

    Attributes:
        features: What of the levels the features are: "means" over the positions, of every level but the first, or
            "moments", means and standard deviations of all levels.
    """

    architecture: str = "resnet"
    features: str = "means"
    attention_resolutions: tuple[int, ...] = ()
    num_res_blocks: int = 1

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.out_channels

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture != "resnet":
            raise ValueError(f"this is the configuration of the architecture 'resnet', not of {self.architecture!r}")
        if self.attention_resolutions:
            raise ValueError(f"a ResNet has no attention; got attention_resolutions = {self.attention_resolutions}")
        if self.features not in FEATURES:
            raise ValueError(f"features is one of {', '.join(FEATURES)}; got {self.features!r}")
        if len(self.channel_mult) < 2:
            raise ValueError(f"channel_mult needs at least two levels, got {self.channel_mult}")

    def build(self) -> ResNet:
        """Return a newly initialised classifier."""
        return ResNet(self)


class StandardizedConv(nn.Conv2d):
    """A 3x3 convolution whose filters have mean 0 and variance 1 / fan-in (Qiao et al. 2019, weight standardization).

    With group norm it trains as well as batch norm does, without statistics of the batch.
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float()
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (weight - mean) * torch.rsqrt(variance * weight[0].numel() + 1e-4)
        return F.conv2d(x, weight.to(x.dtype), None, self.stride, self.padding)


class Layer(nn.Module):
    """A standardized convolution, a group norm and a SiLU."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = StandardizedConv(channels, out_channels, stride)
        self.norm = GroupNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), act=True)


class Residual(nn.Module):
    """Two layers beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Layer(channels, channels), Layer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class ResNet(nn.Module):
    """A classifier of clean images, called as net(x, t) -> scores [B, K]; t is not used.

    Its features are means (and standard deviations, if the configuration says so) of its levels over the positions,
    side by side: those of the early levels change with noise and blur, those of the last with the class.
    """

    channels_last = True

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        first, *others = config.widths
        self.stem = Layer(config.in_channels, first)
        self.stages = nn.ModuleList()
        for width in others:
            blocks = [Residual(width) for _ in range(config.num_res_blocks)]
            self.stages.append(nn.Sequential(Layer(first, width, stride=2), *blocks))
            first = width
        self.dropout = nn.Dropout(config.dropout)
        self.moments = config.features == "moments"
        width = 2 * sum(config.widths) if self.moments else sum(others)
        self.out = nn.Sequential(nn.Linear(width, config.out_channels))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.config.check_input(x, t)
        h = channels_last(self.stem(x))
        found = [] if not self.moments else self.pooled(h.detach())
        for level, stage in enumerate(self.stages, 1):
            h = stage(h)
            # The early levels are trained through the last: their own moments are read, not shaped, by the classifier.
            early = self.moments and level < len(self.stages)
            found += self.pooled(h.detach() if early else h)
        with torch.autocast(x.device.type, enabled=False):
            return self.out(self.dropout(torch.cat(found, dim=1)))

    def pooled(self, h: Tensor) -> list[Tensor]:
        """Returns the means [B, C] of h [B, C, H, W] over the positions and, for moments, the standard deviations."""
        mean = h.mean(dim=(2, 3), dtype=torch.float32)
        if not self.moments:
            return [mean]
        square = (h * h).mean(dim=(2, 3), dtype=torch.float32)
        return [mean, ((square - mean * mean).clamp(min=0) + 1e-5).sqrt()]
