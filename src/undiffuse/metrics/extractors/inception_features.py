"""Extracts Inception features by named protocols, with the weights file of the PyTorch ports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse import downloads
from undiffuse.metrics.checks import as_images
from undiffuse.metrics.estimate import Card, MetricError
from undiffuse.metrics.extractors import resize
from undiffuse.metrics.extractors.base import (
    Extracted,
    Images,
    exact_arithmetic,
    load_exactly,
    read_weights,
    tensors_hash,
)
from undiffuse.metrics.extractors.inception import InceptionOutput, InceptionV3

__all__ = ["INCEPTION_PROTOCOLS", "WEIGHTS_SHA256", "WEIGHTS_URL", "InceptionExtractor", "InceptionProtocol"]

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_SIZE = 95_628_359
SIZE = 299
CPU_BATCH = 16  # images at once on a CPU: the maps of 64 do not fit its caches and cost an eighth more time
WHAT = "the 2015 Inception"


@dataclass(frozen=True, kw_only=True)
class InceptionProtocol:
    """Describes how images become the input of the network: `resize` to 299 in 0..255, then (x - centre) / scale."""

    name: str
    resize: Callable[[Tensor, int], Tensor]
    centre: float = 128.0
    scale: float = 128.0
    distance: str = "FID"

    def prepare(self, images: Tensor) -> Tensor:
        """Turns float images [B, 3, H, W] in 0..255 into [B, 3, 299, 299], about [-1, 1]."""
        return (self.resize(images, SIZE) - self.centre) / self.scale


INCEPTION_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        InceptionProtocol(name="adm", resize=resize.tf1_bilinear),
        InceptionProtocol(name="clean", resize=resize.antialiased_bicubic, distance="clean-FID"),
        InceptionProtocol(name="pytorch-fid", resize=resize.half_pixel_bilinear, centre=127.5, scale=127.5),
        InceptionProtocol(name="torchmetrics", resize=resize.antialiased_bilinear),
    )
}
"""`adm`: OpenAI's evaluator, and all that keep to the original graph (torch-fidelity, EDM). `clean`: clean-fid.
`pytorch-fid`: that package. `torchmetrics`: the default of that package."""


class InceptionExtractor:
    """Extracts features of the 2015 Inception: pool_3 (FID, precision, recall), spatial (sFID), class scores (IS).

    `InceptionExtractor.load` reads or downloads the published file. The network runs in float32, never in TF32.

    Args:
        state: Weights by the names of the PyTorch ports, with or without `num_batches_tracked`.
        protocol: A name of `INCEPTION_PROTOCOLS`, or an `InceptionProtocol`.
        weights_sha256: Hash of the file that the weights came from. Only distances by the published file are called
            FID.
        grey: "repeat" accepts one-channel images.
        fold: Merges the batch norms into the convolutions: faster, the same function up to rounding.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        protocol: str | InceptionProtocol = "adm",
        *,
        weights_sha256: str | None = None,
        device: torch.device | str = "cpu",
        grey: str = "refuse",
        fold: bool = True,
    ) -> None:
        if isinstance(protocol, str):
            if protocol not in INCEPTION_PROTOCOLS:
                raise MetricError(f"unknown protocol {protocol!r}; choose one of {', '.join(INCEPTION_PROTOCOLS)}")
            protocol = INCEPTION_PROTOCOLS[protocol]
        self.protocol = protocol
        self.device = torch.device(device)
        self.grey = grey
        net = InceptionV3()
        load_exactly(net, state, WHAT)
        self.net = net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.eval().requires_grad_(False)
        if fold:
            self.net.fold()
        published = weights_sha256 == WEIGHTS_SHA256
        self.card = Card(
            protocol=protocol.name,
            distance=protocol.distance if published else "FD-inception",
            extractor="inception-2015-12-05",
            weights_sha256=weights_sha256 or tensors_hash(state),
            layer="pool_3",
            dimension=2048,
            resize=f"{protocol.resize.__name__} to {SIZE}",
            normalisation=f"(x - {protocol.centre:g}) / {protocol.scale:g}",
        )
        spatial = "s" + protocol.distance if published else "sFD-inception"
        self.spatial_card = replace(self.card, distance=spatial, layer="mixed_6/conv[..., :7]", dimension=2023)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        protocol: str | InceptionProtocol = "adm",
        *,
        verify: bool = True,
        progress: Callable[[int, int | None], None] | None = None,
        **options: Any,
    ) -> InceptionExtractor:
        """Loads the published weights, or downloads them (96 MB) into the cache.

        Args:
            path: The file; by default that in the cache.
            protocol: A name of `INCEPTION_PROTOCOLS`.
            verify: Refuses a file with another checksum. Without it its distances are not called FID.
            progress: Called with the bytes done and in all.

        Raises:
            DownloadError: The file cannot be downloaded (an OSError); the text says what to do.
            MetricError: Another file.
        """
        if path is None:
            path = downloads.fetch(
                WEIGHTS_URL,
                downloads.cache_dir("weights", WEIGHTS_URL.rpartition("/")[2]),
                sha256=WEIGHTS_SHA256,
                size=WEIGHTS_SIZE,
                progress=progress,
            )
        if not Path(path).is_file():
            raise MetricError(f"there is no file {path}; it should hold {WHAT} weights, from {WEIGHTS_URL}")
        digest = downloads.digest_of(path)
        if verify and digest != WEIGHTS_SHA256:
            raise MetricError(
                f"{path} is not the published file of {WHAT} weights (sha256 {digest}, expected {WEIGHTS_SHA256}); "
                f"get it from {WEIGHTS_URL}"
            )
        return cls(read_weights(path, WHAT), protocol, weights_sha256=digest, **options)

    @torch.inference_mode()
    def __call__(self, images: Images) -> Extracted:
        """Turns images uint8 [B, H, W, 3] of any size into features [B, 2048], spatial [B, 2023], logits [B, 1008]."""
        ready = as_images(images, 3, self.grey)
        at_once = CPU_BATCH if self.device.type == "cpu" else max(1, len(ready))
        with exact_arithmetic(self.device):
            outputs = [self._outputs(part) for part in ready.split(at_once)]
            pool, spatial = (torch.cat(parts) for parts in zip(*outputs, strict=True))
            return Extracted(pool, spatial, self.net.logits(pool))

    def _outputs(self, images: Tensor) -> InceptionOutput:
        pixels = images.to(self.device).permute(0, 3, 1, 2).float()
        return self.net(self.protocol.prepare(pixels).contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def scores(self, features: Tensor) -> Tensor:
        """Turns pool_3 [B, 2048] into class scores [B, 1008], without bias as the original does."""
        with exact_arithmetic(self.device):
            return self.net.logits(features.to(self.device))
