"""LMDB: values that are encoded image files (LSUN), or Caffe's Datum messages with pixels and a label."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats import protobuf
from undiffuse.data.formats.base import Reading, need, with_labels
from undiffuse.data.formats.named import _is_file
from undiffuse.data.sources import FileSource, Source

_OPEN: dict[tuple[int, str], Any] = {}
_LOCK = threading.Lock()
_SIDE = re.compile(rb"(\d{1,4})-(\d{5})")
"""Keys of a database that holds each picture at several sizes: "256-00017"."""


def recognise(path: Path) -> bool:
    """A folder with data.mdb, or such a file."""
    return (path / "data.mdb").is_file() if path.is_dir() else True


def _environment(path: str) -> Any:
    """The database, opened once in each process; without a lock file, so that it may lie on read-only media."""
    key = (os.getpid(), path)
    with _LOCK:
        if key not in _OPEN:
            library = need("lmdb", "lmdb", path)
            folder = os.path.isdir(path)
            _OPEN[key] = library.open(path, subdir=folder, readonly=True, lock=False, readahead=False, max_readers=1024)
        return _OPEN[key]


class LMDBSource(FileSource):
    """Encoded image files under the keys of a database, in the order of the keys."""

    def __init__(self, path: str, keys: list[bytes], names: list[str], sizes: list[int]) -> None:
        super().__init__(f"LMDB {path}", names, sizes)
        self.path, self.keys = path, keys

    def open(self, i: int) -> IO[bytes]:
        with _environment(self.path).begin(buffers=True) as transaction:
            return io.BytesIO(bytes(transaction.get(self.keys[i])))

    def _keep(self, keep: Any) -> None:
        self.keys = [self.keys[i] for i in keep]


class DatumSource(Source):
    """Pictures in Caffe's Datum messages: planes of bytes, blue first where there are three."""

    def __init__(self, path: str, keys: list[bytes]) -> None:
        super().__init__(f"LMDB {path} (Datum)")
        self.path, self.keys = path, keys

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, i: int) -> str:
        return _shown(self.keys[i])

    def image(self, i: int) -> NDArray[np.uint8]:
        with _environment(self.path).begin(buffers=True) as transaction:
            datum = protobuf.datum(bytes(transaction.get(self.keys[i])))
        planes = np.frombuffer(datum.data, dtype=np.uint8).reshape(datum.channels, datum.height, datum.width)
        picture = planes.transpose(1, 2, 0)
        return np.ascontiguousarray(picture[:, :, ::-1] if datum.channels == 3 else picture)

    def _content_hash(self) -> bytes:
        sha = hashlib.sha256()
        with _environment(self.path).begin(buffers=True) as transaction:
            for key in self.keys:
                sha.update(hashlib.sha256(bytes(transaction.get(key))).digest())
        return sha.digest()


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of the database; values that are none are counted."""
    try:
        environment = _environment(str(path))
    except Exception as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{path} cannot be read as LMDB: {error}") from error
    keys, sizes, others = [], [], Counter[str]()
    datums: list[bytes] = []
    labels: dict[str, bytes] = {}
    numbers: list[int] = []
    with environment.begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            content = bytes(value[:16])
            key_bytes = bytes(key)
            if _is_file(content) or content[4:12] == b"ftypavif":
                keys.append(key_bytes)
                sizes.append(len(value))
            elif _shown(key_bytes).lower().startswith("label"):
                labels[_digits(_shown(key_bytes))] = bytes(value)
            elif (found := protobuf.try_datum(bytes(value) if len(value) < 1 << 24 else b"")) is not None:
                datums.append(key_bytes)
                numbers.append(found.label)
            elif content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05":
                others["values that are pickles, which are not executed"] += 1
            else:
                others["values that are no images"] += 1
    if datums and not keys:
        source: Source = DatumSource(str(path), datums)
        source.notes.append("Caffe's Datum messages; their planes are blue, green, red")
        source.left_out.update(others)
        return with_labels(source, numbers, reading, field="the label of Datum")
    others.update({"values that are Datum messages": len(datums)} if datums else {})
    if not keys:
        raise ValueError(
            f"{path} holds no images: {', '.join(f'{n:,} {kind}' for kind, n in others.items()) or 'nothing'}"
        )
    sides = [_SIDE.fullmatch(key) for key in keys]
    if all(sides) and len({match[1] for match in sides if match}) > 1:  # a pyramid: every picture at several sizes
        largest = max(int(match[1]) for match in sides if match)
        kept = [k for k, match in enumerate(sides) if match and int(match[1]) == largest]
        others["copies of images at smaller sizes"] = len(keys) - len(kept)
        keys, sizes = [keys[k] for k in kept], [sizes[k] for k in kept]
    files = LMDBSource(str(path), keys, [_shown(key) for key in keys], sizes)
    files.left_out.update(others)
    if not labels:
        files.labels_settled = reading.labels == "none"
        return files
    values = [labels.get(_digits(name)) for name in files.names]
    return with_labels(files, [_label(value) for value in values], reading, field="the keys label-*")


def _shown(key: bytes) -> str:
    text = key.decode("utf-8", "replace")
    return text if text.isprintable() and "\ufffd" not in text else key.hex()


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


def _label(value: bytes | None) -> int | str | None:
    if value is None:
        return None
    text = value.decode("utf-8", "replace").strip()
    return int(text) if text.lstrip("-").isdigit() else text
