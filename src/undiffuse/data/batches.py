"""Batches of a data set: endless for training, one pass for evaluation.

Pictures are decoded by threads: Pillow and zlib release the interpreter lock while they work, nothing has to be copied
between processes, and it behaves alike on every platform. Since every image is a pure function of its position, the
number of threads changes the speed and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from undiffuse.data.dataset import Example, ImageDataset
from undiffuse.data.screening import default_workers
from undiffuse.data.sources import BrokenImageError

__all__ = ["Batch", "batches", "pass_once"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images as they are stored at the door.

    Attributes:
        images: uint8 [b, H, W, C], or float32 in [-1, 1] where the data have a value range (`pixels.from_pixels`).
        labels: int64 [b], or None without labels.
        positions: int64 [b], their places in the run's stream (in `pass_once`: their indices).
        indices: int64 [b], their numbers in the source.
        names: their names, for messages.
        numbers: float32 [b, K] in the units of the data, NaN where one is not known; None without numbers.
        tags: float32 [b, L] of 0 and 1, the labels of each picture of which it may have several; None without.
        cond_images: the pictures' partners, prepared like them: uint8 [b, H, W, C], or float32 in [-1, 1] where they
            have a value range; of maps the places of the classes, uint8 [b, H, W, 1]. None without.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    positions: torch.Tensor
    indices: torch.Tensor
    names: tuple[str, ...]
    numbers: torch.Tensor | None = None
    tags: torch.Tensor | None = None
    cond_images: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)


def _collate(dataset: ImageDataset, examples: Sequence[Example]) -> Batch:
    labels = [example.label for example in examples if example.label is not None]
    indices = np.array([example.index for example in examples], dtype=np.int64)
    found = dataset.source.conditions
    numbers, tags = (None, None) if found is None else (found.numbers, found.tags)
    partners = [example.cond_image for example in examples if example.cond_image is not None]
    return Batch(
        images=torch.from_numpy(np.stack([example.image for example in examples])),
        labels=torch.tensor(labels, dtype=torch.int64) if dataset.label_names is not None else None,
        positions=torch.tensor([example.position for example in examples], dtype=torch.int64),
        indices=torch.from_numpy(indices),
        names=tuple(dataset.source.name(example.index) for example in examples),
        numbers=None if numbers is None else torch.from_numpy(numbers[indices]),
        tags=None if tags is None else torch.from_numpy(tags[indices]),
        cond_images=torch.from_numpy(np.stack(partners)) if partners else None,
    )


def _share(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: expected 0 <= rank < world_size")


def _threads(dataset: ImageDataset, workers: int | None) -> int:
    workers = dataset.config.workers if workers is None else workers
    if workers is None:
        return 0 if dataset.source.in_memory else default_workers()
    if workers < 0:
        raise ValueError(f"workers={workers}: expected 0 or more, or None")
    return workers


def _run(
    groups: Iterator[Sequence[int]], load: Callable[[int], Example | None], workers: int, prefetch: int
) -> Iterator[list[Example]]:
    """`load` every number of every group; results come group by group, in order. Up to `prefetch` groups are ahead."""
    if workers == 0:
        for group in groups:
            yield [example for example in map(load, group) if example is not None]
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="undiffuse-data")
    ahead: deque[list[Future[Example | None]]] = deque()
    try:
        for group in groups:
            ahead.append([pool.submit(load, number) for number in group])
            if len(ahead) > prefetch:
                yield [example for example in (job.result() for job in ahead.popleft()) if example is not None]
        while ahead:
            yield [example for example in (job.result() for job in ahead.popleft()) if example is not None]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(
    dataset: ImageDataset,
    start: int,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """The endless stream of training batches, from position `start` on.

    Global batch k holds the positions ``start + k * batch ... start + (k + 1) * batch - 1``; each rank gets a
    contiguous ``batch / world_size`` of them. Concatenating the ranks' batches gives the batch of a single process,
    whatever
    `workers` is.

    Args:
        dataset: the images.
        start: the first position, that is how many images the run has already seen.
        batch: images of a global batch.
        rank: this process, 0..world_size-1.
        world_size: the number of processes.
        workers: decoding threads; None: as the config says (by default none for sources in memory).
        prefetch: how many batches are decoded ahead.

    Raises:
        ValueError: at once, for numbers that do not fit (a batch that `world_size` does not divide, a negative start).
        BrokenImageError: while iterating, naming the file.
    """
    _share(rank, world_size)
    if batch < 1 or batch % world_size:
        raise ValueError(
            f"a batch of {batch} images cannot be split evenly over {world_size} processes; choose a multiple of it"
        )
    if start < 0 or prefetch < 1:
        raise ValueError(f"start={start}, prefetch={prefetch}: expected start >= 0 and prefetch >= 1")
    each = batch // world_size
    groups = (range(first, first + each) for first in count(start + rank * each, batch))
    examples = _run(groups, dataset.example, _threads(dataset, workers), prefetch)
    return _closing(dataset, examples)


def pass_once(
    dataset: ImageDataset,
    batch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    prefetch: int = 2,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Every image once, in the order of the source, without augmentation; the last batch may be smaller.

    With several ranks each global batch is split contiguously and as evenly as possible; a rank whose share of the last
    batch is empty simply ends one batch earlier. With on_broken="skip" unreadable pictures are left out (and noted in
    ``dataset.replaced``), never replaced: nothing is counted twice.

    Args:
        dataset: the images.
        batch: images of a global batch.
        rank: this process, 0..world_size-1.
        world_size: the number of processes.
        workers: decoding threads, as in `batches`.
        prefetch: how many batches are decoded ahead.
        limit: only the first `limit` images.

    Raises:
        ValueError: at once, for numbers that do not fit.
        BrokenImageError: while iterating, naming the file, where on_broken is "refuse".
    """
    _share(rank, world_size)
    if batch < 1 or prefetch < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch={batch}, prefetch={prefetch}, limit={limit}: expected numbers of at least 1")
    total = len(dataset) if limit is None else min(limit, len(dataset))

    def shares() -> Iterator[range]:
        for first in range(0, total, batch):
            held = min(batch, total - first)
            yield range(first + rank * held // world_size, first + (rank + 1) * held // world_size)

    def load(index: int) -> Example | None:
        try:
            return dataset.plain(index)
        except BrokenImageError as error:
            if dataset.config.on_broken == "refuse":
                raise
            dataset.replaced[index] = error.reason
            return None

    return _closing(dataset, _run(shares(), load, _threads(dataset, workers), prefetch))


def _closing(dataset: ImageDataset, groups: Iterator[list[Example]]) -> Iterator[Batch]:
    """Collate; when the reader stops early, the threads stop too."""
    try:
        for examples in groups:
            if examples:
                yield _collate(dataset, examples)
    finally:
        close = getattr(groups, "close", None)
        if close is not None:
            close()
