"""Extracts features in one pass over images, shard by shard, from the cache where they are known.

Shards have a fixed size, so the features do not depend on how many processes share the work, and a pass that was
stopped resumes where it was. A process that is free takes the next shard. The features of all processes are put
together in the order of the images: every number that follows is the same, to the last bit, for one process and for
eight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.distributed import DistContext
from undiffuse.distributed.stopping import Interrupted, together
from undiffuse.evaluation.cache import FeatureCache
from undiffuse.evaluation.images import ImageSet
from undiffuse.metrics import Card, MetricError
from undiffuse.metrics.extractors import Extracted, Extractor, in_batches
from undiffuse.util.progress import NoProgress

__all__ = ["Features", "extract"]

SHARD = 256
BATCH = 64

Progress = Callable[[float], None]
"""Called with the number of images that were finished since the last call, in parts while a model makes them."""

_SAMPLING = 0.95  # of the work on an image that a model makes; the extractor has the rest


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
        Interrupted: Making images was cut short in one of the processes.
    """
    if not extractors:
        raise MetricError("at least one extractor is needed")
    ranks = ranks or DistContext()
    if not len(images):
        raise MetricError(f"{images.where} holds no images")
    mine: dict[int, _Shard] = {}
    cut: Interrupted | None = None
    with together(ranks):
        for start, stop, bar in _taken(len(images), ranks, _Told(len(images), progress)):
            if cut is not None:  # the rest is taken, so that no process waits for another one
                continue
            images.progress = part = _Part(bar)
            try:
                mine[start] = _shard(images, start, stop, extractors, cache, batch, keep_images)
                bar.advance(stop - start - _SAMPLING * part.done)
            except Interrupted as interruption:
                cut = interruption
        if cut is not None:
            raise cut
    everything = _of_all(mine, len(images), extractors, ranks)
    digests = [digest for _, digest in everything]
    kept = [[parts[k] for parts, _ in everything] for k in range(len(extractors))]
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
            features=torch.cat([part.features for part in whole]),
            spatial=None
            if whole[0].spatial is None
            else torch.cat([part.spatial for part in whole if part.spatial is not None]),
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


_Shard = tuple[list[Extracted], Tensor]
"""What each extractor makes of a shard, and the sha256 of its pixels [1, 32]."""


class _Told(NoProgress):
    """Counts images for a function."""

    def __init__(self, total: float, tell: Progress | None) -> None:
        super().__init__(total)
        self._tell = tell

    def advance(self, amount: float) -> None:
        super().advance(amount)
        if self._tell is not None and amount:
            self._tell(amount)


class _Part(NoProgress):
    """Counts images that a model makes as a part of the work on them."""

    def __init__(self, bar: NoProgress) -> None:
        super().__init__()
        self._bar = bar

    def advance(self, amount: float) -> None:
        super().advance(amount)
        self._bar.advance(_SAMPLING * amount)


def _taken(count: int, ranks: DistContext, bar: NoProgress) -> Iterator[tuple[int, int, NoProgress]]:
    """The shards of this process as (first image, end, bar), whenever it is free."""
    if ranks.job is None:
        yield from ((start, min(start + SHARD, count), bar) for start in range(0, count, SHARD))
        return
    for numbers, common in ranks.job.shared(range(count), SHARD, bar):
        yield numbers[0], numbers[-1] + 1, common


def _of_all(
    mine: Mapping[int, _Shard], count: int, extractors: Sequence[Extractor], ranks: DistContext
) -> list[_Shard]:
    """The shards of all processes in the order of the images. They are exchanged one of each process at a time."""
    whole = dict(mine)
    taken = ranks.gather_json(sorted(mine)) if ranks.world_size > 1 else []
    for turn in range(max(map(len, taken), default=0)):
        at = taken[ranks.rank][turn] if turn < len(taken[ranks.rank]) else None
        nothing: _Shard = ([_nothing(extractor) for extractor in extractors], torch.zeros(0, 32, dtype=torch.uint8))
        parts, digest = nothing if at is None else mine[at]
        digests = ranks.gather(digest)
        gathered = [
            (ranks.gather(part.features), None if part.spatial is None else ranks.gather(part.spatial))
            for part in parts
        ]
        begin = 0
        for number, start in enumerate(starts[turn] for starts in taken if turn < len(starts)):
            rows = slice(begin, begin + min(SHARD, count - start))
            begin = rows.stop
            whole[start] = (
                [
                    Extracted(features[rows], None if spatial is None else spatial[rows])
                    for features, spatial in gathered
                ],
                digests[number : number + 1],
            )
    return [whole[start] for start in sorted(whole)]


def _shard(
    images: ImageSet,
    start: int,
    stop: int,
    extractors: Sequence[Extractor],
    cache: FeatureCache | None,
    batch: int,
    keep_images: bool,
) -> _Shard:
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
