"""NIfTI volumes: the slices along their third axis (and the fourth, where there is one), as nibabel scales them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.base import Reading, need
from undiffuse.data.formats.slices import Described, holds, sliced
from undiffuse.data.sources import Source


def _fits(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


def recognise(path: Path) -> bool:
    """A file by its ending, or a folder of such files."""
    return path.is_file() or holds(path, _fits)


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """All slices of all volumes."""
    need("nibabel", "science", str(path))
    source = sliced(path, _fits, _describe, _load, "NIfTI", reading)
    source.notes.append("slices volume[:, :, k], axes as they are stored")
    return source


def _describe(path: Path) -> Described:
    nibabel: Any = need("nibabel", "science", str(path))
    image = nibabel.load(path)
    shape, header = image.shape, image.header
    if len(shape) < 2:
        raise ValueError(f"a volume of shape {list(shape)} has no pictures")
    count = int(np.prod(shape[2:], dtype=np.int64))
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    if header.get_data_dtype() != np.uint8 or (slope, intercept) != (1, 0):
        dtype = np.dtype(np.float32)
    low, high = float(header["cal_min"]), float(header["cal_max"])
    declared = (low, high) if high > low else None
    return Described(count, (shape[0], shape[1]), dtype, declared)


def _load(path: Path) -> NDArray[Any]:
    nibabel: Any = need("nibabel", "science", str(path))
    image = nibabel.load(path)
    volume = np.asarray(image.dataobj)
    volume = volume.reshape(*volume.shape[:2], -1, order="F")
    return np.moveaxis(volume, 2, 0)
