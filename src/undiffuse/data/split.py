"""A validation split that is the same on every machine and in every run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undiffuse.data import index
from undiffuse.data.sources import Source

__all__ = ["Split", "split"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Two disjoint sources under one class table."""

    train: Source
    validation: Source


def split(source: Source, holdout: float = 0.1, seed: int = 0) -> Split:
    """Hold out a fraction of the images, of every class alike.

    Within each class (or among all, without labels) the images are ranked by SHA-256 of (seed, name), and the first
    ``round(holdout * n)`` are held out: at least one and never all of a class of two or more. The choice
    depends on names, not on their order, so adding a few files moves few of the others.

    Args:
        source: all images.
        holdout: the fraction for validation, above 0 and below 1.
        seed: another seed, another split.

    Raises:
        ValueError: the fraction is out of range, or there are fewer than two images.
    """
    if not 0.0 < holdout < 1.0:
        raise ValueError(f"holdout={holdout}: expected a fraction above 0 and below 1")
    if len(source) < 2:
        raise ValueError(f"{source.where} has {len(source)} image: a validation split needs at least two")
    keys = _keys(source, seed)
    labels = np.zeros(len(source), dtype=np.int64) if source.labels is None else source.labels
    held = np.zeros(len(source), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            count = min(len(members) - 1, max(1, round(holdout * len(members))))
            held[members[np.argsort(keys[members], kind="stable")][:count]] = True
    if not held.any():  # every class has a single image: hold out of the whole instead
        count = min(len(source) - 1, max(1, round(holdout * len(source))))
        held[np.argsort(keys, kind="stable")[:count]] = True
    return Split(train=source.subset(np.flatnonzero(~held)), validation=source.subset(np.flatnonzero(held)))


def _keys(source: Source, seed: int) -> NDArray[np.int64]:
    """The number that ranks each image, int64 [N]; of large sources kept in the cache folder."""

    def build() -> index.Arrays:
        return {"keys": np.fromiter((_key(seed, source.name(i)) for i in range(len(source))), np.int64, len(source))}

    if len(source) < index.FROM:
        return build()["keys"]
    return index.cached("splits", f"{source.fingerprint}\0{seed}", build)["keys"]


def _key(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
