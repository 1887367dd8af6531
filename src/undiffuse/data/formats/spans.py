"""Encoded pictures one after another in large files (tar shards, TFRecords), read by file, offset and length."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data import index
from undiffuse.data.formats.base import need
from undiffuse.data.names import Names
from undiffuse.data.sources import FileSource
from undiffuse.downloads import cache_dir
from undiffuse.util.files import atomic_file
from undiffuse.util.limits import check_unpacked, gunzip, inflate

__all__ = [
    "SpanSource", "expand_braces", "identity_of", "is_url", "open_shard", "packed_as", "read_span", "unpacked",
    "unpacked_shard",
]  # fmt: skip

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

    tables: Mapping[str, tuple[int, int]] = MappingProxyType({})
    """Label tables in the only shard: {name: (offset, bytes)}."""

    def table_in(self, name: str) -> bytes | None:
        """A label table that lies in the shard, at the top or in the only folder; None without one."""
        inner = [key for key in self.tables if key == name or key.partition("/")[2] == name]
        return read_span(self.shards[0], *self.tables[inner[0]]) if len(inner) == 1 else None

    def open(self, i: int) -> IO[bytes]:
        return io.BytesIO(read_span(self.shards[int(self.shard[i])], int(self.offsets[i]), int(self.sizes[i])))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The places of the pictures, their labels and what was said of them, as arrays for an index."""
        about = {
            "format": self.format, "notes": self.notes, "left_out": self.left_out, "settled": self.labels_settled,
            "label_names": self.label_names, "vector_names": self.vector_names,
        }  # fmt: skip
        out = {
            **self.names.arrays(), "shard": self.shard, "offsets": self.offsets, "sizes": self.sizes,
            "about": index.joined([json.dumps(about)]),
        }  # fmt: skip
        optional = {"labels": self.labels, "vectors": self.vectors}
        return out | {name: array for name, array in optional.items() if array is not None}

    @classmethod
    def of_arrays(cls, where: str, shards: Sequence[str], arrays: index.Arrays) -> SpanSource:
        """The inverse of `arrays`."""
        about = json.loads(arrays["about"].tobytes())
        source = cls(where, shards, arrays["shard"], arrays["offsets"], arrays["sizes"], Names.of_arrays(arrays))
        source.labels, source.label_names = arrays.get("labels"), about["label_names"]
        source.vectors, source.vector_names = arrays.get("vectors"), about["vector_names"]
        source.format, source.notes, source.left_out = about["format"], about["notes"], about["left_out"]
        source.labels_settled = about["settled"]
        return source

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
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file at {shard}") from error
    except ImportError as error:  # fsspec names the package that it needs for this kind of address
        raise ValueError(f"{shard} cannot be read: {error}") from error


def identity_of(shard: str) -> str:
    """What tells a shard from another, and from itself after a change."""
    if not is_url(shard):
        status = os.stat(shard)
        return f"{os.path.realpath(shard)}\0{status.st_size}\0{status.st_mtime_ns}"
    system, path = need("fsspec", "remote", shard).core.url_to_fs(shard)
    try:
        about = system.info(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file at {shard}") from error
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


def unpacked_shard(shard: str) -> str:
    """A shard, local or at an address, or the unpacked copy of a packed one in the cache folder."""
    if not shard.partition("?")[0].lower().endswith((".gz", ".tgz")):
        return shard
    if not is_url(shard):
        return str(unpacked(Path(shard)))
    target = cache_dir("unpacked", hashlib.sha256(identity_of(shard).encode()).hexdigest()[:32])
    if target.is_file():
        return str(target)
    size = 0
    try:
        with (
            open_shard(shard) as raw,
            gzip.GzipFile(fileobj=raw) as file,
            atomic_file(target, overwrite=True, durable=False) as out,
        ):
            while block := file.read(1 << 20):
                size += len(block)
                check_unpacked(size, raw.tell(), shard)
                out.write(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{shard} cannot be unpacked: {error}") from error
    return str(target)


def packed_as(path: Path) -> str:
    """ "gzip" or "zlib" by the first bytes of a file, "" for anything else."""
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"\x1f\x8b":
        return "gzip"
    return "zlib" if len(head) == 2 and head[0] == 0x78 and (head[0] * 256 + head[1]) % 31 == 0 else ""


def unpacked(path: Path) -> Path:
    """The unpacked content of a packed file, kept in the cache folder: a packed file cannot be read at random.

    The copy is used again as long as the file has the same path, size and time of change.
    """
    status = path.stat()
    identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    target = cache_dir("unpacked", hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32])
    if target.is_file():
        return target
    try:
        with atomic_file(target, overwrite=True, durable=False) as out:
            if packed_as(path) == "zlib":
                with path.open("rb") as stream:
                    inflate(stream, status.st_size, out, str(path))
            else:
                gunzip(path, out)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error
    return target
