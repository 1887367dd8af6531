"""Files that hold one or several pictures which a library of science reads whole: DICOM, NIfTI, FITS, OME-TIFF."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.decoding import PictureInfo, describe, without_alpha
from undiffuse.data.formats.base import peek
from undiffuse.data.formats.stored import Handle
from undiffuse.data.sources import BrokenImageError, Excluded, Source

__all__ = ["Kept", "Described", "SliceSource", "files_of", "sliced"]

_KEPT = 256 << 20


class Kept:
    """What was read last, up to 256 MiB; for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, read: Callable[[], Any]) -> Any:
        """The thing under a key, read if it is not here; it says by `nbytes` how large it is."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        item = read()
        with self._lock:
            if key not in self._held:
                self._held[key] = item
                self._bytes += item.nbytes
            while self._bytes > _KEPT and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return item


@dataclass(frozen=True)
class Described:
    """What a file holds: how many pictures [height, width], of what type, and the values of black and white."""

    count: int
    size: tuple[int, int]
    dtype: np.dtype[Any]
    value_range: tuple[float, float] | None = None
    note: str = ""
    channels: int = 1


class SliceSource(Source):
    """The pictures of many files, each of which is read whole, one file after the other.

    Args:
        root: the folder of the files.
        names: of the files, relative to it.
        described: what each holds.
        load: a function from a path to its pictures [n, H, W] or [n, H, W, C].
        where: what this is, for messages.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        described: Sequence[Described],
        load: Callable[[Path], NDArray[Any]],
        where: str,
    ) -> None:
        super().__init__(where)
        self.root, self.names, self.described, self.load = root, list(names), list(described), load
        self.first = np.cumsum([0, *(about.count for about in described)])
        self._kept = Handle(Kept)

    def __len__(self) -> int:
        return int(self.first[-1])

    def _place(self, i: int) -> tuple[int, int]:
        file = int(np.searchsorted(self.first, i, side="right")) - 1
        return file, i - int(self.first[file])

    def name(self, i: int) -> str:
        file, k = self._place(i)
        return self.names[file] if self.described[file].count == 1 else f"{self.names[file]}[{k}]"

    def image(self, i: int) -> NDArray[Any]:
        file, k = self._place(i)
        try:
            pictures = self._kept().get(file, lambda: self.load(self.root / self.names[file]))
        except OSError as error:
            if error.errno is not None:
                raise
            raise BrokenImageError(self.name(i), str(error)) from error
        except Exception as error:
            raise BrokenImageError(self.name(i), f"{type(error).__name__}: {error}") from error
        return without_alpha(np.asarray(pictures[k]))

    def info(self, i: int) -> PictureInfo:
        about = self.described[self._place(i)[0]]
        one = np.zeros((1, 1, about.channels) if about.channels > 1 else (1, 1), dtype=about.dtype)
        return replace(describe(without_alpha(one)), height=about.size[0], width=about.size[1])

    def _content_hash(self) -> bytes:
        sha = hashlib.sha256()
        for name, about in zip(self.names, self.described, strict=True):
            size = (self.root / name).stat().st_size
            sha.update(f"{name}\0{size}\0{about.count}\n".encode("utf-8", "surrogateescape"))
        return sha.digest()


def files_of(path: Path, fits: Callable[[str], bool]) -> list[str]:
    """The names, relative to a folder, of the files in it whose names fit, sorted; a file alone is its own."""
    if path.is_file():
        return [path.name]
    found = [file.relative_to(path).as_posix() for file in path.rglob("*") if fits(file.name) and file.is_file()]
    return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))


def holds(path: Path, fits: Callable[[str], bool], deep: bool = True) -> bool:
    """Whether a folder, or a sub-folder of it, holds files whose names fit and no ordinary pictures."""
    from undiffuse.data.formats.files import is_image

    entries = peek(path)
    if any(fits(name) for name in entries.files):
        return not any(is_image(name) and not fits(name) for name in entries.files)
    return (
        deep
        and bool(entries.folders)
        and not entries.files
        and any(holds(path / name, fits, False) for name in entries.folders[:8])
    )


def sliced(
    path: Path,
    names: Sequence[str],
    describe: Callable[[Path], Described],
    load: Callable[[Path], NDArray[Any]],
    what: str,
) -> Source:
    """The pictures of files, with one value range for all; files that cannot be read are left out and named.

    Raises:
        ValueError: none can be read.
    """
    root = path if path.is_dir() else path.parent
    good, about, excluded = [], [], []
    for name in names:
        try:
            about.append(describe(root / name))
            good.append(name)
        except Exception as error:
            if isinstance(error, ValueError) and "pip install" in str(error):
                raise
            excluded.append(Excluded(name=name, reason=f"{type(error).__name__}: {error}"))
    if not good:
        reasons = ", ".join(f"{item.name} ({item.reason})" for item in excluded[:3])
        raise ValueError(f"{path} holds no images that can be read as {what}{': ' if reasons else ''}{reasons}")
    source = SliceSource(root, good, about, load, f"{what} {path}")
    source.excluded = excluded
    several = [d for d in about if d.count > 1]
    if several:
        source.notes.append(
            f"{len(several):,} files hold {sum(d.count for d in several):,} slices or frames; all are taken"
        )
    source.notes += list(dict.fromkeys(d.note for d in about if d.note))[:4]
    ranges = [d.value_range for d in about]
    known = [r for r in ranges if r is not None]
    if len(known) == len(ranges) and known:
        source.value_range = (min(r[0] for r in known), max(r[1] for r in known))
        source.notes.append(
            f"values {source.value_range[0]:g} (black) to {source.value_range[1]:g} (white), as the files declare"
        )
    elif any(d.dtype != np.uint8 for d in about):
        source.found_range = _measured(source)
        low, high = source.found_range
        source.undeclared = f"{about[0].dtype.name} values {low:g}..{high:g}"
    return source


def _measured(source: SliceSource) -> tuple[float, float]:
    """The smallest and largest value of at most 64 files, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(source.names) - 1, min(64, len(source.names))).astype(int))
    low, high = np.inf, -np.inf
    for file in chosen:
        pictures = source.load(source.root / source.names[file])
        finite = pictures[np.isfinite(pictures)] if pictures.dtype.kind == "f" else pictures
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high
