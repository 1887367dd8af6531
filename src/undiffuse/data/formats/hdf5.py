"""HDF5: datasets of pictures or of encoded image files, under the names that people use."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.decoding import PictureInfo, describe
from undiffuse.data.formats.base import Reading, choose_part, need, with_labels
from undiffuse.data.formats.files import at_level, part_level, without_part
from undiffuse.data.formats.named import LABELS, build, labels_from
from undiffuse.data.formats.stored import Handle
from undiffuse.data.labels import folder_labels
from undiffuse.data.names import Names
from undiffuse.data.sources import Source
from undiffuse.data.values import declare, guess_range
from undiffuse.util.limits import check_item, check_rows, check_unpacked


def recognise(path: Path) -> bool:
    """A file with HDF5's signature."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures, read one by one."""
    h5py = need("h5py", "hdf5", str(path))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an HDF5 file: {error}") from error
    with file:
        arrays: dict[str, Any] = {}

        def add(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape:
                _check(item, f"{path}: {name}")
                arrays[name] = _Texts(item) if h5py.check_string_dtype(item.dtype) else item

        file.visititems(add)
        names = _names(file.attrs)
        for key, item in list(arrays.items()):
            names = names or _names(item.attrs)
            _add_attributes(item.attrs, key, arrays)
        _add_attributes(file.attrs, "", arrays)
        separate = [key for key, item in arrays.items() if _is_picture(item)]
        if len(separate) > 1 and all(len(item.shape) < 3 for key, item in arrays.items() if key not in separate):
            return _separate(path, separate, {key: arrays[key] for key in separate}, reading)
        return build(
            f"HDF5 {path}", path.name, arrays, lambda key: partial(_dataset, str(path), key), reading, names,
            partial(_labels_beside, path),
        )  # fmt: skip


def _check(dataset: Any, where: str) -> None:
    """Raises ValueError for a dataset whose pieces unpack to too much, or texts and labels with too many rows.

    A dataset of any shape takes no room in a file as long as nothing is written to it.
    """
    if dataset.ndim < 3:
        check_rows(int(dataset.shape[0]), where)
    if dataset.chunks is not None:
        check_unpacked(math.prod(dataset.chunks) * dataset.dtype.itemsize, dataset.id.get_storage_size(), where)


def _add_attributes(attributes: Any, key: str, arrays: dict[str, Any]) -> None:
    """Labels that are kept as an attribute of the file or of a dataset count as a dataset beside it."""
    for name in attributes:
        values = attributes[name]
        if name.lower() in LABELS and isinstance(values, np.ndarray) and values.ndim in (1, 2):
            base = key.rpartition("/")[0]
            arrays.setdefault(f"{base}/{name}" if base else name, _Texts(values) if values.dtype == object else values)


def _is_picture(item: Any) -> bool:
    """Whether a dataset is one picture of its own: [H, W, C] in colour."""
    return len(item.shape) == 3 and item.shape[2] in (3, 4) and item.shape[0] > 4 and np.dtype(item.dtype).kind in "uf"


class _Separate(Source):
    """Pictures that are a dataset each."""

    def __init__(self, path: Path, names: list[str], shapes: list[tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        super().__init__(f"HDF5 {path}")
        self.names, self.shapes, self.dtype = names, shapes, dtype
        self.file = Handle(partial(_dataset, str(path), "/"))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def image(self, i: int) -> Any:
        return np.asarray(self.file()[self.names[i]])

    def info(self, i: int) -> PictureInfo:
        shape = self.shapes[i]
        return replace(describe(np.zeros((1, 1, shape[2]), self.dtype)), height=shape[0], width=shape[1])

    def _content_hash(self) -> bytes:
        sha = hashlib.sha256()
        for i, name in enumerate(self.names):
            sha.update(name.encode() + np.ascontiguousarray(self.image(i)).tobytes())
        return sha.digest()


def _separate(path: Path, names: list[str], items: dict[str, Any], reading: Reading) -> Source:
    """Pictures of a dataset each, with labels from an attribute of each, or from the groups that they lie in."""
    level, parts = part_level(Names.of(names).runs)
    held: dict[str, int] = {}
    if parts:
        chosen = choose_part(parts, reading, str(path))
        held = {part: count for part, count in parts.items() if part not in chosen}
        names = [name for name in names if at_level(name, level) in chosen]
    elif reading.part not in (None, "all"):
        raise ValueError(f"{path} has no part {reading.part!r}")
    for name in names:
        check_item(items[name].shape, items[name].dtype.itemsize, f"{path}: {name}")
    first = np.dtype(items[names[0]].dtype)
    source = _Separate(path, names, [tuple(items[name].shape) for name in names], first)
    source.held_out.update(held)
    source.notes.append(f"{len(names):,} datasets of a picture each")
    if first != np.uint8:
        declare(source, guess_range(np.stack([source.image(i) for i in range(0, len(names), -(-len(names) // 64))])))
    field = next((key for key in LABELS if all(key in items[name].attrs for name in names)), None)
    values = (
        [items[name].attrs[field] for name in names] if field else folder_labels(without_part(Names.of(names).runs))
    )
    if field is None and (None in values or len(set(values)) < 2):
        source.labels_settled = True
        return source
    return with_labels(source, values, reading, field=f"the attribute {field}" if field else "the names of groups")


class _Texts:
    """A dataset of texts with NumPy's fixed-width ones, which h5py gives as objects."""

    def __init__(self, dataset: Any) -> None:
        self.values = np.asarray([_decoded(item) for item in dataset[:].ravel()])
        self.attrs: dict[str, Any] = dict(getattr(dataset, "attrs", {}))
        self.dtype, self.shape = self.values.dtype, self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: Any) -> Any:
        return self.values[i]

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


def _decoded(item: Any) -> str:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def _dataset(path: str, key: str) -> Any:
    return need("h5py", "hdf5", path).File(path, "r")[key]


def _names(attributes: Any) -> list[str] | None:
    for key in ("class_names", "label_names", "classes", "names"):
        if key in attributes and np.ndim(attributes[key]) == 1:
            return [_decoded(item) for item in attributes[key]]
    return None


def _labels_beside(path: Path, part: str) -> Any:
    """Labels from the file of the same name with _y for _x, as PatchCamelyon has them."""
    del part
    beside = path.with_name(f"{path.stem[:-2]}_y{path.suffix}") if path.stem.endswith("_x") else None
    if beside is None or not beside.is_file():
        return None
    with need("h5py", "hdf5", str(beside)).File(beside, "r") as file:
        key = next((key for key in LABELS if key in file), next(iter(file)))
        return labels_from(np.asarray(file[key]))
