"""Pictures in an array, in memory or memory-mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.decoding import without_alpha
from undiffuse.data.sources import Source

__all__ = ["ArraySource", "hash_images"]

_HASH_WHOLE = 1 << 30
"""Arrays up to this many bytes enter a fingerprint whole; of larger ones, evenly spaced images do."""


class ArraySource(Source):
    """Pictures of one size in an array [N, H, W] or [N, H, W, C], in memory or memory-mapped.

    Pictures that are not uint8 keep their values; `value_range` says which of them are black and white.

    Raises:
        ValueError: another dtype or shape, or as many labels as there are not images.
    """

    in_memory = True

    def __init__(
        self,
        images: NDArray[Any],
        labels: NDArray[np.int64] | None = None,
        label_names: Sequence[str] | None = None,
        *,
        where: str = "array",
        item_name: str = "image",
        value_range: tuple[float, float] | None = None,
        undeclared: str = "",
    ) -> None:
        super().__init__(where, labels, label_names)
        hint = ""
        if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4):
            hint = "; it looks like [N, C, H, W]: transpose it with array.transpose(0, 2, 3, 1)"
        if images.dtype.kind not in "uifb" or images.ndim not in (3, 4) or hint:
            raise ValueError(
                f"{where}: expected numeric images [N, H, W] or [N, H, W, C], "
                f"got {images.dtype} {list(images.shape)}{hint}"
            )
        if images.dtype not in (np.uint8, np.bool_) and value_range is None and not undeclared:
            raise ValueError(
                f"{where}: images of {images.dtype} {list(images.shape)} have no defined black and white: expected "
                "uint8, or value_range=(black, white)"
            )
        if labels is not None and labels.shape != (len(images),):
            raise ValueError(f"{where}: {len(images)} images but labels of shape {list(labels.shape)}")
        self.images, self.value_range, self.undeclared = images, value_range, undeclared
        self._item_name = item_name

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        return f"{self._item_name}[{i}]"

    def image(self, i: int) -> NDArray[Any]:
        image = np.asarray(self.images[i])
        return without_alpha(image.astype(np.uint8) * np.uint8(255) if image.dtype == bool else image)

    def stored_size(self, i: int) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[1]

    def _content_hash(self) -> bytes:
        return hash_images(self.images)


def hash_images(images: Any) -> bytes:
    """SHA-256 of an array of images [N, ...]: of all pixels up to 1 GiB, else of evenly spaced images."""
    dtype = np.dtype(images.dtype)
    sha = hashlib.sha256(f"{dtype.newbyteorder('=').name} {list(images.shape)}".encode())
    count, each = int(images.shape[0]), max(1, int(np.prod(images.shape[1:])) * dtype.itemsize)
    step = max(1, -(-count * each // _HASH_WHOLE))
    block = max(1, (1 << 24) // each) * step
    for start in range(0, count, block):
        chosen = np.asarray(images[start : start + block : step])
        sha.update(np.ascontiguousarray(chosen, dtype=dtype.newbyteorder("=")).data)
    return sha.digest()
