"""The npz layout of the original releases.

`samples_NxHxWxC.npz` holds `arr_0` uint8 [N, H, W, C] and, for conditional samples, `arr_1` int64 [N], uncompressed.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from undiffuse.util.files import atomic_file
from undiffuse.util.limits import array_header, open_npz, open_zip
from undiffuse.util.store import BROKEN_NPZ

__all__ = ["load_npz", "open_rows", "pack", "packed_files", "packed_name"]

_PACKED = re.compile(r"samples_(\d+)x(\d+)x(\d+)x(\d+)\.npz")


def packed_name(shape: Sequence[int]) -> str:
    """Returns `samples_NxHxWxC.npz` for a shape."""
    return f"samples_{'x'.join(str(n) for n in shape)}.npz"


def packed_files(folder: Path) -> list[tuple[int, Path]]:
    """Lists the packed files in a folder as (number of images, path), largest last; truncated files are ignored."""
    found = [(m, p) for p in folder.glob("samples_*.npz") if (m := _PACKED.fullmatch(p.name))]
    shapes = ((tuple(int(n) for n in match.groups()), path) for match, path in found)
    return sorted((shape[0], path) for shape, path in shapes if _holds(path, shape))


def load_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a file in the original layout.

    Returns:
        Images uint8 [N, H, W, C], and labels int64 [N] or None.

    Raises:
        ValueError: The file is damaged or has another content.
    """
    try:
        with open_npz(path) as archive:
            names = list(archive.files) if hasattr(archive, "files") else []
            images = archive["arr_0"] if "arr_0" in names else None
            labels = archive["arr_1"] if "arr_1" in names else None
    except FileNotFoundError:
        raise
    except BROKEN_NPZ as error:
        raise ValueError(
            f"{path} is not a readable npz file ({error}): it is damaged or contains Python objects."
        ) from error
    if not all(isinstance(array, (np.ndarray, type(None))) for array in (images, labels)):
        raise ValueError(f"{path}: arr_0 or arr_1 is no array of NumPy.")
    if images is None:
        raise ValueError(
            f"{path} has no 'arr_0' (found: {', '.join(names) or 'nothing'}): "
            "expected images uint8 [N, H, W, C] under this key."
        )
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"{path}: arr_0 is {images.dtype} of shape {list(images.shape)}, expected uint8 [N, H, W, C].")
    if labels is not None and (labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"{path}: arr_1 is {labels.dtype} of shape {list(labels.shape)}, "
            f"expected one integer for each of {len(images)} images."
        )
    return images, None if labels is None else labels.astype(np.int64)


def open_rows(path: Path, count: int) -> Iterator[np.ndarray]:
    """Yields the first `count` images of a packed file one at a time, without reading the file into memory."""
    with open_zip(path) as archive, archive.open("arr_0.npy") as file:
        shape, _, dtype = array_header(file, f"{path}: 'arr_0'")
        row = int(np.prod(shape[1:])) * dtype.itemsize
        for _ in range(min(count, shape[0])):
            yield np.frombuffer(_exactly(file, row), dtype).reshape(shape[1:])


def pack(
    folder: Path, shape: Sequence[int], rows: Iterable[np.ndarray], labels: Callable[[], np.ndarray | None]
) -> Path:
    """Writes images to `samples_NxHxWxC.npz` atomically, with one image in memory at a time.

    Args:
        folder: Folder of the file.
        shape: (N, H, W, C).
        rows: N images uint8 [H, W, C].
        labels: Called after the last image, since labels come later in the file; returns [N], or None without labels.

    Returns:
        The path of the file.

    Raises:
        ValueError: An image has another shape, or there are more or fewer than N images.
    """
    target = folder / packed_name(shape)
    with (
        atomic_file(target, overwrite=True) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(int(n) for n in shape)}
            np.lib.format.write_array_header_1_0(member, header)
            written = 0
            for row in rows:
                if row.shape != tuple(shape[1:]) or row.dtype != np.uint8:
                    raise ValueError(
                        f"image {written} is {row.dtype} {list(row.shape)}, expected uint8 {list(shape[1:])}."
                    )
                member.write(np.ascontiguousarray(row).tobytes())
                written += 1
        if written != shape[0]:
            raise ValueError(f"expected {shape[0]} images, got {written}.")
        classes = labels()
        if classes is not None:
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(classes, np.int64), allow_pickle=False)
    return target


def _holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Returns whether a packed file matches its name, by its table of contents (at its end) and its header."""
    try:
        with open_zip(path) as archive, archive.open("arr_0.npy") as file:
            return array_header(file, f"{path}: 'arr_0'") == (shape, False, np.dtype(np.uint8))
    except BROKEN_NPZ:
        return False


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{os.fspath(getattr(file, 'name', 'npz'))} ends early: the file is damaged.")
    return data
