"""HDF5: datasets of pictures or of encoded image files, under the names that people use."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.formats.base import Reading, need
from undiffuse.data.formats.named import LABELS, build, labels_from
from undiffuse.data.sources import Source


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
                arrays[name] = _Texts(item) if h5py.check_string_dtype(item.dtype) else item

        file.visititems(add)
        names = _names(file.attrs)
        return build(
            f"HDF5 {path}", path.name, arrays, lambda key: partial(_dataset, str(path), key), reading, names,
            partial(_labels_beside, path),
        )  # fmt: skip


class _Texts:
    """A dataset of texts with NumPy's fixed-width ones, which h5py gives as objects."""

    def __init__(self, dataset: Any) -> None:
        self.values = np.asarray([_decoded(item) for item in dataset[:].ravel()])
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
