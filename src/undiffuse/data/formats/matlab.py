"""MATLAB files, as SVHN has them: X [height, width, channels, N] and y, where 10 is the digit 0."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats import matfile
from undiffuse.data.formats.base import Reading, choose_part, part_of, peek
from undiffuse.data.formats.matfile import MatArray
from undiffuse.data.formats.named import LABELS, build, find_parts
from undiffuse.data.formats.stored import concatenated
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source

_CHANNELS = (1, 3, 4)


def recognise(path: Path) -> bool:
    """A .mat file, or a folder of nothing else."""
    return path.suffix.lower() == ".mat" if path.is_file() else bool(_files(path))


def _files(folder: Path) -> list[Path]:
    entries = peek(folder)
    only = not entries.folders and all(name.lower().endswith((".mat", ".txt", ".md")) for name in entries.files)
    return [folder / name for name in entries.files if name.lower().endswith(".mat")] if only else []


def _part(path: Path) -> str:
    words = path.stem.replace("-", "_").split("_")
    return next((word for word in words if part_of(word) or word == "extra"), "")


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of a file, or of the training file of a folder, read one by one."""
    if path.is_file():
        return _one(path, reading)
    parts: dict[str, list[Path]] = {}
    for file in _files(path):
        parts.setdefault(_part(file), []).append(file)
    counts = {name: sum(len(_one(file, Reading(labels="none"))) for file in files) for name, files in parts.items()}
    chosen = choose_part(counts, reading, str(path))
    inner = Reading(
        labels=reading.labels, label_names=reading.label_names, layout=reading.layout, on_broken=reading.on_broken
    )
    source = concatenated([_one(file, inner) for name in chosen for file in parts[name]], f"MATLAB files in {path}")
    source.held_out.update({name: count for name, count in counts.items() if name not in chosen})
    return source


class _Turned:
    """A stored array, whose axes are reversed, as [N, ...] in MATLAB's order of axes.

    It is opened when the first item is read.

    Args:
        stored: the array in the file.
        first: whether MATLAB's first axis counts the items; otherwise its last one does.
    """

    def __init__(self, stored: MatArray, first: bool) -> None:
        self.stored, self.dtype, self.first = stored, stored.dtype, first
        self.shape = stored.shape if first else (stored.shape[-1], *stored.shape[:-1])

    @cached_property
    def array(self) -> Any:
        """The stored numbers, with reversed axes."""
        return self.stored.opener()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, (int, np.integer)):
            item = np.asarray(self.array[..., key] if self.first else self.array[key]).T
        else:
            items = np.asarray(self.array[..., key] if self.first else self.array[key])
            items = items.T if self.first else np.moveaxis(items.T, -1, 0)
            item = items
        return item.astype(self.dtype)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        values = self[:]
        return values if dtype is None else values.astype(dtype)


def _counted_first(name: str, array: MatArray, lengths: set[int]) -> bool:
    """Whether the first axis of an array counts its pictures: by the number of labels, else by its shape."""
    shape = array.shape
    if lengths and (shape[-1] in lengths) != (shape[0] in lengths):
        return shape[0] in lengths
    if len(shape) == 4:
        second, third, last = (n in _CHANNELS for n in shape[1:])
        return (last or second) and not third
    return len(shape) == 3 and shape[1] == shape[2] != shape[0]


def _one(path: Path, reading: Reading) -> Source:
    found = matfile.read(path)
    numbers = {name: array for name, array in found.items() if not array.kind and 0 not in array.shape}
    vectors = {name: max(a.shape) for name, a in numbers.items() if len(a.shape) == 2 and min(a.shape) == 1}
    arrays: dict[str, Any] = {}
    openers: dict[str, Any] = {}
    counts_last = []
    for name, array in numbers.items():
        if name in vectors:
            arrays[name] = np.asarray(_Turned(array, True)).ravel()
            continue
        part = next((part for part in find_parts(list(numbers)).values() if name in part.arrays.values()), None)
        same = {size for key, size in vectors.items() if part is None or key in part.arrays.values()}
        first = _counted_first(name, array, same)
        if len(array.shape) == 2:
            first = array.shape[0] in same or array.shape[1] not in same
        elif not first:
            counts_last.append(name)
        openers[name] = partial(_Turned, array, first)
        arrays[name] = openers[name]()
    flat = next(
        (n for n, a in arrays.items() if len(a.shape) == 2 and a.shape[1] >= 48 and not _colour(a.shape[1])), ""
    )
    if flat and not any(len(array.shape) > 2 for array in arrays.values()):
        raise ValueError(
            f"{path}: {flat} {list(numbers[flat].shape)} may hold flattened pictures, by rows or by columns: save them "
            "as [height, width, N], for example with reshape"
        )
    names = None
    labels = next((name for name in vectors if name.lower() in LABELS), None)
    svhn = labels is not None and "32x32" in path.stem and set(np.unique(arrays[labels])) <= set(range(1, 11))
    if svhn and labels is not None:
        arrays[labels] = arrays[labels].astype(np.int64) % 10
        names = [str(k) for k in range(10)]
    source = build(f"MATLAB {path}", path.name, arrays, lambda key: openers[key], reading, names)
    taken = source.notes[0].removeprefix("images from ") if source.notes else ""
    if taken in counts_last:
        source.notes[0] += ", whose last axis counts them"
    if svhn and source.labels is not None:
        source.notes.append("SVHN's label 10 is the digit 0")
    others = [f"{name} ({array.kind})" for name, array in found.items() if array.kind and name]
    if others:
        source.notes.append(f"arrays that are not read: {join_names(others)}")
    return source


def _colour(width: int) -> bool:
    """Whether so many values are three planes of a square, as CIFAR has them."""
    side = round((width / 3) ** 0.5)
    return 3 * side * side == width
