"""Defines the Inception network of December 2015, whose features define the Inception Score and the FID.

The module's names are those of the PyTorch ports, so that their weights file loads as it is. The network differs from
the Inception v3 of today's model zoos, and every difference is part of the metric:

- 1008 classes, no auxiliary head;
- the average pools inside the mixed blocks leave the padding out of the divisor;
- the pool of the last block (7c) is a maximum;
- batch norm adds 1e-3 to the variance;
- the published score leaves the bias of the last layer out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["InceptionOutput", "InceptionV3"]

EPSILON = 1e-3
CLASSES = 1008
POOL = 2048
SPATIAL_CHANNELS = 7

Kernel = int | tuple[int, int]
Layer = tuple[str, int, Kernel] | tuple[str, int, Kernel, int]
"""(name, output channels, kernel) of a convolution that keeps the size, or with its stride one that does not pad."""

Branch = Sequence[str | Layer | tuple[Layer, Layer]]
"""Layers in sequence; a pool by its name; a pair of layers that share their input and are concatenated."""


class ConvNorm(nn.Module):
    """Applies a convolution without bias, batch norm, and ReLU."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(channels, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=EPSILON)
        # Not part of the state: derived from it by `fold`.
        self.register_buffer("folded_weight", None, persistent=False)
        self.register_buffer("folded_bias", None, persistent=False)

    def fold(self) -> None:
        """Merges the batch norm's fixed scale and shift into the convolution: a fifth less time, the same function."""
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None and variance is not None
        scale = self.bn.weight.double() / (variance.double() + self.bn.eps).sqrt()
        weight = (self.conv.weight.double() * scale[:, None, None, None]).float()
        bias = (self.bn.bias.double() - scale * mean.double()).float()
        self.folded_weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.folded_bias = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        if self.folded_weight is not None:
            h = F.conv2d(x, self.folded_weight, self.folded_bias, self.conv.stride, self.conv.padding)
        else:
            h = self.bn(self.conv(x))
        return F.relu(h, inplace=True)


def average(x: Tensor) -> Tensor:
    """Returns the 3x3 mean of the pixels that exist: the padding does not count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    """Returns the 3x3 maximum at every pixel."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def shrink(x: Tensor) -> Tensor:
    """Returns the 3x3 maximum at every second pixel, without padding."""
    return F.max_pool2d(x, 3, stride=2)


POOLS = {"average": average, "maximum": maximum, "shrink": shrink}


class Mixed(nn.Module):
    """Applies branches side by side and concatenates their outputs in order."""

    def __init__(self, channels: int, *branches: Branch) -> None:
        super().__init__()
        self.branches: list[list[str | tuple[str, str]]] = []
        self.channels = 0
        for branch in branches:
            steps: list[str | tuple[str, str]] = []
            width = channels
            for step in branch:
                if isinstance(step, str):
                    steps.append(step)
                elif isinstance(step[0], tuple):
                    left, right = step
                    assert isinstance(left, tuple) and isinstance(right, tuple)
                    steps.append((self._add(width, left), self._add(width, right)))
                    width = left[1] + right[1]
                else:
                    assert isinstance(step[1], int)
                    steps.append(self._add(width, step))  # type: ignore[arg-type]
                    width = step[1]
            self.branches.append(steps)
            self.channels += width

    def _add(self, channels: int, layer: Layer) -> str:
        name, out, kernel = layer[:3]
        stride = layer[3] if len(layer) == 4 else 1
        self.add_module(name, ConvNorm(channels, out, kernel, stride, pad=stride == 1))
        return name

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for steps in self.branches:
            h = x
            for step in steps:
                if isinstance(step, tuple):
                    h = torch.cat([getattr(self, name)(h) for name in step], dim=1)
                else:
                    h = POOLS[step](h) if step in POOLS else getattr(self, step)(h)
            outputs.append(h)
        return torch.cat(outputs, dim=1)


def _mixed_35(channels: int, pool: int) -> Mixed:
    return Mixed(
        channels,
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["average", ("branch_pool", pool, 1)],
    )


def _to_17(channels: int) -> Mixed:
    return Mixed(
        channels,
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
        ["shrink"],
    )


def _mixed_17(channels: int, width: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    return Mixed(
        channels,
        [("branch1x1", 192, 1)],
        [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
        [
            ("branch7x7dbl_1", width, 1),
            ("branch7x7dbl_2", width, column),
            ("branch7x7dbl_3", width, row),
            ("branch7x7dbl_4", width, column),
            ("branch7x7dbl_5", 192, row),
        ],
        ["average", ("branch_pool", 192, 1)],
    )


def _to_8(channels: int) -> Mixed:
    return Mixed(
        channels,
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2),
        ],
        ["shrink"],
    )


def _mixed_8(channels: int, pool: str) -> Mixed:
    def fork(name: str) -> tuple[Layer, Layer]:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return Mixed(
        channels,
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), fork("branch3x3_2")],
        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")],
        [pool, ("branch_pool", 192, 1)],
    )


class InceptionOutput(NamedTuple):
    """Holds what one pass of the network yields, see `InceptionV3`."""

    pool: Tensor
    spatial: Tensor


class InceptionV3(nn.Module):
    """Turns x [B, 3, 299, 299], about [-1, 1], into pool_3 [B, 2048] and the spatial features of sFID [B, 2023].

    The spatial features are the first seven channels of the 17x17 map that the 1x1 branch of Mixed_6d gives after its
    ReLU, flattened with the channels last, as OpenAI's evaluator takes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, pad=False)
        self.Mixed_5b = _mixed_35(192, 32)
        self.Mixed_5c = _mixed_35(256, 64)
        self.Mixed_5d = _mixed_35(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b = _mixed_17(768, 128)
        self.Mixed_6c = _mixed_17(768, 160)
        self.Mixed_6d = _mixed_17(768, 160)
        self.Mixed_6e = _mixed_17(768, 192)
        self.Mixed_7a = _to_8(768)
        self.Mixed_7b = _mixed_8(1280, "average")
        self.Mixed_7c = _mixed_8(2048, "maximum")
        self.fc = nn.Linear(POOL, CLASSES)

    def forward(self, x: Tensor) -> InceptionOutput:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(shrink(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(shrink(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        # The 1x1 branch comes first in the concatenation, so its first channels are the block's.
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        return InceptionOutput(x.mean(dim=(2, 3)), spatial)

    def fold(self) -> InceptionV3:
        """Calls `ConvNorm.fold` everywhere; only in evaluation mode, after the weights were loaded."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return self

    def logits(self, pool: Tensor) -> Tensor:
        """Returns class scores [B, 1008] of pool_3 features, without the bias, as the Inception Score uses them."""
        return F.linear(pool, self.fc.weight)
