"""Indices of large data sets kept in the cache folder: which files there are, what is wrong with them.

Listing a million files and looking at their headers takes minutes; an index of that is a file that is mapped into
memory, so that starting takes seconds, and the processes of a machine share one copy. An index is used only while what
it was made from is unchanged, and it is an aid: where it cannot be written, it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.downloads import cache_dir
from undiffuse.util.files import atomic_file
from undiffuse.util.limits import array_header, open_zip

__all__ = ["FROM", "Arrays", "cached", "joined", "place", "read", "split", "turn", "write"]

FROM = 10_000
"""Items from which a data set is indexed."""
Arrays = Mapping[str, NDArray[Any]]
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BLOCK = 1 << 20
_WAIT = 0.2


def cached(
    kind: str,
    identity: str,
    build: Callable[[], Arrays],
    *,
    valid: Callable[[Arrays], bool] = lambda arrays: True,
    keep: Callable[[Arrays], bool] = lambda arrays: True,
) -> Arrays:
    """Arrays from the cache, made and kept there if they are not. Of several processes one makes them.

    Args:
        kind: the name of a sub-folder of the cache.
        identity: of what the arrays are made from.
        build: makes them.
        valid: looks at arrays from the cache; False makes them anew.
        keep: whether arrays that were made are worth keeping.

    Returns:
        The arrays, mapped from their file if they were kept.
    """
    path = place(kind, identity)
    found = read(path)
    if found is not None and valid(found):
        return found
    with turn(path):
        again = read(path)  # another process may have made them meanwhile
        if again is not None and valid(again):
            return again
        arrays = build()
        if not keep(arrays):
            return arrays
        write(path, arrays)
    written = read(path)
    return arrays if written is None else written


def place(kind: str, identity: str) -> Path:
    """The file in the cache for arrays of a kind that are made from what `identity` names."""
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_dir("index", kind, f"{name}.npz")


def read(path: Path) -> Arrays | None:
    """The arrays of an uncompressed npz file, mapped into memory; None if it is missing or damaged."""
    try:
        with open_zip(path) as archive, path.open("rb") as file:
            return {info.filename.removesuffix(".npy"): _mapped(path, file, info) for info in archive.infolist()}
    except (OSError, ValueError, EOFError, KeyError, struct.error, zipfile.BadZipFile):
        return None


def _mapped(path: Path, file: Any, info: zipfile.ZipInfo) -> NDArray[Any]:
    """An array of an npz file, after its checksum was compared. ValueError if it cannot be mapped or is damaged."""
    if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
        raise ValueError("not an index")
    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    begin = info.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
    file.seek(begin)
    left, crc = info.file_size, 0
    while left and (block := file.read(min(left, _BLOCK))):
        crc, left = zlib.crc32(block, crc), left - len(block)
    if left or crc != info.CRC:
        raise ValueError("damaged")
    file.seek(begin)
    shape, fortran, dtype = array_header(file, f"{path}: {info.filename!r}")
    if dtype.hasobject:
        raise ValueError("not an index")
    if 0 in shape:
        return np.zeros(shape, dtype)
    # Plain arrays: slicing a numpy.memmap costs more than reading from it.
    order: Any = "F" if fortran else "C"
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order))


def write(path: Path, arrays: Arrays) -> None:
    """Keeps arrays in an npz file, if the folder can be written."""
    with contextlib.suppress(OSError), atomic_file(path, overwrite=True, durable=False) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Holds a lock of the machine for a file of the cache; without one where there are no locks."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except (ImportError, OSError):
        yield
        return
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_WAIT)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        # Whoever waits finds the index when its turn comes; the end of the process would give up the lock too.
        with contextlib.suppress(OSError):
            path.with_suffix(".lock").unlink()
        os.close(handle)


def joined(texts: list[str]) -> NDArray[np.uint8]:
    """Texts without null characters as one array of bytes."""
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def split(array: NDArray[np.uint8]) -> list[str]:
    """The inverse of `joined`."""
    return array.tobytes().decode("utf-8", "surrogateescape").split("\0") if len(array) else []
