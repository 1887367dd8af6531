"""Pictures in arrays of a file that is opened in every process: HDF5, Zarr; and several sources as one."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.array_source import hash_images
from undiffuse.data.decoding import Picture, PictureInfo, decode, describe, read_header, without_alpha
from undiffuse.data.labels import class_table
from undiffuse.data.sources import BrokenImageError, Source

__all__ = ["ConcatSource", "EncodedSource", "Handle", "StoredSource", "concatenated"]


class Handle:
    """Something opened once in each process, by a function that can be pickled."""

    def __init__(self, opener: Callable[[], Any]) -> None:
        self.opener = opener
        self._held: tuple[int, Any] | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        held = self._held
        if held is None or held[0] != os.getpid():
            with self._lock:
                held = self._held
                if held is None or held[0] != os.getpid():
                    held = self._held = (os.getpid(), self.opener())
        return held[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"opener": self.opener}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["opener"])  # type: ignore[misc]


class StoredSource(Source):
    """Pictures of one size, read one by one from an array in a file.

    Args:
        opener: opens the array, which has numpy's indexing.
        shape: of the array, [N, ...].
        dtype: of the array.
        axes: the order of the axes of one picture that makes it [H, W] or [H, W, C].
        flat: the shape of a picture that is stored flattened; None for others.
        where: what this is, for messages.
        item_name: what a picture is called.
    """

    def __init__(
        self,
        opener: Callable[[], Any],
        shape: Sequence[int],
        dtype: np.dtype[Any],
        axes: tuple[int, ...],
        flat: tuple[int, ...] | None,
        where: str,
        item_name: str,
    ) -> None:
        super().__init__(where)
        self.array, self.shape, self.dtype = Handle(opener), tuple(shape), dtype
        self.axes, self.flat, self._item_name = axes, flat, item_name

    def __len__(self) -> int:
        return int(self.shape[0])

    def name(self, i: int) -> str:
        return f"{self._item_name}[{i}]"

    def image(self, i: int) -> NDArray[Any]:
        picture = np.asarray(self.array()[i])
        if self.flat is not None:
            picture = picture.reshape(self.flat)
        picture = picture.astype(np.uint8) * np.uint8(255) if picture.dtype == bool else picture
        return without_alpha(picture.transpose(self.axes))

    def info(self, i: int) -> PictureInfo:
        shape = self.flat or self.shape[1:]
        one = np.zeros([1] * 2 + [shape[axis] for axis in self.axes[2:]], dtype=self.dtype)
        return replace(describe(without_alpha(one)), height=int(shape[self.axes[0]]), width=int(shape[self.axes[1]]))

    def _content_hash(self) -> bytes:
        return hash_images(self.array())


class EncodedSource(Source):
    """Encoded image files, read one by one from an array of bytes in a file."""

    def __init__(self, opener: Callable[[], Any], count: int, where: str, item_name: str) -> None:
        super().__init__(where)
        self.array, self.count, self._item_name = Handle(opener), count, item_name

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return f"{self._item_name}[{i}]"

    def encoded(self, i: int) -> bytes:
        """File i."""
        item = self.array()[i]
        return item if isinstance(item, bytes) else np.asarray(item).tobytes()

    def image(self, i: int) -> Picture:
        return decoded(self.encoded(i), self.name(i))

    def info(self, i: int) -> PictureInfo:
        try:
            return read_header(io.BytesIO(self.encoded(i)))
        except Exception as error:
            raise BrokenImageError(self.name(i), str(error) or type(error).__name__) from error

    def _content_hash(self) -> bytes:
        sha = hashlib.sha256()
        for i in range(self.count):
            sha.update(hashlib.sha256(self.encoded(i)).digest())
        return sha.digest()


def decoded(content: bytes, name: str) -> Picture:
    """A picture from the bytes of an image file.

    Raises:
        BrokenImageError: it cannot be decoded.
    """
    try:
        return decode(io.BytesIO(content))
    except Exception as error:
        raise BrokenImageError(name, str(error) or type(error).__name__) from error


class ConcatSource(Source):
    """Several sources one after the other, under one class table."""

    def __init__(self, parts: Sequence[Source], where: str) -> None:
        super().__init__(where)
        self.parts = list(parts)
        self.first = np.cumsum([0, *(len(part) for part in parts)])
        self.inherit(parts[0])
        self.excluded = [item for part in parts for item in part.excluded]
        self.in_memory = all(part.in_memory for part in parts)
        self.notes = list(dict.fromkeys(note for part in parts for note in part.notes))
        self.left_out = {}
        for part in parts:
            for kind, count in part.left_out.items():
                self.left_out[kind] = self.left_out.get(kind, 0) + count
        vectors = [part.vectors for part in parts if part.vectors is not None]
        self.vectors = np.concatenate(vectors) if len(vectors) == len(parts) else None
        self.labels, self.label_names = _joined(parts)

    def __len__(self) -> int:
        return int(self.first[-1])

    def _place(self, i: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self.first, i, side="right")) - 1
        return self.parts[part], i - int(self.first[part])

    def name(self, i: int) -> str:
        part, k = self._place(i)
        return part.name(k)

    def encoded(self, i: int) -> bytes | None:
        part, k = self._place(i)
        return part.encoded(k)

    def image(self, i: int) -> Picture:
        part, k = self._place(i)
        return part.image(k)

    def info(self, i: int) -> PictureInfo:
        part, k = self._place(i)
        return part.info(k)

    def _content_hash(self) -> bytes:
        return hashlib.sha256(b"".join(part._content_hash() for part in self.parts)).digest()


def _joined(parts: Sequence[Source]) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """The labels of all parts under one table: that of the parts, or all names sorted where the parts' differ."""
    if any(part.labels is None or part.label_names is None for part in parts):
        return None, None
    tables = [part.label_names or [] for part in parts]
    table = tables[0] if all(t == tables[0] for t in tables) else class_table(name for t in tables for name in t)
    number = {name: k for k, name in enumerate(table)}
    lists = [np.array([number[n] for n in part.label_names or []], dtype=np.int64)[part.labels] for part in parts]
    return np.concatenate(lists), list(table)


def concatenated(sources: Sequence[Source], where: str) -> Source:
    """Several sources as one; the one itself if there is only one.

    Raises:
        ValueError: some have labels, vectors or a value range and others have not, or another one.
    """
    if len(sources) == 1:
        return sources[0]
    for what in ("labels", "vectors"):
        having = [getattr(source, what) is not None for source in sources]
        if any(having) and not all(having):
            without = next(source.where for source, has in zip(sources, having, strict=True) if not has)
            raise ValueError(f'{where}: {without} has no {what}, others have. Open them apart, or with labels="none"')
    ranges = {source.value_range for source in sources}
    if len(ranges) > 1:
        raise ValueError(f"{where}: the files have different value ranges: {sorted(map(str, ranges))}")
    return ConcatSource(sources, where)
