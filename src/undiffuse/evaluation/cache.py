"""Caches features on the disk: one small file for each shard of images, named by their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

import undiffuse
from undiffuse.downloads import cache_dir
from undiffuse.metrics import Card
from undiffuse.util.files import atomic_file
from undiffuse.util.hashing import tensors_hash

__all__ = ["FeatureCache"]

LIMIT_BYTES = 20 * 2**30
DIGEST = "__sha256__"


class FeatureCache:
    """A folder of features. Damaged or missing files are computed again.

    An entry belongs to the images, the extractor's card and the version of this package. A change of any of them
    computes the features anew.

    Args:
        folder: Where the files lie; by default "features" in the cache folder (UNDIFFUSE_CACHE).
        limit: Bytes to keep at most. The entries that were not used for longest are removed first.
    """

    def __init__(self, folder: str | Path | None = None, limit: int = LIMIT_BYTES) -> None:
        self.folder = Path(folder) if folder is not None else cache_dir("features")
        self.limit = limit

    def key(self, images: str, card: Card) -> str:
        """Returns the name of an entry; `images` identifies the images."""
        values = {name: value for name, value in card.to_dict().items() if name != "details"}
        text = json.dumps([undiffuse.__version__, images, values], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def image_key(self, images: str) -> str:
        """Returns the name of the entry that holds the images themselves."""
        return hashlib.sha256(f"{undiffuse.__version__}\n{images}\npixels".encode()).hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Returns the tensors of an entry; None if it is missing or damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            tensors = load(data)
            digest = bytes(tensors.pop(DIGEST).tolist()).hex()
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
            return None
        if digest != tensors_hash(tensors):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now, so removed last
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors. A cache that cannot be written (full disk, read-only) does not stop the work."""
        digest = torch.tensor(list(bytes.fromhex(tensors_hash(tensors))), dtype=torch.uint8)
        path = self._path(key)
        data = save({**{name: t.contiguous() for name, t in tensors.items()}, DIGEST: digest})
        with contextlib.suppress(OSError), atomic_file(path, overwrite=True, durable=False) as file:
            file.write(data)

    def trim(self) -> None:
        """Removes the entries that were not used for longest until the folder is within its limit."""
        entries = []
        for path in self.folder.glob("??/*.safetensors"):
            try:
                status = path.stat()
            except OSError:
                continue
            entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
