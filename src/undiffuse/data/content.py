"""Contents of data sets, file by file: what tells that images were swapped though names and sizes stayed the same."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data import containers, index
from undiffuse.data.formats.frames import FramesSource
from undiffuse.data.formats.spans import SpanSource, identity_of
from undiffuse.data.names import Names
from undiffuse.data.patches import TiledSource
from undiffuse.data.sources import FileSource, FolderSource, Source, SubsetSource
from undiffuse.data.zips import ZipSource
from undiffuse.util.limits import open_zip
from undiffuse.util.text import count_of, join_names

__all__ = ["ContentIndex", "Recheck", "content_index"]

_THREADS = 8


@dataclass(frozen=True)
class ContentIndex:
    """The files of a data set with the CRC-32 of what each holds.

    Attributes:
        names: [N], the files.
        sums: uint32 [N], their checksums.
        what: what the names are of, for messages: "image" or "file".
        trusted: a large folder whose checksums were taken from the cache without looking at every file; None otherwise.
    """

    names: Sequence[str]
    sums: NDArray[np.uint32]
    what: str = "image"
    trusted: FolderSource | None = None

    @cached_property
    def hash(self) -> str:
        """The sha256 of all names and checksums."""
        sha = hashlib.sha256(Names.of(self.names).text[:-1].data)
        sha.update(self.sums.astype("<u4").tobytes())
        return sha.hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The index as arrays for an npz file."""
        return {"names": Names.of(self.names).text[:-1], "sums": self.sums}

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
            f"{count_of(len(names), now.what)} {kind}: {join_names(names, 3)}" for kind, names in kinds.items() if names
        ]
        return "; ".join(parts) or "the images have another order"


def content_index(source: Source) -> ContentIndex | None:
    """Reads what the files of a source hold; None for sources that are not made of files.

    The checksums of files are kept in the cache folder and read again only when a file's size or time changes. A zip
    has them in its directory. Of containers of arrays and tables (Parquet, HDF5, npz, ...) each file has one checksum.
    """
    if isinstance(source, SubsetSource):
        whole = content_index(source.parent) or _of_containers(source)
        if whole is None or whole.what != "image":
            return whole
        chosen = np.asarray(source.indices, dtype=np.int64)
        return ContentIndex(Names.of(whole.names).take(chosen), whole.sums[chosen], trusted=whole.trusted)
    if isinstance(source, FramesSource):
        return _as_files(content_index(source.files))
    if isinstance(source, TiledSource):
        return _as_files(content_index(source.parent))
    if isinstance(source, FolderSource):
        return _of_folder(source)
    if isinstance(source, ZipSource) and source.places is not None:
        return ContentIndex(source.names, source.places[:, 3].astype(np.uint32))
    if isinstance(source, ZipSource):
        with open_zip(source.path) as archive:
            members = {member.filename: member.CRC for member in archive.infolist()}
        return ContentIndex(source.names, np.array([members[name] for name in source.names], dtype=np.uint32))
    if isinstance(source, SpanSource):
        identity = "\0".join([*map(identity_of, source.shards), source._content_hash().hex()])
        found = index.cached("content", identity, lambda: {"sums": _read_sums(source, range(len(source)))})
        return ContentIndex(source.names, found["sums"])
    return _of_containers(source)


def _as_files(found: ContentIndex | None) -> ContentIndex | None:
    return None if found is None else ContentIndex(found.names, found.sums, "file", found.trusted)


def _of_containers(source: Source) -> ContentIndex | None:
    """One checksum for each file that the images lie in; None if the source does not know its files."""
    files = containers.files_in(source.containers)
    if not files or not all(file.is_file() for file in files):
        return None
    base = os.path.commonpath([file.absolute().parent for file in files])
    names = [Path(os.path.relpath(file.absolute(), base)).as_posix() for file in files]
    return ContentIndex(names, np.array([containers.checksum(file) for file in files], dtype=np.uint32), "file")


