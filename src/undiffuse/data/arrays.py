"""An npz of images, as the original writes them: ``arr_0`` uint8 [N, H, W(, C)], ``arr_1`` integer labels [N]."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.labels import apply_table, class_table
from undiffuse.data.sources import ArraySource

__all__ = ["open_npz"]

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


def open_npz(path: str | Path, *, labels: bool = True, label_names: Sequence[str] | None = None) -> ArraySource:
    """An npz file as a source. No pickle is ever executed.

    Uncompressed images (``numpy.savez``) are memory-mapped, compressed ones (``savez_compressed``) read once. The class
    table holds the labels that occur, in numerical order; an array ``label_names`` (text, [K]) in the file gives names
    to the labels 0..K-1 instead.

    Args:
        path: the file.
        labels: whether to use ``arr_1``.
        label_names: an existing class table to number the labels by.

    Raises:
        ValueError: not an npz, no ``arr_0``, another dtype or shape, labels that are not integers or not in the table.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} cannot be read as an npz file: it is no zip archive of arrays, or it was cut short")
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = list(file.files)
            named = file["label_names"] if "label_names" in keys else None
            numbers = file["arr_1"] if labels and "arr_1" in keys else None
            mapped = _mapped(path, "arr_0.npy") if "arr_0" in keys else None
            images = file["arr_0"] if mapped is None and "arr_0" in keys else mapped
    except Exception as error:  # numpy, tokenize (which reads array headers), zipfile and zlib have many words for it
        raise ValueError(f"{path} cannot be read as an npz file: {str(error) or type(error).__name__}") from error
    if "arr_0" not in keys:
        raise ValueError(
            f"{path} has the arrays {', '.join(keys) or 'none'}; expected arr_0 (uint8 images [N, H, W, C]) "
            "and optionally arr_1 (integer labels [N])"
        )
    for key, array in (("arr_0", images), ("arr_1", numbers), ("label_names", named)):
        if array is not None and not isinstance(array, np.ndarray):  # numpy gives the bytes of what is no array
            raise ValueError(f"{path}: {key} is no array of numpy")
    assert images is not None
    if 0 in images.shape[1:]:
        raise ValueError(f"{path}: the images arr_0 have no pixels, they are {images.dtype} {list(images.shape)}")
    if named is not None and (named.ndim != 1 or named.dtype.kind not in "US"):
        raise ValueError(f"{path}: label_names must be text [K], got {named.dtype} {list(named.shape)}")
    names = None if named is None else [str(name) for name in named]
    if numbers is None:
        return ArraySource(images, where=f"npz {path}", item_name=path.name)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"{path}: labels arr_1 must be integers [N], got {numbers.dtype} {list(numbers.shape)}")
    if names is not None:
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(names)):
            raise ValueError(
                f"{path}: labels {numbers.min()}..{numbers.max()} do not fit the {len(names)} label_names in the file"
            )
        values = [names[number] for number in numbers]
    else:
        values = [str(number) for number in numbers]
    table = list(label_names) if label_names is not None else (names or class_table(values))
    return ArraySource(images, apply_table(values, table, str(path)), table, where=f"npz {path}", item_name=path.name)


def _mapped(path: Path, member: str) -> NDArray[np.uint8] | None:
    """The array of an uncompressed member, memory-mapped; None where that is not possible."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        if member not in archive.namelist():
            return None
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        # The directory tells where the member's local header is; its name and extra field stand before the data.
        file.seek(info.header_offset)
        header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(info.header_offset + _LOCAL_HEADER.size + header[9] + header[10])
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or 0 in shape:
            return None
        begin = info.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
        if file.tell() - begin + math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"{member} ends before its array does")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)  # type: ignore[call-overload,no-any-return]
