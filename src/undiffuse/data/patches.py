"""Large pictures cut into windows that cover them, each an image of its own."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from undiffuse.data.decoding import Picture, PictureInfo
from undiffuse.data.images import cut
from undiffuse.data.screening import default_workers
from undiffuse.data.sources import Source

__all__ = ["TiledSource"]

_KEPT = 4
"""Decoded pictures that are kept, because their tiles are often wanted one after the other."""


class TiledSource(Source):
    """The pictures of another source as tiles of one size; tile k of ``a.png`` is called ``a.png[TOP,LEFT]``.

    Tiles lie edge to edge; the last of a row or column is moved inwards to end with the picture, so that every pixel is
    in some tile and none is beyond the border. A picture smaller than a tile is one tile, as large as it is.

    Args:
        parent: the pictures.
        size: (height, width) of a tile, pixels.
    """

    def __init__(self, parent: Source, size: tuple[int, int]) -> None:
        self.parent, self.size = parent, size
        with ThreadPoolExecutor(default_workers()) as pool:
            shapes = list(pool.map(parent.stored_size, range(len(parent))))
        boxes: list[tuple[int, int, int, int]] = []
        index: list[int] = []
        for i, (width, height) in enumerate(shapes):
            high, wide = min(size[0], height), min(size[1], width)
            for top in _starts(height, high):
                for left in _starts(width, wide):
                    boxes.append((left, top, left + wide, top + high))
                    index.append(i)
        self.boxes = np.array(boxes, dtype=np.int64).reshape(-1, 4)
        self.index = np.array(index, dtype=np.int64)
        labels = None if parent.labels is None else parent.labels[self.index]
        super().__init__(parent.where, labels, parent.label_names, parent.excluded)
        self.inherit(parent, self.index)
        self.notes.append(f"{len(parent):,} pictures cut into {len(self.index):,} tiles of {size[0]}x{size[1]}")
        self._cache: OrderedDict[int, Picture] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        left, top, _, _ = self.boxes[i]
        return f"{self.parent.name(int(self.index[i]))}[{top},{left}]"

    def image(self, i: int) -> Picture:
        left, top, right, bottom = (int(side) for side in self.boxes[i])
        return cut(self._whole(int(self.index[i])), (left, top, right, bottom))

    def info(self, i: int) -> PictureInfo:
        left, top, right, bottom = (int(side) for side in self.boxes[i])
        found = self.parent.info(int(self.index[i]))
        return PictureInfo(**{**vars(found), "width": right - left, "height": bottom - top, "pages": 1})

    def stored_size(self, i: int) -> tuple[int, int]:
        left, top, right, bottom = (int(side) for side in self.boxes[i])
        return right - left, bottom - top

    def _whole(self, number: int) -> Picture:
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        picture = self.parent.image(number)
        with self._lock:
            self._cache[number] = picture
            while len(self._cache) > _KEPT:
                self._cache.popitem(last=False)
        return picture

    def _content_hash(self) -> bytes:
        return hashlib.sha256(self.parent._content_hash() + self.boxes.astype("<i8").tobytes()).digest()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _starts(length: int, size: int) -> list[int]:
    """Where tiles of a size begin that cover a length."""
    count = -(-length // size)
    return [min(k * size, length - size) for k in range(count)]
