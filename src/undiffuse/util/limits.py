"""Limits of what files may unpack to, so that a small hostile file cannot fill the memory or keep a program busy.

Every limit is the number in an environment variable where one is set, so that an unusual honest file can be read.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # numpy.typing takes longer to import than this module
    from numpy.typing import NDArray

__all__ = [
    "LIMITS", "ArrayHeader", "array_header", "check_header", "check_item", "check_member", "check_name", "check_pixels",
    "check_rows", "check_table", "check_unpacked", "check_zip", "gunzip", "inflate", "is_zip", "limit", "load_npy",
    "npz_headers", "open_npz", "open_zip",
]  # fmt: skip

LIMITS = {
    "UNDIFFUSE_MAX_UNPACKED": 10**11,
    "UNDIFFUSE_MAX_RATIO": 200,
    "UNDIFFUSE_MAX_TABLE": 5 * 10**8,
    "UNDIFFUSE_MAX_ROWS": 20_000_000,
    "UNDIFFUSE_MAX_MEMBERS": 20_000_000,
    "UNDIFFUSE_MAX_HEADER": 64 * 10**6,
    "UNDIFFUSE_MAX_PIXELS": 10**8,
    "UNDIFFUSE_MAX_DOWNLOAD": 200 * 10**9,
}
"""The limits by the environment variables that change them: bytes that a member of an archive unpacks to; the ratio of
that to its packed size; bytes and rows of a table of labels; members of an archive; bytes of a safetensors header;
pixels of a picture, which take 11 bytes of memory each while it is prepared, 13 with 16 bits a channel (twice as many
may be grey or of a palette); bytes of a download."""

_FREE = 1 << 26
"""Up to this many bytes any ratio is allowed: images of one colour shrink to nothing."""
_BLOCK = 1 << 20


def limit(name: str) -> int:
    """Returns a limit.

    Args:
        name: One of `LIMITS`.

    Raises:
        ValueError: The environment variable is not a whole number above 0.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return LIMITS[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text)):
        raise ValueError(f"the environment variable {name} must be a whole number above 0, got {text!r}")
    return int(text)


def _refuse(what: str, found: int, name: str) -> ValueError:
    return ValueError(f"{what}: {found:,} is more than {limit(name):,}. If you trust the file, set {name} to more")


def check_unpacked(size: int, packed: int, where: str) -> None:
    """Raises ValueError if `size` bytes unpacked from `packed` bytes are more than the limits allow."""
    if size > limit("UNDIFFUSE_MAX_UNPACKED"):
        raise _refuse(f"{where} unpacks to too many bytes", size, "UNDIFFUSE_MAX_UNPACKED")
    if size > _FREE and size > packed * limit("UNDIFFUSE_MAX_RATIO"):
        ratio = size // max(1, packed)
        raise _refuse(f"{where} unpacks to too many times its packed size", ratio, "UNDIFFUSE_MAX_RATIO")


def check_member(info: zipfile.ZipInfo, where: str) -> None:
    """Raises ValueError if a member of a zip is larger than the limits allow."""
    check_unpacked(info.file_size, info.compress_size, f"{where}: {info.filename!r}")


def check_name(name: str, where: str) -> None:
    """Raises ValueError if the name of an archive's member leads out of the archive."""
    if not name.strip("/"):
        raise ValueError(f"{where} has a member without a name; it is damaged")
    plain = name.replace("\\", "/")
    if plain.startswith("/") or ".." in plain.split("/") or plain[1:3] == ":/":
        raise ValueError(
            f"{where} has the member {name!r}, an absolute path or one that leads out of the archive; such archives "
            "are not read. Pack it again with relative paths"
        )