def _of_folder(source: FolderSource) -> ContentIndex:
    """Checksums of the files of a folder; those of the cache where size and times are the same."""
    if len(source) >= index.FROM:
        stored = _stored(source)
        if stored is not None and np.array_equal(stored["sizes"], source.sizes):
            return ContentIndex(source.names, stored["sums"], trusted=source)
    return ContentIndex(source.names, _folder_sums(source))


def _place(source: FolderSource) -> Path:
    return index.place("content", f"folder\0{os.path.realpath(source.root)}\0{len(source.names.text)}")


def _stored(source: FolderSource) -> index.Arrays | None:
    """The arrays that are kept of exactly these files: text (their names), sizes, status [N, 3] and sums."""
    stored = index.read(_place(source))
    if stored is None or not {"text", "sizes", "status", "sums"} <= set(stored):
        return None
    return stored if np.array_equal(stored["text"], source.names.text) else None


def _statuses(source: FolderSource, stop: Callable[[], bool] = lambda: False) -> NDArray[np.int64]:
    """Size and times of every file, int64 [N, 3]; cut short when `stop` returns True."""
    root = os.path.join(source.root, "")
    out = np.empty((len(source), 3), dtype=np.int64)
    for i, name in enumerate(source.names):
        out[i] = containers.status_of(root + name)
        if i % 4096 == 0 and stop():
            return out[:i]
    return out


def _folder_sums(source: FolderSource) -> NDArray[np.uint32]:
    status = _statuses(source)
    sums = np.zeros(len(source), dtype=np.uint32)
    known = np.zeros(len(source), dtype=bool)
    stored = _stored(source)
    if stored is not None:
        known = (stored["status"] == status).all(axis=1) & (status[:, 0] >= 0)
        sums[known] = stored["sums"][known]
    unread = np.flatnonzero(~known)
    if not len(unread):
        return sums
    sums[unread] = _read_sums(source, unread)
    # A file that changed a moment ago may change again without a new time: it is read again the next time.
    moving = status[:, 1:].max(axis=1) >= (time.time() - containers.SETTLED) * 1e9
    status[moving, 0] = -1
    index.write(_place(source), {"text": source.names.text, "sizes": source.sizes, "status": status, "sums": sums})
    return sums


def _read_sums(source: FileSource, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint32]:
    """Reads files and returns their CRC-32 [len(numbers)]; 0 for files that cannot be read."""

    def read(i: int) -> int:
        try:
            with source.open(int(i)) as file:
                return containers.crc_of(file)
        except OSError:
            return 0

    out = np.zeros(len(numbers), dtype=np.uint32)
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(numbers), 4096):  # a pool keeps a record of everything handed to it at once
            piece = numbers[first : first + 4096]
            out[first : first + len(piece)] = np.fromiter(pool.map(read, piece), dtype=np.uint32, count=len(piece))
    return out


class Recheck:
    """Looks at every file of a large folder in a thread of its own, while the training begins.

    Args:
        folder: the images, whose checksums were taken from the cache.
    """

    def __init__(self, folder: FolderSource) -> None:
        self._folder, self._problem, self._stopped = folder, "", False
        self._thread = threading.Thread(target=self._run, name="undiffuse-recheck", daemon=True)
        self._thread.start()

    def result(self, wait: bool = True) -> str:
        """Says which images have changed since the cache was written; "" if none has, or if that is not known yet.

        Args:
            wait: wait until it is known.
        """
        if wait:
            self._thread.join()
        return "" if self._thread.is_alive() else self._problem

    def stop(self) -> None:
        """Gives up."""
        self._stopped = True
        self._thread.join()

    def _run(self) -> None:
        folder = self._folder
        try:
            stored, status = _stored(folder), _statuses(folder, lambda: self._stopped)
            if self._stopped or stored is None:
                return
            other = np.flatnonzero((stored["status"] != status).any(axis=1))
            if not len(other):
                return
            before, now = np.asarray(stored["sums"])[other], _read_sums(folder, other)
            _folder_sums(folder)  # the cache has the new ones from now on
            if not np.array_equal(before, now):
                names = list(folder.names.take(other))
                self._problem = ContentIndex(names, before).changes(ContentIndex(names, now))
        except OSError as error:
            self._problem = f"they cannot be read any more: {error}"
