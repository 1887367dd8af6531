"""Files that hold one or several pictures which a library of science reads whole: DICOM, NIfTI, FITS, OME-TIFF."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.decoding import PictureInfo, Planes, describe, without_alpha
from undiffuse.data.formats.base import Reading, choose_part, kind_of, part_of, peek
from undiffuse.data.formats.files import at_level, is_image, part_level, without_part
from undiffuse.data.formats.stored import Handle
from undiffuse.data.labels import join_names
from undiffuse.data.names import Names
from undiffuse.data.sources import BrokenImageError, Excluded, FileSource, FolderSource, Source
from undiffuse.data.values import of_16_bits

__all__ = ["Described", "Kept", "NoPictureError", "SliceSource", "files_of", "holds", "sliced"]

_KEPT = 256 << 20
_PROBED = 64
"""Files of a folder that are looked into to recognise a format."""
_LEVELS = 4
"""Levels of folders in which a format is looked for."""


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
    """What a file holds: how many pictures [height, width], of what type, and the values of black and white.

    With `planes` the channels are not colours.
    """

    count: int
    size: tuple[int, int]
    dtype: np.dtype[Any]
    value_range: tuple[float, float] | None = None
    note: str = ""
    channels: int = 1
    planes: bool = False
    channel_names: tuple[str, ...] = ()


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
        self.containers = tuple(str(root / name) for name in self.names)
        named = {about.channel_names for about in described}
        self.channel_names = named.pop() if len(named) == 1 else ()
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
        except Exception as error:  # libraries of science explain themselves in many lines
            text = " ".join(str(error).split())
            raise BrokenImageError(self.name(i), f"{type(error).__name__}: {text}") from error
        return self._with_meaning(np.asarray(pictures[k]), self.described[file])

    @staticmethod
    def _with_meaning(picture: NDArray[Any], about: Described) -> NDArray[Any]:
        return picture.view(Planes) if about.planes else without_alpha(picture)

    def info(self, i: int) -> PictureInfo:
        about = self.described[self._place(i)[0]]
        one = np.zeros((1, 1, about.channels) if about.channels > 1 else (1, 1), dtype=about.dtype)
        return replace(describe(self._with_meaning(one, about)), height=about.size[0], width=about.size[1])

    def _content_hash(self) -> bytes:
        sha = hashlib.sha256()
        for name, about in zip(self.names, self.described, strict=True):
            size = (self.root / name).stat().st_size
            sha.update(f"{name}\0{size}\0{about.count}\n".encode("utf-8", "surrogateescape"))
        return sha.digest()


class NoPictureError(ValueError):
    """A file of a format that holds something else than a picture; its text is the kind that it counts as."""


@dataclass
class Found:
    """The files of a folder: those to read, and what else is there.

    Attributes:
        names: relative to the folder, sorted.
        held_out: files of the parts of the data set that were not opened.
        held_names: their names.
        left_out: other files, by kind.
    """

    names: list[str]
    held_out: Counter[str]
    held_names: set[str]
    left_out: Counter[str]


_MAPS = re.compile(r"(labels?|masks?|segmentations?|annotations?)(tr|ts|va)?", re.IGNORECASE)
_IMAGES = re.compile(r"(images?|imgs?|scans?|volumes?)(tr|ts|va)?", re.IGNORECASE)


def files_of(path: Path, fits: Callable[[Path], bool], reading: Reading) -> Found:
    """The files of a format under a folder, of the part to read; a file alone is its own.

    Maps of labels in folders beside those of the images (labelsTr beside imagesTr) are left out.
    """
    if path.is_file():
        return Found([path.name], Counter(), set(), Counter())
    every = sorted(
        name
        for folder, _, files in os.walk(path)
        for name in ((Path(folder) / file).relative_to(path).as_posix() for file in files)
        if not any(piece.startswith(".") for piece in name.split("/"))
    )
    names = [name for name in every if fits(path / name)]
    left_out: Counter[str] = Counter(kind_of(name) for name in set(every).difference(names))
    folders = {piece for name in names for piece in name.split("/")[:-1]}
    maps = {piece for piece in folders if _MAPS.fullmatch(piece)}
    if maps and any(_IMAGES.fullmatch(piece) for piece in folders):
        kept = [name for name in names if not maps.intersection(name.split("/")[:-1])]
        left_out[f"maps in {join_names(sorted(maps), 3)}"] = len(names) - len(kept)
        names = kept
    level, parts = part_level(Names.of(names).runs)
    if not parts:
        return Found(names, Counter(), set(), left_out)
    folder_of = {name: at_level(name, level) for name in names}
    counts = {name: count for name, count in parts.items() if part_of(name)}
    chosen = choose_part(counts, reading, str(path))
    taken = [name for name in names if folder_of[name] in chosen]
    held = {name for name in names if folder_of[name] in counts and folder_of[name] not in chosen}
    if len(taken) + len(held) < len(names):
        left_out["files outside the parts"] = len(names) - len(taken) - len(held)
    return Found(taken, Counter(folder_of[name] for name in held), held, left_out)


def holds(path: Path, fits: Callable[[Path], bool], levels: int = _LEVELS) -> bool:
    """Whether the first files in a folder or its sub-folders fit, and no ordinary pictures lie beside them."""
    entries = peek(path)
    ordinary = [name for name in entries.files if is_image(name)]
    if any(not fits(path / name) for name in ordinary):
        return False
    others = [name for name in entries.files if name not in set(ordinary)][:_PROBED]
    if ordinary or any(fits(path / name) for name in others):
        return True
    return levels > 0 and any(holds(path / name, fits, levels - 1) for name in entries.folders[:8])


def sliced(
    path: Path,
    fits: Callable[[Path], bool],
    describe: Callable[[Path], Described],
    load: Callable[[Path], NDArray[Any]],
    what: str,
    reading: Reading,
) -> Source:
    """The pictures of files, with one value range for all, and the labels of their folders or of a table.

    Raises:
        ValueError: None can be read, or some cannot be read and `reading.on_broken` is "refuse".
    """
    root = path if path.is_dir() else path.parent
    files = files_of(path, fits, reading)
    good, about, broken = [], [], []
    for name in files.names:
        try:
            about.append(describe(root / name))
            good.append(name)
        except NoPictureError as error:
            files.left_out[str(error)] += 1
        except Exception as error:
            if isinstance(error, ValueError) and "pip install" in str(error):
                raise
            text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            broken.append(Excluded(name=name, reason=text))
    named = join_names((f"{item.name} ({item.reason})" for item in broken), 5)
    if not good:
        raise ValueError(f"{path} holds no images that can be read as {what}{': ' if named else ''}{named}")
    source = SliceSource(root, good, about, load, f"{what} {path}")
    if broken and reading.on_broken == "refuse":
        raise ValueError(
            f"{source.where}: {len(broken):,} of {len(files.names):,} files cannot be read: {named}. Repair or remove "
            'them, or leave them out with on_broken="skip"'
        )
    source.excluded = broken
    source.left_out.update(files.left_out)
    source.held_out.update(files.held_out)
    several = [d for d in about if d.count > 1]
    if several:
        hold = f"{len(several):,} files hold" if len(several) > 1 else "1 file holds"
        source.notes.append(f"{hold} {sum(d.count for d in several):,} slices or frames; all are taken")
    source.notes += list(dict.fromkeys(d.note for d in about if d.note))[:4]
    _declare(source)
    return source if path.is_file() else _labelled(source, files, reading)


def _declare(source: SliceSource) -> None:
    """Note the values of black and white, if every file declares them, else which values were found."""
    about = source.described
    ranges = [d.value_range for d in about]
    known = [r for r in ranges if r is not None]
    if len(known) == len(ranges):
        source.value_range = (min(r[0] for r in known), max(r[1] for r in known))
        source.notes.append(
            f"values {source.value_range[0]:g} (black) to {source.value_range[1]:g} (white), as the files declare"
        )
    elif any(d.dtype != np.uint8 for d in about):
        low, high = source.found_range = _measured(source)
        found = f"{about[0].dtype.name} values {low:g}..{high:g}"
        if all(d.dtype == np.uint16 for d in about):
            source.value_range = (0.0, 65535.0)
            source.notes.append(f"{found}: {of_16_bits(high)}")
        else:
            source.undeclared = found


def _labelled(source: SliceSource, files: Found, reading: Reading) -> Source:
    """The source with a label for each file: from a table, or from its folder."""
    from undiffuse.data.labelled import label_files

    sizes = [(source.root / name).stat().st_size for name in source.names]
    plain = FolderSource(source.root, source.names, sizes)
    plain.held, plain.left_out = sorted(files.held_names), source.left_out
    folders = without_part(plain.names.runs)
    labelled = label_files(plain, reading.labels, reading.label_names, reading.on_broken, folders, reading.part)
    source.labels_settled = True
    if reading.part not in (None, "all") and not files.held_out and not labelled.held_out:
        raise ValueError(f"{source.where} has no part {reading.part!r}")
    assert isinstance(labelled, FileSource)
    number = {name: k for k, name in enumerate(labelled.names)}
    kept = [number.get(name, -1) for name in source.names]
    of_file = np.repeat(kept, [about.count for about in source.described])
    out: Source = source if min(kept) >= 0 else source.subset(np.flatnonzero(of_file >= 0), labelled.excluded)
    of_file = of_file[of_file >= 0]
    out.labels = None if labelled.labels is None else labelled.labels[of_file]
    out.label_names = labelled.label_names
    out.vectors = None if labelled.vectors is None else labelled.vectors[of_file]
    out.vector_names, out.multi_hot = labelled.vector_names, labelled.multi_hot
    out.notes += labelled.notes
    out.left_out = labelled.left_out
    out.held_out.update(labelled.held_out)
    return out


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
