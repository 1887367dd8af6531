"""NumPy archives (npz) under the names that people use, and the batches of downsampled ImageNet.

``arr_0``, ``arr_1`` (Dhariwal & Nichol), ``x_train``, ``y_train`` (Keras), ``train_images``, ``train_labels``
(MedMNIST), ``images``, ``labels`` and the like. Downsampled ImageNet (Chrabaszcz et al., 2017) has ``data`` uint8
[N, 3 * side * side] and ``labels`` 1..1000 in the order of ImageNet's development kit, which is not the sorted order
of other data sets: they become names.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.array_source import ArraySource
from undiffuse.data.formats import imagenet
from undiffuse.data.formats.base import Reading, choose_part, part_of, peek, with_labels
from undiffuse.data.formats.layout import arrange
from undiffuse.data.formats.named import build, labels_from
from undiffuse.data.formats.npy import labels_beside
from undiffuse.data.formats.stored import concatenated
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source
from undiffuse.util import limits

__all__ = ["open", "open_npz", "recognise"]

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BATCH = re.compile(r"(train|val)_?data(_batch_\d+)?|(train|val)_data", re.IGNORECASE)


def recognise(path: Path) -> bool:
    """An npz, or a folder of nothing but npz files and what describes them."""
    if path.is_file():
        return path.suffix.lower() == ".npz"
    return bool(_archives(path))


def _archives(folder: Path) -> list[Path]:
    """The npz files of a folder by number; none where it holds anything else."""
    entries = peek(folder)
    if entries.folders or not all(name.lower().endswith((".npz", ".txt", ".md", ".json")) for name in entries.files):
        return []
    return sorted((folder / name for name in entries.files if name.lower().endswith(".npz")), key=_number)


def _number(path: Path) -> tuple[str, int]:
    digits = re.findall(r"\d+", path.stem)
    return re.sub(r"\d+", "", path.stem), int(digits[-1]) if digits else -1


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of an npz, or of all npz files of a folder."""
    if path.is_file():
        return _open(path, reading)
    groups: dict[str, list[Path]] = {}
    labels = {labels_beside(archive) for archive in _archives(path)}
    for archive in _archives(path):
        if archive in labels:
            continue
        match = _BATCH.fullmatch(archive.stem)
        words = re.split(r"[-_.]", archive.stem.lower())
        part = (match[1] or match[3]).lower() if match else next((word for word in words if part_of(word)), "")
        groups.setdefault(part, []).append(archive)
    if list(groups) == [""]:
        return concatenated([_open(archive, reading) for archive in groups[""]], f"npz files in {path}")
    counts = {name: sum(_count(archive) for archive in archives) for name, archives in groups.items() if name}
    chosen = choose_part(counts, reading, str(path))
    inner = Reading(labels=reading.labels, label_names=reading.label_names, layout=reading.layout)
    source = concatenated(
        [_open(archive, inner) for name in chosen for archive in groups[name]],
        f"npz files in {path} ({', '.join(chosen)})",
    )
    source.held_out.update({name: count for name, count in counts.items() if name not in chosen})
    return source


def _count(path: Path) -> int:
    return len(_open(path, Reading(labels="none")))


def open_npz(path: str | Path, *, labels: bool = True, label_names: Sequence[str] | None = None) -> Source:
    """An npz file as a source; no pickle is ever executed.

    Uncompressed images (``numpy.savez``) are memory-mapped, compressed ones (``savez_compressed``) read once.

    Args:
        path: the file.
        labels: whether to take the labels.
        label_names: an existing class table to number the labels by.

    Raises:
        ValueError: not an npz, no images, another dtype or shape, labels that are not integers or not in the table.
    """
    return _open(Path(path), Reading(labels="auto" if labels else "none", label_names=label_names))


def _open(path: Path, reading: Reading) -> Source:
    arrays = _load(path)
    if _is_downsampled_imagenet(path, arrays) and reading.labels in ("auto", "none", "labels"):
        source = _downsampled(path, arrays, reading)
    else:
        source = build(f"npz {path}", path.name, arrays, None, reading, side=lambda part: _labels_of(path))
    source.containers = (str(path),)
    return source


def _labels_of(path: Path) -> NDArray[Any] | None:
    """The only array of a file of labels beside this one, as KMNIST has them."""
    beside = labels_beside(path)
    arrays = {} if beside is None else _load(beside)
    return labels_from(next(iter(arrays.values()))) if len(arrays) == 1 else None


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz, memory-mapped where possible."""
    if not limits.is_zip(path):
        raise ValueError(f"{path} cannot be read as an npz file: it is no zip archive of arrays, or it was cut short")
    arrays = {}
    try:
        with limits.open_npz(path) as file:
            for key in file.files:
                mapped = _mapped(path, f"{key}.npy")
                arrays[key] = file[key] if mapped is None else mapped
    except Exception as error:  # numpy, tokenize (which reads array headers), zipfile and zlib have many words for it
        raise ValueError(f"{path} cannot be read as an npz file: {str(error) or type(error).__name__}") from error
    broken = [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]
    if broken:  # numpy gives the bytes of what is no array
        raise ValueError(f"{path}: {join_names(broken)} is no array of numpy")
    return arrays


def _is_downsampled_imagenet(path: Path, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Planes in "data", "labels" from 1 to 1000, and the mean picture or a name of the file that says so."""
    data, labels = arrays.get("data"), arrays.get("labels")
    if data is None or labels is None or data.ndim != 2 or data.dtype != np.uint8 or labels.dtype.kind not in "iu":
        return False
    side = math.isqrt(data.shape[1] // 3)
    if 3 * side * side != data.shape[1] or not labels.size or labels.min() < 1 or labels.max() > imagenet.COUNT:
        return False
    named = _BATCH.fullmatch(path.stem) or "imagenet" in f"{path.parent.name}/{path.stem}".lower()
    return "mean" in arrays or bool(named) or (labels.min() == 1 and labels.max() == imagenet.COUNT)


def _downsampled(path: Path, arrays: Mapping[str, NDArray[Any]], reading: Reading) -> Source:
    images, notes = arrange(arrays["data"], str(path), "CHW")
    source: Source = ArraySource(images, where=f"npz {path}", item_name=path.name)
    source.format = "downsampled ImageNet (npz batches)"
    source.notes += notes
    table = imagenet.names()
    order = imagenet.devkit_order()
    values = [table[order[int(number) - 1]] for number in arrays["labels"].ravel()]
    source = with_labels(source, values, reading, names=table, field="labels")
    if source.labels is not None:
        source.notes.append(
            "labels 1..1000 are in the order of ImageNet's development kit (1 is kit fox); they became names, numbered "
            "in the sorted order of WordNet ids as elsewhere"
        )
    return source


def _mapped(path: Path, member: str) -> NDArray[Any] | None:
    """The array of an uncompressed member, memory-mapped; None where that is not possible."""
    with limits.open_zip(path) as archive, path.open("rb") as file:
        if member not in archive.namelist():
            return None
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        # The directory says where the member's local header is; its name and extra field stand before the data.
        file.seek(info.header_offset)
        local = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        begin = info.header_offset + _LOCAL_HEADER.size + local[9] + local[10]
        file.seek(begin)
        header = limits.array_header(file, f"{path}: {member!r}")
        shape, fortran, dtype = header
        if dtype.hasobject or 0 in shape or not shape:
            return None
        if file.tell() - begin + header.bytes > info.file_size:
            raise ValueError(f"{member} ends before its array does")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)  # type: ignore[call-overload,no-any-return]
