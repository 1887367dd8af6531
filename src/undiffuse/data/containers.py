"""Files that hold many images each (npz, Parquet, HDF5, ...): what tells one from itself after a change."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from undiffuse.data import index

__all__ = ["SETTLED", "checksum", "crc_of", "files_in", "kept_hash", "settled", "status_of"]

SETTLED = 2.0
"""Seconds after which a file's time of change tells a later change from this one."""
_BLOCK = 1 << 20
_SMALL = 1 << 22
"""Files up to this many bytes are read every time."""
_TEXTS = (".md", ".txt", ".html", ".yaml", ".yml", ".lock", "lock.mdb", "license", "readme")
"""Endings of files that may lie beside data in a folder and are none."""
Status = tuple[int, int, int]


def status_of(path: str | os.PathLike[str]) -> Status:
    """Size, time of change and time of the last change of name or status; (-1, 0, 0) for a file that is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def settled(*states: Status) -> bool:
    """Whether the last changes are so long ago that a later one would have another time."""
    return max((max(state[1:]) for state in states), default=0) < (time.time() - SETTLED) * 1e9


def files_in(containers: Sequence[str]) -> list[Path]:
    """The files of containers, which may be folders; texts beside the data do not count."""
    found: list[Path] = []
    for path in map(Path, containers):
        if path.is_dir():
            inside = (file for file in path.rglob("*") if not file.name.lower().endswith(_TEXTS))
            found += sorted(file for file in inside if file.is_file())
        else:
            found.append(path)
    return found


def crc_of(file: IO[bytes]) -> int:
    """The CRC-32 of the rest of an open file."""
    crc = 0
    while block := file.read(_BLOCK):
        crc = zlib.crc32(block, crc)
    return crc


def checksum(file: Path) -> int:
    """The CRC-32 of a file, kept in the cache folder by its size and times."""
    status = status_of(file)

    def build() -> index.Arrays:
        with file.open("rb") as opened:
            return {"sum": np.array([crc_of(opened)], dtype=np.uint32)}

    if status[0] <= _SMALL:
        return int(build()["sum"][0])
    identity = f"file\0{os.path.realpath(file)}\0{status}"
    return int(index.cached("content", identity, build, keep=lambda _: settled(status))["sum"][0])


def kept_hash(containers: Sequence[str], what: str, build: Callable[[], bytes]) -> bytes:
    """A SHA-256 of what is in containers, kept in the cache folder by their sizes and times.

    Args:
        containers: files and folders.
        what: what in them is hashed.
        build: hashes it.
    """
    files = files_in(containers)
    states = [status_of(file) for file in files]
    if sum(state[0] for state in states) <= _SMALL:
        return build()
    sha = hashlib.sha256(what.encode("utf-8", "surrogateescape"))
    for file, state in zip(files, states, strict=True):
        sha.update(f"\0{os.path.realpath(file)}\0{state}".encode("utf-8", "surrogateescape"))

    def made() -> index.Arrays:
        return {"sha256": np.frombuffer(build(), dtype=np.uint8)}

    found = index.cached("hashes", f"containers {sha.hexdigest()}", made, keep=lambda _: settled(*states))
    return found["sha256"].tobytes()
