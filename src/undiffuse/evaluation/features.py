"""Extracts features in one pass over images, shard by shard, from the cache where they are known.

Shards have a fixed size, so the features do not depend on how many processes share the work, and a pass that was
stopped resumes where it was. The features of all processes are put together in the order of the images: every number
that follows is the same, to the last bit, for one process and for eight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.distributed import DistContext
from undiffuse.evaluation.cache import FeatureCache
from undiffuse.evaluation.images import ImageSet
from undiffuse.metrics import Card, MetricError
from undiffuse.metrics.extractors import Extracted, Extractor, in_batches

__all__ = ["Features", "extract"]

SHARD = 256
BATCH = 64

Progress = Callable[[int], None]
"""Called with the number of images that were finished since the last call."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Holds what one extractor makes of a set of images.

    Args:
        features: float32 [N, D].
        spatial: Spatial features, float32 [N, S]; None if there are none.
        card: How the features were made.
        spatial_card: The same of the spatial features.
        scores: Turns features [B, D] into class scores [B, K]; None without classes.
        labels: Class of each image, int64 [N].
        label_names: Names of the classes.
        about: Where the images came from, with the sha256 of their pixels.
        warnings: What a reader of the numbers should know.
    """

    features: Tensor
    spatial: Tensor | None
    card: Card
    spatial_card: Card | None
    scores: Callable[[Tensor], Tensor | None] | None = None
    labels: NDArray[np.int64] | None = None
    label_names: Sequence[str] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)


def extract(
    images: ImageSet,
    extractors: Sequence[Extractor],
    *,
    ranks: DistContext | None = None,
    cache: FeatureCache | None = None,
    batch: int = BATCH,
    keep_images: bool = False,
    progress: Progress | None = None,
) -> list[Features]:
    """Extracts the features of images by several extractors; each image is read (or made) once.

    Args:
        images: The images.
        extractors: What sees them.
        ranks: Processes that share the work; every one of them gets the whole result.
        cache: Where features are looked up and kept; None computes everything.
        batch: Images that an extractor sees at once (changes the time, and features by rounding only).
        keep_images: Keeps images that a model makes in the cache as well, so that another extractor needs no sampling.
        progress: Called with the number of images that were finished since the last call.

    Returns:
        One `Features` for each extractor.

    Raises:
        MetricError: Images that an extractor cannot take, or features that are not finite.
    """
    if not extractors:
        raise MetricError("at least one extractor is needed")
    ranks = ranks or DistContext()
    shards = [(start, min(start + SHARD, len(images))) for start in range(0, len(images), SHARD)]
    if not shards:
        raise MetricError(f"{images.where} holds no images")
    kept: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in extractors]
    digests: list[Tensor] = []
    for first in range(0, len(shards), ranks.world_size):
        mine = first + ranks.rank
        parts, digest = (
            _shard(images, *shards[mine], extractors, cache, batch, keep_images)
            if mine < len(shards)
            else ([_nothing(extractor) for extractor in extractors], torch.zeros(0, 32, dtype=torch.uint8))
        )
        digests.append(ranks.gather(digest))
        for whole, part in zip(kept, parts, strict=True):
            features = ranks.gather(part.features)
            whole.append((features, None if part.spatial is None else ranks.gather(part.spatial)))
        if progress is not None:
            begin, end = shards[first][0], shards[min(first + ranks.world_size, len(shards)) - 1][1]
            progress(end - begin)
    if cache is not None and ranks.is_main:
        cache.trim()
    about = {
        **images.about,
        "where": images.where,
        "n": len(images),
        "shape": list(images.shape),
        "dtype": "uint8",
        "sha256": hashlib.sha256(torch.cat(digests).numpy().tobytes()).hexdigest(),
    }
    if images.labels is not None:
        about["class_counts"] = np.bincount(images.labels, minlength=len(images.label_names or ())).tolist()
    return [
        Features(
            features=torch.cat([features for features, _ in whole]),
            spatial=torch.cat([s for _, s in whole if s is not None]) if whole[0][1] is not None else None,
            card=extractor.card,
            spatial_card=extractor.spatial_card,
            scores=extractor.scores,
            labels=images.labels,
            label_names=images.label_names,
            about=about,
            warnings=tuple(images.warnings),
        )
        for extractor, whole in zip(extractors, kept, strict=True)
    ]


def _shard(
    images: ImageSet,
    start: int,
    stop: int,
    extractors: Sequence[Extractor],
    cache: FeatureCache | None,
    batch: int,
    keep_images: bool,
) -> tuple[list[Extracted], Tensor]:
    """Returns features of images start..stop-1 for each extractor, and the sha256 of their pixels [1, 32]."""
    known = images.key(start, stop) if cache is not None else None
    pixels = None if known is not None else _checked(images, start, stop)
    digest = torch.zeros(0) if pixels is None else _digest(pixels)
    name = known or bytes(digest[0].tolist()).hex()
    out: list[Extracted] = []
    for extractor in extractors:
        key = cache.key(name, extractor.card) if cache is not None else ""
        found = cache.get(key) if cache is not None else None
        if found is None:
            if pixels is None:
                pixels = _made(images, start, stop, name, cache, keep_images)
            found = {**_run(extractor, pixels, batch, start), "pixels": _digest(pixels)}
            if cache is not None:
                cache.put(key, found)
        digest = found["pixels"]
        out.append(Extracted(found["features"], found.get("spatial")))
    return out, digest


def _made(images: ImageSet, start: int, stop: int, name: str, cache: FeatureCache | None, keep: bool) -> Tensor:
    """Returns images that have to be made, or were made before and kept."""
    if cache is None or not keep:
        return _checked(images, start, stop)
    key = cache.image_key(name)
    found = cache.get(key)
    if found is None:
        found = {"images": _checked(images, start, stop)}
        cache.put(key, found)
    return found["images"]


def _run(extractor: Extractor, pixels: Tensor, batch: int, first: int) -> dict[str, Tensor]:
    """Applies one extractor to the images of a shard; MetricError names images whose features are not finite."""
    parts = list(in_batches(extractor, pixels, batch))
    out = {"features": torch.cat([part.features for part in parts]).float().cpu()}
    if all(part.spatial is not None for part in parts):
        out["spatial"] = torch.cat([part.spatial for part in parts if part.spatial is not None]).float().cpu()
    for name, values in out.items():
        bad = (~torch.isfinite(values).all(dim=1)).nonzero()[:, 0]
        if len(bad):
            raise MetricError(
                f"the {name} of {len(bad)} images are NaN or infinite, the first is image {first + int(bad[0])}: the "
                "extractor's weights or the device are broken"
            )
    return out


def _checked(images: ImageSet, start: int, stop: int) -> Tensor:
    pixels = images.batch(start, stop)
    expected = (stop - start, *images.shape)
    if pixels.dtype != torch.uint8 or tuple(pixels.shape) != expected:
        raise MetricError(
            f"{images.where}: images {start} to {stop - 1} came as {pixels.dtype} {list(pixels.shape)}, expected uint8 "
            f"{list(expected)}"
        )
    return pixels.cpu()


def _digest(pixels: Tensor) -> Tensor:
    head = f"{list(pixels.shape)}\n".encode()
    sha = hashlib.sha256(head + pixels.contiguous().numpy().tobytes())
    return torch.tensor(list(sha.digest()), dtype=torch.uint8)[None]


def _nothing(extractor: Extractor) -> Extracted:
    spatial = extractor.spatial_card
    return Extracted(
        torch.zeros(0, extractor.card.dimension), None if spatial is None else torch.zeros(0, spatial.dimension)
    )
