"""What the headers of all files of a large source say, read once and kept in the cache folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data import index
from undiffuse.data.decoding import PictureInfo
from undiffuse.data.sources import BrokenImageError, FileSource, Source, SubsetSource

__all__ = ["Headers", "known_headers", "read_headers"]

_PIECE = 4096
_MOST_KINDS = 1 << 16


@dataclass(frozen=True)
class Headers:
    """The headers of N files.

    Attributes:
        sizes: uint32 [N, 2], width and height, upright; 0 where the header cannot be read.
        pages: uint32 [N], frames or pages of each file.
        kinds: uint16 [N], which of `infos` describes the pixels.
        infos: the different kinds of pixels, without sizes and pages.
        broken: reasons of the files whose headers cannot be read, by number.
    """

    sizes: NDArray[np.uint32]
    pages: NDArray[np.uint32]
    kinds: NDArray[np.uint16]
    infos: list[PictureInfo]
    broken: dict[int, str]

    def where(self, holds: Callable[[PictureInfo], bool]) -> NDArray[np.bool_]:
        """Whether the kind of pixels of each file fulfils something, bool [N]; False for broken ones."""
        wanted = np.array([holds(info) for info in self.infos] or [False])
        chosen: NDArray[np.bool_] = wanted[self.kinds] & (self.sizes[:, 0] > 0)
        return chosen

    def take(self, numbers: NDArray[np.int64]) -> Headers:
        """The headers of the given files, in that order."""
        broken = {}
        if self.broken:
            broken = {k: self.broken[int(i)] for k, i in enumerate(numbers) if int(i) in self.broken}
        return Headers(self.sizes[numbers], self.pages[numbers], self.kinds[numbers], self.infos, broken)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "sizes": self.sizes, "pages": self.pages, "kinds": self.kinds,
            "infos": index.joined([json.dumps(asdict(info)) for info in self.infos]),
            "broken": np.array(list(self.broken), dtype=np.int64), "reasons": index.joined(list(self.broken.values())),
        }  # fmt: skip

    @classmethod
    def _of_arrays(cls, arrays: index.Arrays) -> Headers:
        infos = []
        for text in index.split(arrays["infos"]):
            fields = json.loads(text)
            declared = fields["value_range"]
            infos.append(PictureInfo(**{**fields, "value_range": None if declared is None else tuple(declared)}))
        broken = dict(zip(arrays["broken"].tolist(), index.split(arrays["reasons"]), strict=True))
        return cls(arrays["sizes"], arrays["pages"], arrays["kinds"], infos, broken)


def known_headers(source: Source) -> Headers | None:
    """The headers of a source if they were read before; None otherwise, and for small sources."""
    if isinstance(source, SubsetSource):
        whole = known_headers(source.parent)
        return None if whole is None else whole.take(source.indices)
    if not isinstance(source, FileSource) or len(source) < index.FROM:
        return None
    arrays = index.read(index.place("headers", _identity(source)))
    return None if arrays is None else Headers._of_arrays(arrays)


def read_headers(source: Source, workers: int) -> Headers | None:
    """The headers of a large source of files, from the cache or read now; None for other sources."""
    if isinstance(source, SubsetSource):
        whole = read_headers(source.parent, workers)
        return None if whole is None else whole.take(source.indices)
    if not isinstance(source, FileSource) or len(source) < index.FROM:
        return None
    arrays = index.cached("headers", _identity(source), lambda: _read(source, workers)._arrays())
    return Headers._of_arrays(arrays)


def _identity(source: FileSource) -> str:
    return f"{source.where}\0{source._content_hash().hex()}\0{source.max_pixels}"


def _read(source: FileSource, workers: int) -> Headers:
    sizes = np.zeros((len(source), 2), dtype=np.uint32)
    pages = np.ones(len(source), dtype=np.uint32)
    kinds = np.zeros(len(source), dtype=np.uint16)
    infos: dict[PictureInfo, int] = {}
    broken: dict[int, str] = {}

    def look(i: int) -> PictureInfo | str:
        try:
            return source.info(i)
        except BrokenImageError as error:
            return error.reason

    with ThreadPoolExecutor(workers) as pool:
        # A pool keeps a record for everything handed to it at once, so a large set goes in by pieces.
        for start in range(0, len(source), _PIECE):
            piece = range(start, min(start + _PIECE, len(source)))
            for i, found in zip(piece, pool.map(look, piece), strict=True):
                if isinstance(found, str):
                    broken[i] = found
                    continue
                kind = replace(found, width=0, height=0, pages=1)
                if len(infos) >= _MOST_KINDS and kind not in infos:
                    broken[i] = "it is of yet another kind of pixels"
                    continue
                sizes[i], pages[i] = (found.width, found.height), found.pages
                kinds[i] = infos.setdefault(kind, len(infos))
    return Headers(sizes, pages, kinds, list(infos), broken)
