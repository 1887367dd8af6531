"""Extracts CLIP image embeddings, which learned from captions, for CMMD and Frechet distances.

OpenAI's published files are TorchScript archives; their tensors are read without running them (`torchscript`).

References:
    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
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
from undiffuse.metrics.extractors.clip_tower import ImageTower, tower_weights
from undiffuse.metrics.extractors.torchscript import is_torchscript, read_torchscript
from undiffuse.util.limits import check_header

__all__ = ["CLIP_MODELS", "CLIP_PROTOCOLS", "ClipExtractor", "ClipModel", "ClipProtocol", "clip_card"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """Describes a published tower.

    Images of `size` squared are cut into patches; `depth` blocks of `width` numbers in heads of 64 end in `dimension`
    numbers. The file is known by URL, sha256 and bytes.
    """

    name: str
    size: int
    patch: int
    width: int
    depth: int
    dimension: int
    file: str
    sha256: str
    bytes: int

    @property
    def url(self) -> str:
        return f"https://openaipublic.azureedge.net/clip/models/{self.sha256}/{self.file}"

    def build(self) -> ImageTower:
        """Returns the network with untrained weights."""
        return ImageTower(self.size, self.patch, self.width, self.depth, self.width // 64, self.dimension)


CLIP_MODELS = {
    model.name: model
    for model in (
        ClipModel(
            name="ViT-B/32",
            size=224,
            patch=32,
            width=768,
            depth=12,
            dimension=512,
            file="ViT-B-32.pt",
            sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
            bytes=353_976_522,
        ),
        ClipModel(
            name="ViT-L/14",
            size=224,
            patch=14,
            width=1024,
            depth=24,
            dimension=768,
            file="ViT-L-14.pt",
            sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
            bytes=932_768_134,
        ),
        ClipModel(
            name="ViT-L/14@336px",
            size=336,
            patch=14,
            width=1024,
            depth=24,
            dimension=768,
            file="ViT-L-14-336px.pt",
            sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
            bytes=934_088_680,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class ClipProtocol:
    """Describes how uint8 images are brought to the size of a tower, and the `model` that this is meant for."""

    name: str
    resize: Callable[[Tensor, int], Tensor]
    model: str


CLIP_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        ClipProtocol(name="clip", resize=resize.pillow_bicubic_crop, model="ViT-B/32"),
        ClipProtocol(name="cmmd", resize=resize.crop_pillow_bicubic, model="ViT-L/14@336px"),
    )
}
"""`clip`: CLIP's own preparation, as clean-fid's CLIP features have it. `cmmd`: that of CMMD's authors, who crop first.
Of square images they are the same."""


def clip_card(model: ClipModel, protocol: ClipProtocol, weights_sha256: str) -> Card:
    """Returns the card of a tower's features.

    Only the published file gives them their plain names. With other weights the extractor and the distance say so.
    """
    other = "" if weights_sha256 == model.sha256 else "-other-weights"
    extractor = f"clip-{model.name.lower().replace('/', '-').replace('@', '-')}{other}"
    plain = not other and (model.name, protocol.name) == ("ViT-B/32", "clip")
    return Card(
        protocol=protocol.name,
        distance="FD-CLIP" if plain else f"FD-{extractor}",
        extractor=extractor,
        weights_sha256=weights_sha256,
        layer="image embedding",
        dimension=model.dimension,
        resize=f"{protocol.resize.__name__} to {model.size}",
        normalisation="CLIP's mean and deviation",
    )


class ClipExtractor:
    """Extracts image embeddings of uint8 images [B, H, W, 3] of any size by a CLIP tower.

    `ClipExtractor.load` reads or downloads the published files. The network runs in float32, never in TF32 or half.

    Args:
        state: Weights with OpenAI's names ("visual.proj") or Hugging Face's ("visual_projection.weight"). Of a whole
            CLIP only those of the tower are taken.
        protocol: A name of `CLIP_PROTOCOLS`.
        model: A name of `CLIP_MODELS`; by default the one that the protocol is meant for.
        weights_sha256: Hash of the file that the weights came from.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        protocol: str = "clip",
        *,
        model: str | None = None,
        weights_sha256: str | None = None,
        device: torch.device | str = "cpu",
        grey: str = "refuse",
    ) -> None:
        self.protocol, self.model = _chosen(protocol, model)
        self.device = torch.device(device)
        self.grey = grey
        tower = tower_weights(state)
        net: Any = self.model.build()
        load_exactly(net, tower, f"CLIP {self.model.name}")
        self.net = net.to(self.device).eval().requires_grad_(False)
        self.mean = 255 * torch.tensor(MEAN, device=self.device)[:, None, None]
        self.std = 255 * torch.tensor(STD, device=self.device)[:, None, None]
        self.spatial_card: Card | None = None
        self.card = clip_card(self.model, self.protocol, weights_sha256 or tensors_hash(tower))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        protocol: str = "clip",
        *,
        model: str | None = None,
        verify: bool = True,
        progress: Callable[[int, int | None], None] | None = None,
        **options: Any,
    ) -> ClipExtractor:
        """Loads OpenAI's file, or downloads it (354 or 934 MB) into the cache.

        Nothing in a file is executed.

        Args:
            path: The file; by default that in the cache.
            protocol: A name of `CLIP_PROTOCOLS`.
            model: A name of `CLIP_MODELS`; by default the one that the protocol is meant for.
            verify: Refuses another file by size and checksum before it is opened. Without it a state dict (.pt,
                .safetensors) or a TorchScript archive is accepted, and its distances have other names.
            progress: Called with the bytes done and in all.

        Raises:
            DownloadError: The file cannot be downloaded (an OSError); the text says what to do.
            MetricError: Another file.
        """
        about = _chosen(protocol, model)[1]
        if path is None:
            where = downloads.cache_dir("weights", f"clip-{about.file}")
            path = downloads.fetch(about.url, where, sha256=about.sha256, size=about.bytes, progress=progress)
        what = f"CLIP {about.name}"
        if not Path(path).is_file():
            raise MetricError(f"there is no file {path}; it should hold the weights of {what}, from {about.url}")
        size, digest = Path(path).stat().st_size, downloads.digest_of(path)
        if verify and (size, digest) != (about.bytes, about.sha256):
            raise MetricError(
                f"{path} is not the published file of {what} ({size} bytes with sha256 {digest}, expected "
                f"{about.bytes} with {about.sha256}); get it from {about.url}"
            )
        state = _read(Path(path), what)
        return cls(state, protocol, model=model, weights_sha256=digest, **options)

    @torch.inference_mode()
    def __call__(self, images: Images) -> Extracted:
        """Turns images uint8 [B, H, W, 3] into features [B, dimension]."""
        pixels = as_images(images, 3, self.grey).to(self.device).permute(0, 3, 1, 2).float()
        with exact_arithmetic(self.device):
            return Extracted(self.net((self.protocol.resize(pixels, self.model.size) - self.mean) / self.std))

    def scores(self, features: Tensor) -> Tensor | None:
        """Returns None: the network has no classes."""
        return None


def _chosen(protocol: str, model: str | None) -> tuple[ClipProtocol, ClipModel]:
    if protocol not in CLIP_PROTOCOLS:
        raise MetricError(f"unknown protocol {protocol!r}; choose one of {', '.join(CLIP_PROTOCOLS)}")
    name = CLIP_PROTOCOLS[protocol].model if model is None else model
    if name not in CLIP_MODELS:
        raise MetricError(f"unknown CLIP model {name!r}; choose one of {', '.join(CLIP_MODELS)}")
    return CLIP_PROTOCOLS[protocol], CLIP_MODELS[name]


def _read(path: Path, what: str) -> Mapping[str, Any]:
    """Reads a file of tensors of any kind."""
    if path.suffix == ".safetensors":
        try:
            check_header(path)
            with safetensors.safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith("vis")}  # noqa: SIM118
        except (ValueError, safetensors.SafetensorError) as error:
            raise MetricError(f"{path} is not a readable safetensors file ({error}); get the weights again") from error
    if is_torchscript(path):
        return read_torchscript(path, "visual.")
    return read_weights(path, what)
