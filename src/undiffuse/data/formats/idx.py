"""IDX files, MNIST's form, packed or not: images with the labels in a file of the same name beside them.

EMNIST's pictures are stored with rows and columns exchanged; files called ``emnist-*`` are turned back.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.array_source import ArraySource
from undiffuse.data.formats.base import Reading, choose_part, part_of, peek, with_labels
from undiffuse.data.formats.spans import unpacked
from undiffuse.data.formats.stored import concatenated
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source
from undiffuse.data.values import declare, guess_range
from undiffuse.util.limits import gunzip

_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_NAME = re.compile(r"idx\d|-ubyte", re.IGNORECASE)
_IN_MEMORY = 64 << 20
"""Packed files up to this many bytes are unpacked in memory, larger ones into the cache folder."""


def recognise(path: Path) -> bool:
    """An IDX file by its first bytes, or a folder that holds one of images."""
    if path.is_dir():
        return bool(_images_in(path))
    return (_NAME.search(path.name) is not None or path.suffix.lower() in (".gz", ".idx", "")) and _axes(
        path
    ) is not None


def _axes(path: Path) -> int | None:
    """How many axes the array of an IDX file has; None if it is none."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return None
    return head[3] if len(head) == 4 and head[:2] == b"\0\0" and head[2] in _DTYPES and 1 <= head[3] <= 4 else None


def _images_in(folder: Path) -> list[Path]:
    files = [folder / name for name in peek(folder).files if _NAME.search(name)]
    found: dict[str, Path] = {}
    for file in files:  # a packed file and its unpacked copy are one
        if (_axes(file) or 0) >= 3:
            found.setdefault(file.name.lower().removesuffix(".gz"), file)
    return list(found.values())


def _part(path: Path) -> str:
    """The part that a file is of: "t10k-images-idx3-ubyte" is of the test part."""
    words = re.split(r"[-_.]", path.name.lower())
    return "test" if "t10k" in words else next((word for word in words if part_of(word)), "")


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of a file, or of the training part of a folder."""
    if path.is_file():
        if (_axes(path) or 0) < 3:
            raise ValueError(f"{path} holds labels, not images: give the file of the images, or the folder of both")
        if reading.part not in (None, "all", _part(path)):
            raise ValueError(f"{path} has no part {reading.part!r}: give the folder that it is in")
        return _one(path, reading)
    images = _images_in(path)
    groups: dict[str, list[Path]] = {}
    for file in images:
        groups.setdefault(_part(file), []).append(file)
    crowded = next((files for files in groups.values() if len(files) > 1), None)
    if crowded is not None:
        raise ValueError(f"{path} holds several data sets: name one of the files {join_names(f.name for f in crowded)}")
    counts = {name: _count(files[0]) for name, files in groups.items()}
    chosen = choose_part(counts, reading, str(path))
    source = concatenated(
        [_one(groups[name][0], reading) for name in chosen], f"IDX files in {path} ({', '.join(chosen)})"
    )
    source.held_out.update({name: count for name, count in counts.items() if name not in chosen})
    return source


def _count(path: Path) -> int:
    return len(_read(path))


def _one(path: Path, reading: Reading) -> Source:
    images = _read(path)
    source = _source(path, images)
    beside = _labels_beside(path)
    if beside is None:
        source.notes.append("no file of labels lies beside it")
        source.labels_settled = True
        return source
    numbers = _read(beside)
    if numbers.ndim == 2:  # QMNIST's labels: the class, the writer, and more
        source.notes.append(f"{beside.name} has {numbers.shape[1]} numbers for each image; the first is the class")
        numbers = numbers[:, 0]
    table = _mapping(path)
    if table is None:
        return with_labels(source, numbers, reading, field=beside.name)
    values = [table.get(int(number), str(int(number))) for number in numbers.ravel()]
    names = list(dict.fromkeys(table[number] for number in sorted(table)))
    return with_labels(source, values, reading, names=names, field=beside.name)


def _source(path: Path, images: NDArray[Any]) -> Source:
    turned = "emnist" in path.name.lower()
    if turned:
        images = images.swapaxes(1, 2)
    source = ArraySource(images, where=f"IDX {path}", item_name=path.name, undeclared="values")
    declare(source, guess_range(images))
    if turned:
        source.notes.append("EMNIST stores its pictures with rows and columns exchanged; they are turned back")
    return source


def _read(path: Path) -> NDArray[Any]:
    """The array of an IDX file: 00 00 type axes, each length as a big-endian uint32, then the values."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        if packed and path.stat().st_size <= _IN_MEMORY:
            content: NDArray[np.uint8] = np.frombuffer(gunzip(path), dtype=np.uint8)
        else:
            content = np.memmap(unpacked(path) if packed else path, dtype=np.uint8, mode="r")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error
    if len(content) < 4 or int(content[2]) not in _DTYPES or len(content) < 4 + 4 * int(content[3]):
        raise ValueError(f"{path} is no IDX file that can be read: its header is damaged or was cut short")
    axes = int(content[3])
    shape = tuple(int(n) for n in np.frombuffer(content[4 : 4 + 4 * axes].tobytes(), dtype=">u4"))
    dtype = np.dtype(_DTYPES[int(content[2])])
    expected = 4 + 4 * axes + math.prod(shape) * dtype.itemsize
    if len(content) < expected:
        raise ValueError(f"{path} was cut short: {len(content):,} bytes of {expected:,}")
    return content[4 + 4 * axes : expected].view(dtype).reshape(shape)


def _labels_beside(path: Path) -> Path | None:
    """The file of labels that belongs to a file of images, packed or not."""
    pattern = re.escape(re.split(r"[-.]idx\d", path.name, flags=re.IGNORECASE)[0])
    pattern = re.sub("images", "labels", pattern, flags=re.IGNORECASE)
    if pattern == re.escape(path.name) or "labels" not in pattern:
        return None
    fits = re.compile(rf"{pattern}([-.]idx\d)?([-.]\w+)?(\.gz)?", re.IGNORECASE)
    packed = path.name.lower().endswith(".gz")
    found = [name for name in peek(path.parent).files if fits.fullmatch(name) and _axes(path.with_name(name))]
    return (
        path.with_name(min(found, key=lambda name: (name.lower().endswith(".gz") != packed, name))) if found else None
    )


def _mapping(path: Path) -> dict[int, str] | None:
    """EMNIST's classes by number, from its mapping file (number, then codes of characters); None without one."""
    match = re.match(r"(emnist-\w+?)-(train|test)", path.name.lower())
    file = path.with_name(f"{match[1]}-mapping.txt") if match else None
    if file is None or not file.is_file():
        return None
    rows = [[int(word) for word in line.split()] for line in file.read_text("ascii").splitlines() if line.strip()]
    return {row[0]: "".join(chr(code) for code in row[1:]) for row in rows}
