"""Folders and zips of image files, with the parts of a data set (train/, val/, test/) told apart from its classes."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import time
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from undiffuse.data import containers, index
from undiffuse.data.decoding import IMAGE_SUFFIXES
from undiffuse.data.formats.base import Reading, choose_part, is_folder, kind_of, part_of, peek
from undiffuse.data.formats.stored import concatenated
from undiffuse.data.names import Names, Runs
from undiffuse.data.sources import FileSource, FolderSource, Source
from undiffuse.data.zips import ZipSource
from undiffuse.util.limits import check_member, check_table, check_zip, is_zip, open_zip

__all__ = ["Listing", "at_level", "list_files", "open", "part_level", "recognise", "source_of", "without_part"]

_DEEPEST = 4
"""How many levels of folders are searched for those of a data set's parts."""
_BESIDE = ("unlabeled", "unlabelled", "extra")
"""Folders beside a training part that hold neither a part nor a class."""
_SPOT = 1000
"""Files whose sizes are compared before an index is used."""
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".xlsx")


@dataclass
class Listing:
    """The files under a folder or in a zip.

    Attributes:
        names: of the images, relative, with "/", sorted.
        sizes: of the images, in bytes, int64 [N].
        others: files that are no images, by kind.
        tables: names of files that may hold labels; they count among the others.
        places: of the images in a large zip, see `ZipSource`; None otherwise.
    """

    names: Names
    sizes: NDArray[np.int64]
    others: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)
    places: NDArray[np.int64] | None = None

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
    return path.is_dir() or path.suffix.lower() == ".zip" or (is_zip(path) and not _is_npz(path))


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The image files of the part to read; their labels are found by the caller."""
    listing = list_files(path)
    if path.is_dir() and not len(listing.names):
        zips = [path / name for name in peek(path).files if name.lower().endswith(".zip")]
        if zips:
            return _of_zips(path, zips, reading)
    return source_of(path, listing, reading)


def _of_zips(path: Path, zips: Sequence[Path], reading: Reading) -> Source:
    """The images of all zips in a folder, or of those named after the part to read."""
    from undiffuse.data.formats.registry import find_format  # which opens folders by this module
    from undiffuse.data.labelled import label_files

    named = {file.stem: len(list_files(file).names) for file in zips if part_of(file.stem)}
    chosen = zips
    if len(named) == len(zips):
        taken = choose_part(named, reading, str(path))
        chosen, reading = [file for file in zips if file.stem in taken], replace(reading, part=None)
    parts = []
    for file in chosen:
        found = find_format(file)
        part = source_of(file, list_files(file), reading) if found is None else found.open(file, reading)
        if isinstance(part, FileSource) and part.labels is None and not part.labels_settled:
            runs = without_part(part.names.runs)
            part = label_files(part, reading.labels, reading.label_names, reading.on_broken, runs)
        parts.append(part)
    source = concatenated(parts, f"{len(chosen):,} zips in {path}")
    source.held_out.update({name: count for name, count in named.items() if path / f"{name}.zip" not in chosen})
    source.format, source.labels_settled = "zips of images", True
    source.containers = tuple(map(str, chosen))
    return source


def source_of(path: Path, listing: Listing, reading: Reading) -> FileSource:
    """The images of a listing, of the part that is wanted."""
    names = listing.names
    if not len(names):
        found = f"; it holds {_listed(listing.others)}" if listing.others else ""
        found += _suggestion(path)
        raise ValueError(f"{path} holds no images: looked everywhere inside for {', '.join(IMAGE_SUFFIXES)}{found}")
    level, parts = part_level(names.runs)
    taken, sizes, held, held_out, outside = names, listing.sizes, names.take([]), {}, 0
    if parts:
        counts = {name: count for name, count in parts.items() if part_of(name)}
        chosen = choose_part(counts, reading, str(path))
        runs = names.runs
        ours = np.repeat([at_level(f"{folder}/", level) in chosen for folder in runs.folders], runs.counts)
        taken, held = names.take(np.flatnonzero(ours)), names.take(np.flatnonzero(~ours))
        sizes = listing.sizes[ours]
        held_out = {name: count for name, count in counts.items() if name not in chosen}
        outside = len(names) - sum(counts.values())
    elif reading.part not in (None, "all") and not listing.tables:
        raise ValueError(f"{path} has no parts such as train/ and test/, so it has no part {reading.part!r}")
    source: FileSource = FolderSource(path, taken, sizes)
    if not path.is_dir():
        places = listing.places
        if places is not None and len(taken) < len(names):
            places = places[ours]
        source = ZipSource(path, taken, sizes, places)
        source.tables = list(listing.tables)
    source.left_out.update(listing.others)
    source.wanted_part = reading.part if not parts and reading.part != "all" else None
    if parts:
        source.held_out.update(held_out)
        source.held = held
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


def part_level(runs: Runs) -> tuple[int, dict[str, int]]:
    """(level of the folders that name the parts, {folder at that level: images}); an empty dict if there are none.

    Folders are parts if one is named as a training part and another as a validation or test part, or "unlabeled". They
    may lie in folders that wrap everything, or in the folders of the classes if there is nothing but parts in these.
    """
    folders = Counter[str]()
    for folder, count in zip(runs.folders, runs.counts.tolist(), strict=True):
        folders[folder] += count
    wrapped = True
    for level in range(_DEEPEST):
        found: Counter[str] = Counter()
        for folder, count in folders.items():
            found[at_level(f"{folder}/", level)] += count
        kinds = {part_of(part) for part in found}
        beside = kinds & {"validation", "test"} or any(part.lower() in _BESIDE for part in found)
        if "train" in kinds and beside and (wrapped or None not in kinds):
            return level, dict(sorted(found.items()))
        if set(found) == {""}:
            break
        wrapped = wrapped and len(found) == 1
    return 0, {}


def without_part(runs: Runs) -> Runs:
    """The folders without those of the parts: "train/cat" -> "cat"."""
    level, parts = part_level(runs)
    if not parts:
        return runs
    split = (folder.split("/") for folder in runs.folders)
    return Runs(["/".join(pieces[:level] + pieces[level + 1 :]) for pieces in split], runs.starts)


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
    began = time.time()

    def build() -> index.Arrays:
        listing, folders, changed = _walk(root)
        return {
            **listing.names.arrays(),
            "sizes": listing.sizes,
            "kinds": index.joined(list(listing.others)),
            "counts": np.fromiter(listing.others.values(), dtype=np.int64, count=len(listing.others)),
            "tables": index.joined(listing.tables),
            "folders": index.joined(folders),
            "changed": np.array(changed, dtype=np.int64),
        }

    arrays = index.cached(
        "folders",
        identity,
        build,
        valid=lambda found: _unchanged(root, found),
        # A folder that changed a moment ago may change again without a new time.
        keep=lambda found: (
            len(found["sizes"]) >= index.FROM and int(found["changed"].max()) < (began - containers.SETTLED) * 1e9
        ),
    )
    others = Counter(dict(zip(index.split(arrays["kinds"]), arrays["counts"].tolist(), strict=True)))
    return Listing(Names.of_arrays(arrays), arrays["sizes"], others, index.split(arrays["tables"]))


def _unchanged(root: Path, found: index.Arrays) -> bool:
    """Whether every folder has its time of change, and files here and there have their sizes."""
    try:
        times = [os.stat(os.path.join(root, folder)).st_mtime_ns for folder in index.split(found["folders"])]
        if times != found["changed"].tolist():
            return False
        names, sizes = Names.of_arrays(found), found["sizes"]
        chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), _SPOT)).astype(np.int64))
        return all(_size(os.path.join(root, names[i])) == sizes[i] for i in chosen)
    except (OSError, ValueError, KeyError):
        return False


def _walk(root: Path) -> tuple[Listing, list[str], list[int]]:
    """(everything under a folder, all folders, when each changed). Links are followed; one back to a folder above is
    not, for it would go round for ever.

    Files are met in the order of their whole names, so that nothing has to be sorted at the end: a sub-folder "a" comes
    where the names that begin with "a/" do.
    """
    text, ends, sizes = bytearray(), array("q"), array("q")
    listing = Listing(Names.of(()), np.zeros(0, np.int64))
    seen: set[str] = set()
    folders: list[str] = []
    changed: list[int] = []
    runs: list[str] = []
    starts: list[int] = []
    waiting: list[Iterator[tuple[str, str, bool]]] = [iter([("", os.fspath(root), True)])]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
            continue
        name, path, folder = found
        if not folder:
            if not is_image(name):
                listing.count(name)
                continue
            base = name.rpartition("/")[0]
            if not runs or runs[-1] != base:
                runs.append(base)
                starts.append(len(ends))
            text += name.encode("utf-8", "surrogateescape") + b"\0"
            ends.append(len(text))
            sizes.append(_size(path))
            continue
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        folders.append(name)
        changed.append(os.stat(path).st_mtime_ns)
        waiting.append(iter(_entries(name, path)))
    counted = len(ends)
    listing.names = Names(
        np.frombuffer(bytes(text), dtype=np.uint8),
        np.frombuffer(ends, dtype=np.int64) if counted else np.zeros(0, np.int64),
        Runs(runs, np.array([*starts, counted], dtype=np.int64)),
    )
    listing.sizes = np.frombuffer(sizes, dtype=np.int64) if counted else np.zeros(0, np.int64)
    return listing, folders, changed


def _entries(base: str, path: str) -> list[tuple[str, str, bool]]:
    """(name, path, whether it is a folder) of all that is not hidden in a folder, in the order of whole names."""
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            file = entry.name
            if not file.startswith(".") and file != "__MACOSX":
                folder = is_folder(entry)
                found.append((f"{file}/" if folder else file, f"{base}/{file}" if base else file, entry.path, folder))
    return [(name, place, folder) for _, name, place, folder in sorted(found)]


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
    """Everything in a zip. Of a large one the list is kept in the cache folder, with the places of the images."""
    state = containers.status_of(path)

    def build() -> index.Arrays:
        listing = _directory(path)
        about = json.dumps({"others": listing.others, "tables": listing.tables})
        places = {} if listing.places is None else {"places": listing.places}
        return {**listing.names.arrays(), "sizes": listing.sizes, "about": index.joined([about]), **places}

    arrays = index.cached(
        "zips", f"{os.path.realpath(path)}\0{state}\0{IMAGE_SUFFIXES}", build,
        keep=lambda found: len(found["sizes"]) >= index.FROM and containers.settled(state),
    )  # fmt: skip
    about = json.loads(arrays["about"].tobytes())
    names = Names.of_arrays(arrays)
    places = arrays.get("places") if len(names) >= index.FROM else None
    return Listing(names, arrays["sizes"], Counter(about["others"]), about["tables"], places)


def _directory(path: Path) -> Listing:
    """The list that a zip has at its end."""
    try:
        with open_zip(path) as archive:
            check_zip(archive, str(path))
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a zip file: {error}") from error
    shown = [info for info in infos if not _hidden(info.filename)]
    images = {info.filename: info for info in shown if is_image(info.filename)}
    locked = sum(info.flag_bits & 1 for info in images.values())
    if locked:
        raise ValueError(f"{path} is encrypted ({locked:,} of its images are); unpack it first")
    chosen = [images[name] for name in sorted(images)]
    listing = Listing(
        Names.of([info.filename for info in chosen]), np.array([info.file_size for info in chosen], dtype=np.int64)
    )
    for info in shown:
        if not is_image(info.filename):
            listing.count(info.filename)
    if all(info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in chosen):
        places = [(info.header_offset, info.compress_size, info.compress_type, info.CRC) for info in chosen]
        listing.places = np.array(places, dtype=np.int64).reshape(-1, 4)
    return listing


def tables_in(path: Path) -> list[str]:
    """The names of a zip's members that may be tables; nothing if it cannot be read."""
    try:
        return _list_zip(path).tables
    except (OSError, ValueError):
        return []


def read_member(path: Path, name: str) -> bytes:
    """A file under a folder or in a zip."""
    if path.is_dir():
        check_table((path / name).stat().st_size, str(path / name))
        return (path / name).read_bytes()
    try:
        with open_zip(path) as archive:
            return read_table_member(archive, name, str(path))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: {name} in it cannot be read: {error}") from error


def read_head(path: Path, name: str, size: int) -> bytes:
    """The first bytes of a file under a folder or in a zip. ValueError if it cannot be read."""
    if path.is_dir():
        with (path / name).open("rb") as file:
            return file.read(size)
    try:
        with open_zip(path) as archive, archive.open(name) as member:
            return member.read(size)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: {name} in it cannot be read: {error}") from error


def read_table_member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """A table in an open zip. ValueError if it is larger than a table may be."""
    info = archive.getinfo(name)
    check_member(info, where)
    check_table(info.file_size, f"{where}: {name!r}")
    return archive.read(info)
