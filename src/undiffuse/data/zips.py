"""Image files in a zip, read through its list or, in a large one, by their places."""

from __future__ import annotations

import io
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.sources import FileSource
from undiffuse.util.limits import check_member, open_zip

__all__ = ["ZipSource"]

_LOCAL = struct.Struct("<4s5H3I2H")
"""The fixed part of the header before a member of a zip."""


class ZipSource(FileSource):
    """Image files in a zip; `names` are its member names.

    Members are read by their places where these are known. Otherwise the archive is opened when first read, once in
    each process: a handle shared with a forked child would share the position in the file too. Threads take turns at
    reading bytes and decode side by side.

    Attributes:
        path: the zip.
        places: int64 [N, 4], offset of the local header, bytes as packed, method (0 or 8) and CRC-32 of each member;
            None where they are not known.
        tables: names of members that may be tables of labels; None where they are not known.
    """

    tables: list[str] | None = None

    def __init__(
        self,
        path: str | Path,
        names: Sequence[str],
        sizes: Sequence[int] | NDArray[np.int64],
        places: NDArray[np.int64] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(f"zip {path}", names, sizes, **keywords)
        self.path, self.places = Path(path), places
        self._handle: tuple[int, zipfile.ZipFile, threading.Lock] | None = None

    def open(self, i: int) -> IO[bytes]:
        if self.places is not None:
            return io.BytesIO(self._placed(i))
        handle = self._handle
        if handle is None or handle[0] != os.getpid():
            # Two threads may both come here first; each handle has its own lock, so either one serves.
            handle = self._handle = (os.getpid(), open_zip(self.path), threading.Lock())
        _, archive, lock = handle
        with lock:  # the standard library counts a zip's open members without one
            info = archive.getinfo(self.names[i])
            check_member(info, str(self.path))
            return io.BytesIO(archive.read(info))

    def _placed(self, i: int) -> bytes:
        """A member by its place, unpacked and compared with its checksum."""
        assert self.places is not None
        offset, packed, method, crc = self.places[i].tolist()
        info = zipfile.ZipInfo(self.names[i])
        info.file_size, info.compress_size = int(self.sizes[i]), packed
        check_member(info, str(self.path))
        with open(self.path, "rb") as file:
            file.seek(offset)
            header = file.read(_LOCAL.size)
            if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
                raise ValueError("the zip has changed, or is damaged at this file")
            fields = _LOCAL.unpack(header)
            file.seek(fields[9] + fields[10], os.SEEK_CUR)
            content = file.read(packed)
        if method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-15).decompress(content, info.file_size + 1)
        if len(content) != info.file_size or zlib.crc32(content) != crc:
            raise ValueError("its content does not fit the checksum in the zip")
        return content

    def _keep(self, keep: Sequence[int] | NDArray[np.int64]) -> None:
        if self.places is not None and len(keep) < len(self.places):
            self.places = self.places[np.asarray(keep, dtype=np.int64)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}
