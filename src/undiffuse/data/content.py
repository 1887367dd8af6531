"""Contents of data sets, file by file: what tells that images were swapped though names and sizes stayed the same."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data import index
from undiffuse.data.formats.spans import SpanSource, identity_of
from undiffuse.data.sources import FileSource, FolderSource, Source, SubsetSource, ZipSource
from undiffuse.util.text import count_of, join_names, printable

__all__ = ["ContentIndex", "content_index"]

_SETTLED = 2.0
"""Seconds after which a file's time of change tells a later change from this one."""
_THREADS = 8


@dataclass(frozen=True)
class ContentIndex:
    """The files of a data set with the CRC-32 of what each holds.

    Attributes:
        names: [N], the files.
        sums: uint32 [N], their checksums.
    """

    names: Sequence[str]
    sums: NDArray[np.uint32]

    @property
    def hash(self) -> str:
        """The sha256 of all names and checksums."""
        sha = hashlib.sha256(index.joined(list(self.names)).tobytes())
        sha.update(self.sums.astype("<u4").tobytes())
        return sha.hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The index as arrays for an npz file."""
        return {"names": index.joined(list(self.names)), "sums": self.sums}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ContentIndex:
        """The inverse of `arrays`."""
        return cls(index.split(arrays["names"]), arrays["sums"].astype(np.uint32))

    def changes(self, now: ContentIndex) -> str:
        """Says how a later index differs: how many files changed, are missing or new, with the names of up to three."""
        before = dict(zip(self.names, self.sums.tolist(), strict=True))
        after = dict(zip(now.names, now.sums.tolist(), strict=True))
        kinds = {
            "changed": [name for name, crc in after.items() if before.get(name, crc) != crc],
            "missing": [name for name in before if name not in after],
            "new": [name for name in after if name not in before],
        }
        parts = [
            f"{count_of(len(names), 'image')} {kind}: {join_names(map(printable, names), 3)}"
            for kind, names in kinds.items()
            if names
        ]
        return "; ".join(parts) or "the images have another order"


def content_index(source: Source) -> ContentIndex | None:
    """Reads what the files of a source hold; None for sources that are not made of files.

    The checksums of files in folders and shards are kept in the cache folder and read again only when a file's size or
    time changes. A zip has them in its directory.
    """
    if isinstance(source, SubsetSource):
        whole = content_index(source.parent)
        if whole is None:
            return None
        chosen = [int(i) for i in source.indices]
        return ContentIndex([whole.names[i] for i in chosen], whole.sums[chosen])
    if not isinstance(source, FileSource):
        return None
    if isinstance(source, FolderSource):
        return ContentIndex(source.names, _folder_sums(source))
    if isinstance(source, ZipSource):
        with zipfile.ZipFile(source.path) as archive:
            members = {member.filename: member.CRC for member in archive.infolist()}
        return ContentIndex(source.names, np.array([members[name] for name in source.names], dtype=np.uint32))
    if isinstance(source, SpanSource):
        identity = "\0".join([*map(identity_of, source.shards), *source.names])
        found = index.cached("content", identity, lambda: {"sums": _read_sums(source, range(len(source)))})
        return ContentIndex(source.names, found["sums"].astype(np.uint32))
    return None


def _folder_sums(source: FolderSource) -> NDArray[np.uint32]:
    """Checksums of the files of a folder; those of the cache where size and times are the same."""
    path = index.place("content", f"folder\0{os.path.realpath(source.root)}")
    status = np.array([_status(os.path.join(source.root, name)) for name in source.names], dtype=np.int64)
    status = status.reshape(-1, 3)
    known: dict[str, tuple[tuple[int, ...], int]] = {}
    stored = index.read(path)
    if stored is not None and {"names", "status", "sums"} <= set(stored):
        rows = map(tuple, stored["status"].tolist())
        known = dict(zip(index.split(stored["names"]), zip(rows, stored["sums"].tolist(), strict=False), strict=False))
    sums = np.zeros(len(source), dtype=np.uint32)
    unread = []
    for i, (name, row) in enumerate(zip(source.names, status.tolist(), strict=True)):
        if name in known and known[name][0] == tuple(row) and row[0] >= 0:
            sums[i] = known[name][1]
        else:
            unread.append(i)
    if not unread:
        return sums
    sums[unread] = _read_sums(source, unread)
    # A file that changed a moment ago may change again without a new time.
    settled = status[:, 1:].max(axis=1) < (time.time() - _SETTLED) * 1e9
    keep = np.flatnonzero(settled & (status[:, 0] >= 0))
    names = [source.names[i] for i in keep]
    here = set(source.names)
    others = [name for name in known if name not in here]
    index.write(
        path,
        {
            "names": index.joined([*names, *others]),
            "status": np.concatenate([status[keep], np.array([known[n][0] for n in others]).reshape(-1, 3)]),
            "sums": np.concatenate([sums[keep], np.array([known[n][1] for n in others], dtype=np.uint32)]),
        },
    )
    return sums


def _status(path: str) -> tuple[int, int, int]:
    """Size, time of change and time of the last change of name or status; (-1, 0, 0) for a file that is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read_sums(source: FileSource, numbers: Sequence[int]) -> NDArray[np.uint32]:
    """Reads files and returns their CRC-32 [len(numbers)]; 0 for files that cannot be read."""

    def read(i: int) -> int:
        crc = 0
        try:
            with source.open(i) as file:
                while block := file.read(1 << 20):
                    crc = zlib.crc32(block, crc)
        except OSError:
            return 0
        return crc

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.fromiter(pool.map(read, numbers), dtype=np.uint32, count=len(numbers))
