"""Folders and zips of image files, with the parts of a data set (train/, val/, test/) told apart from its classes."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from undiffuse.data import index
from undiffuse.data.decoding import IMAGE_SUFFIXES
from undiffuse.data.formats.base import Reading, choose_part, is_folder, kind_of, part_of, peek
from undiffuse.data.sources import FileSource, FolderSource, ZipSource
from undiffuse.util.limits import check_member, check_table, check_zip

__all__ = ["Listing", "at_level", "list_files", "open", "part_level", "recognise", "source_of", "without_part"]

_DEEPEST = 4
"""How many levels of folders are searched for those of a data set's parts."""
_SPOT = 1000
"""Files whose sizes are compared before an index is used."""
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".xlsx")


@dataclass
class Listing:
    """The files under a folder or in a zip.

    Attributes:
        sizes: {name of an image, relative, with "/": bytes}, in sorted order.
        others: files that are no images, by kind.
        tables: names of files that may hold labels; they count among the others.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)

    def add(self, name: str, size: int) -> None:
        """Count a file."""
        if _hidden(name):
            return
        if is_image(name):
            self.sizes[name] = size
        else:
            self.count(name)

    def count(self, name: str) -> None:
        """Count a file that is no picture."""
        self.others[kind_of(name)] += 1
        if name.lower().endswith(TABLES):
            self.tables.append(name)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def recognise(path: Path) -> bool:
    """A folder, or a zip."""
    return path.is_dir() or path.suffix.lower() == ".zip" or (zipfile.is_zipfile(path) and not _is_npz(path))


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def open(path: Path, reading: Reading) -> FileSource:  # noqa: A001
    """The image files of the part to read; their labels are found by the caller."""
    listing = list_files(path)
    return source_of(path, listing, reading)


def source_of(path: Path, listing: Listing, reading: Reading) -> FileSource:
    """The images of a listing, of the part that is wanted."""
    names = sorted(listing.sizes)
    if not names:
        found = f"; it holds {_listed(listing.others)}" if listing.others else ""
        found += _suggestion(path)
        raise ValueError(f"{path} holds no images: looked everywhere inside for {', '.join(IMAGE_SUFFIXES)}{found}")
    level, parts = part_level(names)
    taken, held_out, outside = names, {}, 0
    if parts:
        counts = {name: count for name, count in parts.items() if part_of(name)}
        chosen = choose_part(counts, reading, str(path))
        taken = [name for name in names if at_level(name, level) in chosen]
        held_out = {name: count for name, count in counts.items() if name not in chosen}
        outside = len(names) - sum(counts.values())
    elif reading.part not in (None, "all") and not listing.tables:
        raise ValueError(f"{path} has no parts such as train/ and test/, so it has no part {reading.part!r}")
    make = FolderSource if path.is_dir() else ZipSource
    source = make(path, taken, [listing.sizes[name] for name in taken])
    source.left_out.update(listing.others)
    source.wanted_part = reading.part if not parts and reading.part != "all" else None
    if parts:
        source.held_out.update(held_out)
        source.held_names = set(names).difference(taken)
        source.where += f" ({', '.join(chosen)})"
        source.notes.append(f"images of the part {', '.join(chosen)}")
        if outside:
            source.left_out["images outside the parts"] = outside
    return source


def _suggestion(path: Path) -> str:
    """A file in a folder that is a data set of its own, for a message."""
    from undiffuse.data.formats.registry import find_format  # which opens folders by this module

    for name in peek(path).files[:_DEEPEST] if path.is_dir() else ():
        format = find_format(path / name)
        if format is not None and format.module not in ("pickles", "files"):
            return f". Give one of its files, as in {path / name} ({format.title})"
    return ""


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))


def at_level(name: str, level: int) -> str:
    """The folder of a path at a level, "" if it is not that deep."""
    pieces = name.split("/", level + 1)
    return pieces[level] if len(pieces) > level + 1 else ""


def part_level(names: Sequence[str]) -> tuple[int, dict[str, int]]:
    """(level of the folders that name the parts, {folder at that level: images}); an empty dict if there are none.

    Folders are parts if one is named as a training part and another as a validation or test part. They may lie in
    folders that wrap everything, or in the folders of the classes if there is nothing but parts in these.
    """
    folders = Counter(name.rpartition("/")[0] for name in names)
    wrapped = True
    for level in range(_DEEPEST):
        found: Counter[str] = Counter()
        for folder, count in folders.items():
            found[at_level(f"{folder}/", level)] += count
        kinds = {part_of(part) for part in found}
        if "train" in kinds and kinds & {"validation", "test"} and (wrapped or None not in kinds):
            return level, dict(sorted(found.items()))
        if set(found) == {""}:
            break
        wrapped = wrapped and len(found) == 1
    return 0, {}


def without_part(names: Sequence[str]) -> list[str]:
    """The names without the folders of the parts: "train/cat/1.png" -> "cat/1.png"."""
    level, parts = part_level(names)
    if not parts:
        return list(names)
    split = (name.split("/") for name in names)
    return ["/".join(pieces[:level] + pieces[level + 1 :]) for pieces in split]


def list_files(path: Path) -> Listing:
    """Everything under a folder or in a zip.

    Raises:
        ValueError: a zip that cannot be read or is encrypted, or a pipe or device among the files.
        OSError: a folder that may not be read.
    """
    return _list_folder(path) if path.is_dir() else _list_zip(path)


def _list_folder(root: Path) -> Listing:
    """Everything under a folder. Of a large one the list is kept in the cache folder, and used while no folder under it
    has changed and files looked at here and there have their sizes.
    """
    identity = f"{os.path.realpath(root)}\0{IMAGE_SUFFIXES}"
    made: list[tuple[Listing, list[str]]] = []

    def build() -> index.Arrays:
        made.append(_walk(root))
        listing, folders = made[0]
        return {
            "names": index.joined(list(listing.sizes)),
            "sizes": np.fromiter(listing.sizes.values(), dtype=np.int64, count=len(listing.sizes)),
            "kinds": index.joined(list(listing.others)),
            "counts": np.fromiter(listing.others.values(), dtype=np.int64, count=len(listing.others)),
            "tables": index.joined(listing.tables),
            "folders": index.joined(folders),
            "changed": np.array([os.stat(root / folder).st_mtime_ns for folder in folders], dtype=np.int64),
        }

    arrays = index.cached(
        "folders",
        identity,
        build,
        valid=lambda found: _unchanged(root, found),
        keep=lambda found: len(found["sizes"]) >= index.FROM,
    )
    if made:
        return made[0][0]
    names = index.split(arrays["names"])
    listing = Listing(dict(zip(names, arrays["sizes"].tolist(), strict=True)), tables=index.split(arrays["tables"]))
    listing.others.update(dict(zip(index.split(arrays["kinds"]), arrays["counts"].tolist(), strict=True)))
    return listing


def _unchanged(root: Path, found: index.Arrays) -> bool:
    """Whether every folder has its time of change, and files here and there have their sizes."""
    try:
        times = [os.stat(root / folder).st_mtime_ns for folder in index.split(found["folders"])]
        names, sizes = index.split(found["names"]), found["sizes"]
        chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), _SPOT)).astype(np.int64))
        same = all(_size(str(root / names[i])) == sizes[i] for i in chosen)
    except (OSError, ValueError, KeyError):
        return False
    return same and times == found["changed"].tolist()


def _walk(root: Path) -> tuple[Listing, list[str]]:
    """(everything under a folder, all folders). Links are followed; one back to a folder above is not, for it would go
    round for ever.
    """
    listing = Listing()
    seen: set[str] = set()
    folders: list[str] = []
    waiting = [""]
    while waiting:
        base = waiting.pop()
        path = os.path.join(root, base) if base else os.fspath(root)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        folders.append(base)
        below = []
        with os.scandir(path) as entries:
            for entry in entries:
                file = entry.name
                if file.startswith(".") or file == "__MACOSX":
                    continue
                name = f"{base}/{file}" if base else file
                if is_folder(entry):
                    below.append(name)
                elif is_image(file):
                    listing.sizes[name] = _size(entry.path)
                else:
                    listing.count(name)
        waiting += sorted(below, reverse=True)
    return listing, folders


def _size(file: str) -> int:
    try:
        status = os.stat(file)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return 0  # a link to nowhere, or to itself, is a broken file, reported with the others
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file} is no file but a pipe, socket or device; move it away")
    return status.st_size


def _list_zip(path: Path) -> Listing:
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, str(path))
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a zip file: {error}") from error
    listing = Listing()
    for info in infos:
        listing.add(info.filename, info.file_size)
    locked = [info.filename for info in infos if info.flag_bits & 1 and info.filename in listing.sizes]
    if locked:
        raise ValueError(f"{path} is encrypted ({len(locked):,} of its images are); unpack it first")
    return listing


def members(path: Path) -> Iterable[str]:
    """The names of a zip's members; nothing if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError, ValueError):
        return ()


def read_member(path: Path, name: str) -> bytes:
    """A file under a folder or in a zip."""
    if path.is_dir():
        check_table((path / name).stat().st_size, str(path / name))
        return (path / name).read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            return read_table_member(archive, name, str(path))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: {name} in it cannot be read: {error}") from error


def read_head(path: Path, name: str, size: int) -> bytes:
    """The first bytes of a file under a folder or in a zip. ValueError if it cannot be read."""
    if path.is_dir():
        with (path / name).open("rb") as file:
            return file.read(size)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            return member.read(size)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: {name} in it cannot be read: {error}") from error


def read_table_member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """A table in an open zip. ValueError if it is larger than a table may be."""
    info = archive.getinfo(name)
    check_member(info, where)
    check_table(info.file_size, f"{where}: {name!r}")
    return archive.read(info)
