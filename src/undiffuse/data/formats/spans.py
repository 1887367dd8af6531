"""Encoded pictures one after another in large files (tar shards, TFRecords), read by file, offset and length."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.base import need
from undiffuse.data.sources import FileSource
from undiffuse.downloads import cache_dir
from undiffuse.util.limits import gunzip

__all__ = ["SpanSource", "expand_braces", "identity_of", "is_url", "open_shard", "read_span", "unpacked"]

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_RANGE = re.compile(r"\{([^{}]*)\}")


class SpanSource(FileSource):
    """Pictures by their place in shards, which are local files or addresses that fsspec reads.

    Args:
        where: what this is, for messages.
        shards: paths or addresses.
        shard: [N], the number of the shard that each picture lies in.
        offsets: [N], where each begins, in bytes.
        sizes: [N], how long each is.
        names: [N].
    """

    def __init__(
        self,
        where: str,
        shards: Sequence[str],
        shard: NDArray[np.int32],
        offsets: NDArray[np.int64],
        sizes: Sequence[int] | NDArray[np.int64],
        names: Sequence[str],
    ) -> None:
        super().__init__(where, names, sizes)
        self.shards, self.shard, self.offsets = list(shards), shard, offsets

    def open(self, i: int) -> IO[bytes]:
        return io.BytesIO(read_span(self.shards[int(self.shard[i])], int(self.offsets[i]), int(self.sizes[i])))

    def _keep(self, keep: Sequence[int] | NDArray[np.int64]) -> None:
        chosen = np.asarray(keep, dtype=np.int64)
        self.shard, self.offsets = self.shard[chosen], self.offsets[chosen]


def is_url(text: str) -> bool:
    """Whether this is an address such as https://... or s3://..."""
    return bool(_SCHEME.match(text))


def open_shard(shard: str) -> Any:
    """A shard, open for reading and seeking."""
    if not is_url(shard):
        return open(shard, "rb")
    try:
        return need("fsspec", "remote", shard).open(shard, "rb").open()
    except ImportError as error:  # fsspec names the package that it needs for this kind of address
        raise ValueError(f"{shard} cannot be read: {error}") from error


def identity_of(shard: str) -> str:
    """What tells a shard from another, and from itself after a change."""
    if not is_url(shard):
        status = os.stat(shard)
        return f"{os.path.realpath(shard)}\0{status.st_size}\0{status.st_mtime_ns}"
    system, path = need("fsspec", "remote", shard).core.url_to_fs(shard)
    about = system.info(path)
    return f"{shard}\0{about.get('size')}\0{about.get('ETag') or about.get('etag') or about.get('mtime')}"


def read_span(shard: str, offset: int, length: int) -> bytes:
    """Bytes of a shard; every call opens it anew, so any thread or process may."""
    if not is_url(shard):
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(length)
    fsspec = need("fsspec", "remote", shard)
    system, path = fsspec.core.url_to_fs(shard)
    content: bytes = system.cat_file(path, start=offset, end=offset + length)
    return content


def expand_braces(text: str) -> list[str]:
    """ "a-{000..002}.tar" -> ["a-000.tar", "a-001.tar", "a-002.tar"]; "{x,y}.tar" -> ["x.tar", "y.tar"].

    Raises:
        ValueError: braces that are neither a range nor a list.
    """
    match = _RANGE.search(text)
    if match is None:
        return [text]
    before, inside, after = text[: match.start()], match[1], text[match.end() :]
    if ".." in inside:
        first, _, last = inside.partition("..")
        if not (first.isdigit() and last.isdigit()) or int(last) < int(first):
            raise ValueError(f"{text}: expected a range such as {{000..015}} in the braces, got {{{inside}}}")
        width = len(first) if first.startswith("0") and len(first) > 1 else 0
        width = max(width, len(last) if last.startswith("0") and len(last) > 1 else 0)
        words = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        words = inside.split(",")
    return [name for word in words for name in expand_braces(f"{before}{word}{after}")]


def unpacked(path: Path) -> Path:
    """The unpacked content of a .gz file, kept in the cache folder: a packed file cannot be read at random.

    The copy is used again as long as the file has the same path, size and time of change.
    """
    status = path.stat()
    identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    target = cache_dir("unpacked", hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32])
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".undiffuse-", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            gunzip(path, file)
        os.replace(temporary, target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target
