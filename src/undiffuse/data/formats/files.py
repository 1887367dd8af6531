"""Folders and zips of image files, with the parts of a data set (train/, val/, test/) told apart from its classes."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from undiffuse.data.decoding import IMAGE_SUFFIXES
from undiffuse.data.formats.base import Reading, choose_part, kind_of, part_of
from undiffuse.data.sources import FileSource, FolderSource, ZipSource

__all__ = ["Listing", "list_files", "open", "part_level", "recognise", "source_of", "without_part"]

_DEEPEST = 4
"""How many levels of folders are searched for those of a data set's parts."""
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
            return
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
        raise ValueError(f"{path} holds no images: looked everywhere inside for {', '.join(IMAGE_SUFFIXES)}{found}")
    level, parts = part_level(names)
    taken, held_out, outside = names, {}, 0
    if parts:
        counts = {name: count for name, count in parts.items() if part_of(name)}
        chosen = choose_part(counts, reading, str(path))
        taken = [name for name in names if _at(name, level) in chosen]
        held_out = {name: count for name, count in counts.items() if name not in chosen}
        outside = len(names) - sum(counts.values())
    elif reading.part not in (None, "all"):
        raise ValueError(f"{path} has no parts such as train/ and test/, so it has no part {reading.part!r}")
    make = FolderSource if path.is_dir() else ZipSource
    source = make(path, taken, [listing.sizes[name] for name in taken])
    source.left_out.update(listing.others)
    if parts:
        source.held_out.update(held_out)
        source.held_names = set(names).difference(taken)
        source.where += f" ({', '.join(chosen)})"
        source.notes.append(f"images of the part {', '.join(chosen)}")
        if outside:
            source.left_out["images outside the parts"] = outside
    return source


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))


def _at(name: str, level: int) -> str:
    """The folder of a path at a level, "" if it is not that deep."""
    pieces = name.split("/", level + 1)
    return pieces[level] if len(pieces) > level + 1 else ""


def part_level(names: Sequence[str]) -> tuple[int, dict[str, int]]:
    """(level of the folders that name the parts, {folder at that level: images}); an empty dict if there are none.

    Folders are parts if one is named as a training part and another as a validation or test part. They may lie in
    folders that wrap everything, or in the folders of the classes if there is nothing but parts in these.
    """
    wrapped = True
    for level in range(_DEEPEST):
        found = Counter(_at(name, level) for name in names)
        kinds = {part_of(folder) for folder in found}
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
    """Links are followed; a link back to a folder above is not, for it would go round for ever."""
    listing = Listing()
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:  # os.walk would leave the folder out without a word
        raise error

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        base = Path(folder).relative_to(root).as_posix()
        for file in files:
            name = file if base == "." else f"{base}/{file}"
            if is_image(name) and not _hidden(name):
                listing.add(name, _size(os.path.join(folder, file)))
            else:
                listing.add(name, 0)
    return listing


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
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except zipfile.BadZipFile as error:
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
    except (zipfile.BadZipFile, OSError):
        return ()


def read_member(path: Path, name: str) -> bytes:
    """A file under a folder or in a zip."""
    if path.is_dir():
        return (path / name).read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)
