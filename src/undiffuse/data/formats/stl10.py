"""STL-10 in its binary form: planes R, G and B whose columns come one after the other; labels 1..10 in another file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.array_source import ArraySource
from undiffuse.data.formats.base import Reading, choose_part, with_labels
from undiffuse.data.formats.stored import concatenated
from undiffuse.data.sources import Source

_SIDE = 96
_PARTS = ("train", "test", "unlabeled")


def recognise(path: Path) -> bool:
    """A file train_X.bin, test_X.bin or unlabeled_X.bin, or a folder that holds one."""
    if path.is_file():
        return path.name.lower() in {f"{part}_x.bin" for part in _PARTS}
    return any((path / f"{part}_X.bin").is_file() for part in _PARTS)


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of a file, or of the training part of a folder."""
    if path.is_file():
        return _one(path, reading)
    files = {part: path / f"{part}_X.bin" for part in _PARTS if (path / f"{part}_X.bin").is_file()}
    counts = {part: len(_images(file)) for part, file in files.items()}
    chosen = choose_part(counts, reading, str(path))
    source = concatenated([_one(files[part], reading) for part in chosen], f"STL-10 in {path} ({', '.join(chosen)})")
    source.held_out.update({part: count for part, count in counts.items() if part not in chosen})
    return source


def _labels_of(file: Path) -> NDArray[np.uint8] | None:
    beside = file.with_name(file.name.replace("_X", "_y").replace("_x", "_y"))
    return np.fromfile(beside, dtype=np.uint8) if beside.is_file() and beside != file else None


def _images(file: Path) -> NDArray[np.uint8]:
    """[N, H, W, 3], a view of the file."""
    content = np.memmap(file, dtype=np.uint8, mode="r")
    side, labels = _SIDE, _labels_of(file)
    if labels is not None and len(labels) and len(content) % (3 * len(labels)) == 0:
        found = math.isqrt(len(content) // len(labels) // 3)  # copies of the set at another size are as common
        side = found if 3 * found * found * len(labels) == len(content) else side
    if len(content) % (3 * side * side):
        raise ValueError(f"{file}: {len(content):,} bytes are no whole number of pictures of {side}x{side}")
    return content.reshape(-1, 3, side, side).transpose(0, 3, 2, 1)


def _one(file: Path, reading: Reading) -> Source:
    source: Source = ArraySource(_images(file), where=f"STL-10 {file}", item_name=file.name)
    source.labels_settled = True
    labels = None if reading.labels == "none" else _labels_of(file)
    if labels is None:
        return source
    table = file.with_name("class_names.txt")
    names = [n.strip() for n in table.read_text("utf-8").splitlines() if n.strip()] if table.is_file() else None
    if names is None:
        return with_labels(source, labels.astype(np.int64), reading, field="labels")
    values = labels.astype(np.int64) - 1
    return with_labels(source, values, reading, names=names, field=f"labels 1..{len(names)}")
