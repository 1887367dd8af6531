"""Reads MATLAB's files: arrays of numbers are found by their headers and read picture by picture.

Version 5 (also called 6 and 7) is read by hand, version 7.3 is HDF5. Both store arrays column by column, that is, with
the axes reversed. Compressed arrays that do not fit in a small memory are unpacked once, into the cache folder.

References:
    MathWorks, "MAT-File Format": data elements of a type, a length and padding to 8 bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.base import need
from undiffuse.downloads import cache_dir
from undiffuse.util.files import atomic_file
from undiffuse.util.limits import check_unpacked, inflate

__all__ = ["MatArray", "is_version_7_3", "read"]

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_KINDS = {1: "cell", 2: "struct", 3: "object", 4: "text", 5: "sparse", 16: "function", 17: "object"}
_MATRIX, _COMPRESSED = 14, 15
_HEAD = 1 << 12
"""Bytes of an array that hold its dimensions, its name and the tag of its numbers."""
_IN_MEMORY = 32 << 20
"""Compressed arrays up to this many bytes are unpacked in memory."""


@dataclass(frozen=True)
class MatArray:
    """An array in a file.

    Attributes:
        shape: as MATLAB has it.
        dtype: as MATLAB has it.
        kind: "" for numbers; "cell", "struct", "text", ... for what is not read.
        opener: opens the stored numbers, with reversed axes; None where they are not read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: str = ""
    opener: Any = None


def is_version_7_3(path: Path) -> bool:
    """Whether a file is HDF5."""
    with path.open("rb") as file:
        head = file.read(128)
    return b"MATLAB 7.3" in head or head[:4] == b"\x89HDF"


def read(path: Path) -> dict[str, MatArray]:
    """The arrays of a file by name; their numbers are not read yet.

    Raises:
        ValueError: It is no MATLAB file of version 5 or later, or damaged.
    """
    if is_version_7_3(path):
        return _read_hdf5(path)
    with path.open("rb") as file:
        header = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None:
            raise ValueError(
                f"{path} cannot be read as a MATLAB file: it is damaged, or of version 4. Save it with save(..., '-v7')"
            )
        try:
            return dict(_elements(path, file, order))
        except (struct.error, zlib.error, EOFError, UnicodeDecodeError, IndexError, KeyError) as error:
            raise ValueError(f"{path} cannot be read as a MATLAB file: {error or type(error).__name__}") from error


def _read_hdf5(path: Path) -> dict[str, MatArray]:
    h5py = need("h5py", "hdf5", f"{path} (MATLAB 7.3, which is HDF5)")
    found = {}
    with h5py.File(path, "r") as archive:
        for key, item in archive.items():
            if key.startswith("#"):
                continue
            kind = item.attrs.get("MATLAB_class", b"")
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "uifb" or kind in ("char", "cell"):
                found[key] = MatArray((), np.dtype(object), kind or "struct")
                continue
            dtype = np.dtype(bool) if kind == "logical" else item.dtype
            found[key] = MatArray(tuple(item.shape[::-1]), dtype, "", partial(_dataset, str(path), key))
    return found


def _dataset(path: str, key: str) -> Any:
    return need("h5py", "hdf5", path).File(path, "r")[key]


def _elements(path: Path, file: IO[bytes], order: str) -> Iterator[tuple[str, MatArray]]:
    size = path.stat().st_size
    at = 128
    while at + 8 <= size:
        file.seek(at)
        kind, length = struct.unpack(f"{order}II", file.read(8))
        if at + 8 + length > size:
            raise EOFError("it was cut short")
        if kind == _COMPRESSED:
            packed = file.read(min(length, _HEAD))
            head = zlib.decompressobj().decompress(packed, _HEAD)
            inner, content = struct.unpack(f"{order}II", head[:8])
            if inner == _MATRIX:
                check_unpacked(content, length, str(path))
                yield _array(head[8:], order, content, partial(_unpacked, str(path), at + 8, length), 8)
            at += 8 + length
        else:
            if kind == _MATRIX:
                yield _array(file.read(min(length, _HEAD)), order, length, partial(_plain, str(path)), at + 8)
            at += 8 + length + -length % 8


def _tag(head: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """(type, bytes, offset of the content, offset of the next element) of the element at an offset."""
    kind, length = struct.unpack_from(f"{order}II", head, at)
    if kind >> 16:  # short elements have their length and content in these 8 bytes
        return kind & 0xFFFF, kind >> 16, at + 4, at + 8
    return kind, length, at + 8, at + 8 + length + -length % 8


def _array(head: bytes, order: str, length: int, opener: Any, base: int) -> tuple[str, MatArray]:
    """(name, array) from the beginning of a matrix, whose content begins at `base`."""
    _, _, flags_at, at = _tag(head, 0, order)
    (flags,) = struct.unpack_from(f"{order}I", head, flags_at)
    number = flags & 0xFF
    if number == 17:  # an object without dimensions
        return "", MatArray((), np.dtype(object), "object")
    _, size, dims_at, at = _tag(head, at, order)
    shape = struct.unpack_from(f"{order}{size // 4}i", head, dims_at)
    _, size, name_at, at = _tag(head, at, order)
    name = head[name_at : name_at + size].decode("utf-8")
    if number not in _CLASSES or flags & 0x800:
        return name, MatArray(shape, np.dtype(object), "complex" if flags & 0x800 else _KINDS.get(number, "other"))
    kind, size, data_at, _ = _tag(head, at, order)
    stored = np.dtype(order + _TYPES[kind])
    if min(shape, default=0) < 0 or math.prod(shape) * stored.itemsize > size or data_at + size > length:
        raise EOFError(f"{name} is shorter than it says")
    dtype = np.dtype(bool) if flags & 0x200 else np.dtype(_CLASSES[number])
    opener = partial(opener, base + data_at, stored, shape[::-1])
    return name, MatArray(shape, dtype, "", opener)


def _plain(path: str, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def _unpacked(
    path: str, at: int, length: int, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """The numbers of a compressed array, in memory or in a file in the cache folder."""
    if offset + math.prod(shape) * dtype.itemsize <= _IN_MEMORY:
        with open(path, "rb") as file:
            file.seek(at)
            content = zlib.decompressobj().decompress(file.read(length), _IN_MEMORY + _HEAD)
        return np.frombuffer(content, dtype=dtype, count=math.prod(shape), offset=offset).reshape(shape)
    status = os.stat(path)
    identity = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{at}"
    target = cache_dir("unpacked", hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32])
    if not target.is_file():
        _unpack(path, at, length, target)
    return _plain(str(target), offset, dtype, shape)


def _unpack(path: str, at: int, length: int, target: Path) -> None:
    try:
        with open(path, "rb") as file, atomic_file(target, overwrite=True, durable=False) as out:
            file.seek(at)
            inflate(file, length, out, path)
    except zlib.error as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error
