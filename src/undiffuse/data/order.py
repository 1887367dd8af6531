"""The order of the images: a pure function of (seed, number of the image in the run's stream).

A run sees one endless stream of images, position 0, 1, 2, ... Position p lies in epoch ``p // n``, and every epoch is a
permutation of the n images. Nothing here has a state, so a run that resumes at position p sees exactly what the
uninterrupted run would have seen, whatever the batch size, the number of workers or the number of ranks.

The random bits come from Philox 4x64 (Salmon et al., 2011), keyed by (seed, purpose) and started at a counter block
owned by the epoch or the position. Only raw bits are used: NumPy promises those to be the same in every version.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["epoch_of", "index_at", "indices_at", "item_seed", "permutation", "uniforms"]

_PURPOSES = {"order": 1, "flip": 2, "crop": 3, "item": 4, "patch": 5}


def _raw(seed: int, purpose: str, number: int, count: int) -> NDArray[np.uint64]:
    """`count` 64-bit words that belong to (seed, purpose, number) alone."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is out of range: expected an integer from 0 to 2**64 - 1")
    key = np.array([seed, _PURPOSES[purpose]], dtype=np.uint64)
    # The generator counts in word 0, so the number goes to word 1: neighbouring numbers never share a block.
    counter = np.array([0, number, 0, 0], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count), dtype=np.uint64)


def uniforms(seed: int, purpose: str, number: int, count: int) -> NDArray[np.float64]:
    """`count` uniform numbers in [0, 1), a pure function of (seed, purpose, number); for "flip", "crop", "patch"."""
    bits = _raw(seed, purpose, number, count) >> np.uint64(11)
    return np.asarray(bits * 2.0**-53, dtype=np.float64)


def item_seed(seed: int, position: int) -> int:
    """A seed in [0, 2^63) for a data set's own augmentation, a pure function of (seed, position)."""
    return int(_raw(seed, "item", position, 1)[0] >> np.uint64(1))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of the n images in an epoch, a read-only permutation [n] of 0..n-1 (sorting n random 64-bit keys)."""
    order = np.argsort(_raw(seed, "order", epoch, n), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def _check(n: int) -> None:
    if n < 1:
        raise ValueError("there are no images to put in order: the data set is empty")


def epoch_of(position: int, n: int) -> int:
    """The epoch, counted from 0, that a position of the stream lies in: ``position // n``."""
    _check(n)
    return position // n


def index_at(seed: int, position: int, n: int) -> int:
    """The index 0..n-1 of the image at a position of the stream.

    Raises:
        ValueError: the position is negative, or n is less than 1.
    """
    _check(n)
    if position < 0:
        raise ValueError(f"position {position} is negative: positions of the stream count from 0")
    epoch, offset = divmod(int(position), n)
    return int(permutation(seed, epoch, n)[offset])


def indices_at(seed: int, positions: ArrayLike, n: int) -> NDArray[np.int64]:
    """`index_at` for an array of positions; same shape, int64."""
    flat = np.asarray(positions, dtype=np.int64)
    return np.array([index_at(seed, int(p), n) for p in flat.ravel()], dtype=np.int64).reshape(flat.shape)