def is_zip(path: str | os.PathLike[str] | IO[bytes]) -> bool:
    """Returns whether a file is a zip, damaged or not; `zipfile.is_zipfile` raises errors for some damaged ones."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError, LookupError, ArithmeticError, struct.error):
        return True


def open_zip(path: str | os.PathLike[str] | IO[bytes]) -> zipfile.ZipFile:
    """Opens a zip file like `zipfile.ZipFile`, which has words of its own for some damaged ones.

    Raises:
        zipfile.BadZipFile: The file is damaged, no zip, or needs a newer version of the format.
    """
    try:
        return zipfile.ZipFile(path)
    except (RuntimeError, ValueError, LookupError, ArithmeticError, struct.error) as error:
        raise zipfile.BadZipFile(str(error)) from error


def check_zip(archive: zipfile.ZipFile, where: str) -> None:
    """Raises ValueError if a zip has too many members, or one whose name leads out of it."""
    members = archive.infolist()
    if len(members) > limit("UNDIFFUSE_MAX_MEMBERS"):
        raise _refuse(f"{where} has too many members", len(members), "UNDIFFUSE_MAX_MEMBERS")
    for info in members:
        check_name(info.filename, where)


def check_table(size: int, where: str) -> None:
    """Raises ValueError if a table of labels is larger than the limit."""
    if size > limit("UNDIFFUSE_MAX_TABLE"):
        raise _refuse(f"{where} has too many bytes for a table of labels", size, "UNDIFFUSE_MAX_TABLE")


def check_rows(count: int, where: str) -> None:
    """Raises ValueError if a table has more rows than the limit."""
    if count > limit("UNDIFFUSE_MAX_ROWS"):
        raise _refuse(f"{where} has too many rows", count, "UNDIFFUSE_MAX_ROWS")


def check_pixels(width: int, height: int, where: str) -> None:
    """Raises ValueError if a picture has more pixels than the limit."""
    if width * height > limit("UNDIFFUSE_MAX_PIXELS"):
        raise _refuse(f"{where} has too many pixels, {height}x{width} (height x width)", width * height,
                      "UNDIFFUSE_MAX_PIXELS")  # fmt: skip


def check_item(shape: Sequence[int], itemsize: int, where: str) -> None:
    """Raises ValueError if an image of an array takes more memory than one of the largest number of pixels.

    Args:
        shape: Of one image.
        itemsize: Bytes of one number.
        where: What it is, for messages.
    """
    pixels = math.prod(shape) * itemsize // 8
    if pixels > limit("UNDIFFUSE_MAX_PIXELS"):
        raise _refuse(f"{where}: an image of {list(shape)} takes too much memory, as much as pixels", pixels,
                      "UNDIFFUSE_MAX_PIXELS")  # fmt: skip


def check_header(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if the header of a safetensors file is longer than the limit or the file."""
    with open(path, "rb") as file:
        start = file.read(8)
        size = os.fstat(file.fileno()).st_size
    if len(start) < 8:
        raise ValueError(f"{path} is too short for a safetensors file: {len(start)} bytes; it may be truncated")
    length = struct.unpack("<Q", start)[0]
    if length > size - 8:
        raise ValueError(f"{path} is not a readable safetensors file: its header ends after it; it may be truncated")
    if length > limit("UNDIFFUSE_MAX_HEADER"):
        raise _refuse(f"{path} has too long a header", length, "UNDIFFUSE_MAX_HEADER")


def open_npz(path: str | os.PathLike[str] | IO[bytes]) -> Any:
    """Opens an npz file like `numpy.load` without pickles, after a look at what its members unpack to.

    Args:
        path: The file.

    Raises:
        ValueError: The file is larger than the limits allow.
        OSError, zipfile.BadZipFile, ...: As `numpy.load`; see `util.store.BROKEN_NPZ`.
    """
    where = os.fspath(path) if isinstance(path, (str, os.PathLike)) else "the npz file"
    _check_start(path, where)  # numpy.load goes by it, and would read a whole array or a pickle
    try:
        with open_zip(path) as archive:
            check_zip(archive, where)
            for info in archive.infolist():
                check_member(info, where)
                if info.filename.endswith(".npy"):
                    with archive.open(info) as member:
                        _check_array(member, info, where)
    except (RuntimeError, NotImplementedError, IndexError, struct.error) as error:  # zipfile's words for odd ones
        raise ValueError(f"{where} is no zip file of arrays that can be read: {error}") from error
    if not isinstance(path, (str, os.PathLike)):
        path.seek(0)
    return np.load(path, allow_pickle=False)


def load_npy(path: str | os.PathLike[str] | IO[bytes], where: str, **options: Any) -> NDArray[Any]:
    """Reads an npy file like `numpy.load` without pickles, after a look at its header.

    Args:
        path: The file, or one that is open at its beginning.
        where: What it is, for messages.
        **options: Of `numpy.load`.

    Raises:
        ValueError: It is no npy file, holds Python objects, or says that it holds more than it does.
        OSError: It cannot be read.
    """
    if isinstance(path, (str, os.PathLike)):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = array_header(file, where)
    else:
        size = path.seek(0, os.SEEK_END)
        path.seek(0)
        header = array_header(path, where)
        path.seek(0)
    if header.dtype.hasobject:
        raise ValueError(
            f"{where} holds Python objects (a pickle), which are not executed: save a numeric array instead"
        )
    if header.bytes > size:
        held = f"{header.dtype} {list(header.shape)}"
        raise ValueError(f"{where} cannot be read as an npy file: it says it holds {held}, but ends before")
    loaded: NDArray[Any] = np.load(path, allow_pickle=False, **options)
    return loaded


