"""Features that were computed once: one small file for each shard of images, named by their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

import undiffuse
from undiffuse.downloads import cache_dir
from undiffuse.metrics import Card
from undiffuse.metrics.extractors.base import tensors_hash

__all__ = ["FeatureCache"]

LIMIT_BYTES = 20 * 2**30
DIGEST = "__sha256__"


class FeatureCache:
    """A folder of features; damaged or missing files are computed again, the oldest go when it grows past `limit`.

    By default in the cache folder (`UNDIFFUSE_CACHE`), at most 20 GiB. An entry belongs to (images, extractor's card,
    version of this package): whoever changes any of them computes anew.
    """

    def __init__(self, folder: str | Path | None = None, limit: int = LIMIT_BYTES) -> None:
        self.folder = Path(folder) if folder is not None else cache_dir("features")
        self.limit = limit

    def key(self, images: str, card: Card) -> str:
        """The name of an entry; `images` identifies the images."""
        values = {name: value for name, value in card.to_dict().items() if name != "details"}
        text = json.dumps([undiffuse.__version__, images, values], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def image_key(self, images: str) -> str:
        """The name of the images themselves."""
        return hashlib.sha256(f"{undiffuse.__version__}\n{images}\npixels".encode()).hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry; None if there is none that is whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            tensors = load(data)
        except (OSError, safetensors.SafetensorError):
            return None
        digest = tensors.pop(DIGEST, None)
        if digest is None or bytes(digest.tolist()).hex() != tensors_hash(tensors):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: the last to go
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors. A cache that cannot be written to (full disk, read-only) is no reason to stop."""
        digest = torch.tensor(list(bytes.fromhex(tensors_hash(tensors))), dtype=torch.uint8)
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(save({**{name: t.contiguous() for name, t in tensors.items()}, DIGEST: digest}))
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove what was not used for longest until the folder is within its limit."""
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
