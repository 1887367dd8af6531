"""MATLAB files, as SVHN has them: X [height, width, channels, N] and y, where 10 is the digit 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.array_source import ArraySource
from undiffuse.data.formats.base import Reading, choose_part, need, part_of, peek, with_labels
from undiffuse.data.formats.named import IMAGES, LABELS
from undiffuse.data.formats.stored import concatenated
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source
from undiffuse.data.values import declare, guess_range


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
    """The pictures of a file, or of the training file of a folder; a file is read whole."""
    if path.is_file():
        return _one(path, reading)
    parts: dict[str, list[Path]] = {}
    for file in _files(path):
        parts.setdefault(_part(file), []).append(file)
    counts = {
        name: sum(_one(file, Reading(labels="none")).__len__() for file in files) for name, files in parts.items()
    }
    chosen = choose_part(counts, reading, str(path))
    source = concatenated([_one(file, reading) for name in chosen for file in parts[name]], f"MATLAB files in {path}")
    source.held_out.update({name: count for name, count in counts.items() if name not in chosen})
    return source


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The numeric arrays of a file, with MATLAB's order of axes."""
    with path.open("rb") as file:
        head = file.read(128)
    if b"MATLAB 7.3" in head or head[:4] == b"\x89HDF":
        h5py = need("h5py", "hdf5", f"{path} (MATLAB 7.3, which is HDF5)")
        with h5py.File(path, "r") as archive:
            return {key: np.asarray(item).T for key, item in archive.items() if isinstance(item, h5py.Dataset)}
    scipy_io = need("scipy.io", "matlab", str(path))
    try:
        content = scipy_io.loadmat(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    return {key: value for key, value in content.items() if isinstance(value, np.ndarray) and not key.startswith("__")}


def _one(path: Path, reading: Reading) -> Source:
    arrays = {key: a for key, a in _load(path).items() if a.dtype.kind in "uifb"}
    pictures = {key: array for key, array in arrays.items() if array.ndim in (3, 4)}
    roles = {key.lower(): key for key in pictures}
    key = next((roles[role] for role in IMAGES if role in roles), None) or (next(iter(pictures), None))
    if key is None or len(pictures) > 1 and key.lower() not in IMAGES:
        raise ValueError(f"{path} holds no images: {join_names(f'{k} {list(a.shape)}' for k, a in arrays.items())}")
    images = pictures[key]
    fields = [name for name, array in arrays.items() if name != key and array.size in images.shape]
    names = {name.lower(): name for name in fields}
    labels = reading.field(str(path), fields, ()) or next((names[n] for n in LABELS if n in names), None)
    labels = None if reading.labels == "none" else labels
    count = None if labels is None else arrays[labels].size
    last = images.ndim - 1
    if count is None or images.shape[last] == count:
        images = np.moveaxis(images, last, 0)
    source: Source = ArraySource(images, where=f"MATLAB {path}", item_name=path.name, undeclared="values")
    declare(source, guess_range(images))
    source.notes.append(f"images from {key}, whose last axis counts them")
    source.labels_settled = True
    unused = [name for name in arrays if name not in (key, labels)]
    if unused:
        source.notes.append(f"arrays that are not used: {join_names(unused)}")
    if labels is None:
        return source
    numbers = arrays[labels].ravel().astype(np.int64)
    if "32x32" in path.stem and numbers.max(initial=0) == 10 and numbers.min(initial=1) >= 1:
        source.notes.append("SVHN's label 10 is the digit 0")
        return with_labels(source, numbers % 10, reading, names=[str(k) for k in range(10)], field=labels)
    return with_labels(source, numbers, reading, field=labels)