def npz_headers(path: Path) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Returns type and shape of the arrays of an npz file by name, without reading the arrays.

    Raises:
        ValueError, OSError, ...: As `open_npz`.
    """
    found = {}
    with open_npz(path) as archive:
        for name in archive.files:
            with archive.zip.open(name if name in archive.zip.namelist() else f"{name}.npy") as member:
                header = array_header(member, f"{path}: {name!r}")
                found[name] = header.dtype, header.shape
    return found


class ArrayHeader(NamedTuple):
    """The header of an array in NumPy's format."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Bytes of its numbers, in Python's arithmetic, which cannot overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


def array_header(file: IO[bytes], where: str) -> ArrayHeader:
    """Reads the header of an array in NumPy's format; the file is at its numbers then.

    Args:
        file: Open at the beginning of the array.
        where: What it is, for messages.

    Raises:
        ValueError: It is something else or damaged, whatever NumPy raises for it.
    """
    try:
        old = np.lib.format.read_magic(file) == (1, 0)  # type: ignore[no-untyped-call]
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        header = ArrayHeader(*read(file))  # type: ignore[no-untyped-call]
    except (
        ArithmeticError,
        LookupError,
        RecursionError,
        SyntaxError,
        TypeError,
        ValueError,
        tokenize.TokenError,
    ) as error:
        raise ValueError(f"{where} cannot be read as an npy file: {error}") from error
    if min(header.shape, default=1) < 0:
        raise ValueError(f"{where} has a negative size in its shape {list(header.shape)}; it is damaged")
    return header


def _check_start(path: str | os.PathLike[str] | IO[bytes], where: str) -> None:
    """ValueError if a file does not begin like a zip archive."""
    if isinstance(path, (str, os.PathLike)):
        with open(path, "rb") as file:
            start = file.read(6)
    else:
        path.seek(0)
        start = path.read(6)
        path.seek(0)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return
    if start == b"\x93NUMPY":
        raise ValueError(f"{where} holds a single array, as an npy file does, and is no npz file")
    raise ValueError(
        f"{where} is no npz file, a zip archive of arrays: " + ("it may be damaged" if start else "it is empty")
    )


def _check_array(file: IO[bytes], info: zipfile.ZipInfo, where: str) -> None:
    """ValueError if an array says that it is larger than its member, for which memory would be taken."""
    header = array_header(file, f"{where}: {info.filename!r}")
    if header.bytes > info.file_size:
        raise ValueError(
            f"{where}: {info.filename!r} says it holds {header.dtype} {list(header.shape)}, but ends before"
        )


def gunzip(path: Path, out: IO[bytes] | None = None) -> bytes:
    """Unpacks a gzip file.

    Args:
        path: The file.
        out: Where the content goes; None returns it.

    Raises:
        ValueError: It unpacks to more than the limits allow.
        EOFError, gzip.BadGzipFile, zlib.error: The file is damaged.
    """
    packed, size = path.stat().st_size, 0
    target = io.BytesIO() if out is None else out
    with gzip.open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            check_unpacked(size, packed, str(path))
            target.write(block)
    return target.getvalue() if isinstance(target, io.BytesIO) and out is None else b""


def inflate(file: IO[bytes], length: int, out: IO[bytes], where: str) -> None:
    """Unpacks a zlib stream block by block.

    Args:
        file: Open at the beginning of the stream.
        length: Bytes of the stream.
        out: Where the content goes.
        where: What it is, for messages.

    Raises:
        ValueError: It unpacks to more than the limits allow.
        zlib.error: It is damaged.
    """
    unpacker, size, left = zlib.decompressobj(), 0, length
    while left and not unpacker.eof and (block := file.read(min(_BLOCK, left))):
        left -= len(block)
        while block and not unpacker.eof:
            content = unpacker.decompress(block, _BLOCK)
            size += len(content)
            check_unpacked(size, length, where)
            out.write(content)
            block = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise zlib.error("it was cut short")
