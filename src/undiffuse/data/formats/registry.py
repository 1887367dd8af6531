"""The formats that pictures come in, in the order in which they are tried.

Every format is a module in this folder with two functions:

    recognise(path: Path) -> bool                     looks at names and first bytes only
    open(path: Path, reading: Reading) -> Source      the pictures of the part to read, in an order that never changes

A module is imported when one of its names may fit, and it imports a library of its field only to open something.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undiffuse.data.formats.base import Reading, peek
from undiffuse.data.formats.files import is_image
from undiffuse.data.sources import Source
from undiffuse.util.errors import reading as content_of

__all__ = ["FORMATS", "Format", "find_format", "inner_folder"]

_DEEPEST = 3
"""How many folders that wrap a data set are opened."""


@dataclass(frozen=True)
class Format:
    """A format: what people call it, its module here, and the extra of this package that it needs.

    Attributes:
        title: its name for people.
        module: the module in this folder.
        suffixes: endings of its files, in lower case.
        folders: whether a folder may be one.
        extra: what to install for it; None where nothing is needed.
        parts: whether it may hold the parts of a data set (training, test).
    """

    title: str
    module: str
    suffixes: tuple[str, ...] = ()
    folders: bool = False
    extra: str | None = None
    parts: bool = True

    def may_be(self, path: Path) -> bool:
        """Whether the name fits."""
        if path.is_dir():
            return self.folders
        return not self.suffixes or path.name.lower().endswith(self.suffixes)

    def recognise(self, path: Path) -> bool:
        """Whether this is one."""
        if not self.may_be(path):
            return False
        with content_of(str(path)):
            return bool(self._function("recognise")(path))

    def open(self, path: Path, reading: Reading) -> Source:
        """Its pictures."""
        with content_of(str(path)):
            source: Source = self._function("open")(path, reading)
        source.format = source.format or self.title
        return source

    def _function(self, name: str) -> Callable[..., Any]:
        module = importlib.import_module(f"undiffuse.data.formats.{self.module}")
        function: Callable[..., Any] = getattr(module, name)
        return function


FORMATS = (
    Format("samples of undiffuse", "samples", folders=True, parts=False),
    Format("pickle", "pickles", folders=True),
    Format("StyleGAN/EDM data set (dataset_tool)", "edm", folders=True),
    Format("Hugging Face save_to_disk", "arrow", (".arrow",), folders=True, extra="parquet"),
    Format("Hugging Face parquet", "parquet", (".parquet",), folders=True, extra="parquet"),
    Format("Hugging Face imagefolder", "imagefolder", folders=True),
    Format("WebDataset shards", "webdataset", (".tar", ".tar.gz", ".tgz"), folders=True),
    Format("Zarr array", "zarr", (".zarr", ".zip"), folders=True, extra="zarr"),
    Format("LMDB", "lmdb", (".mdb", ".lmdb"), folders=True, extra="lmdb", parts=False),
    Format("TFRecord", "tfrecord", folders=True),
    Format("CIFAR binary", "cifar", (".bin",), folders=True),
    Format("STL-10 binary", "stl10", (".bin",), folders=True),
    Format("IDX (MNIST)", "idx", folders=True),
    Format("MATLAB file", "matlab", (".mat",), folders=True, extra="hdf5"),
    Format("NumPy archive (npz)", "npz", (".npz",), folders=True),
    Format("NumPy array (npy)", "npy", (".npy",), folders=True),
    Format("HDF5", "hdf5", (".h5", ".hdf5", ".hdf", ".he5"), extra="hdf5"),
    Format("DICOM", "dicom", folders=True, extra="science"),
    Format("NIfTI", "nifti", (".nii", ".nii.gz"), folders=True, extra="science"),
    Format("FITS", "fits", (".fits", ".fit", ".fts", ".fits.gz", ".fz"), folders=True, extra="science"),
    Format("OME-TIFF", "ometiff", (".tif", ".tiff"), folders=True, extra="science"),
    Format("frames of one file", "frames", (".tif", ".tiff", ".gif", ".webp", ".apng", ".png"), parts=False),
    Format("zip of images", "files"),
    Format("folder of images", "files", folders=True),
)
"""All formats; the first that recognises something opens it."""


def find_format(path: Path) -> Format | None:
    """The format of a file or folder; None if nothing recognises it."""
    return next((format for format in FORMATS if format.recognise(path)), None)


def inner_folder(path: Path) -> tuple[Path, Format] | None:
    """The only sub-folder of a folder that is a data set of a format, where the folder itself holds no pictures.

    Downloads often wrap a set in folders (MNIST/raw, cifar-10-batches-bin).
    """
    for _ in range(_DEEPEST):
        entries = peek(path)
        if len(entries.folders) != 1 or any(is_image(name) for name in entries.files):
            return None
        path = path / entries.folders[0]
        found = find_format(path)
        if found is not None and found.module not in ("files", "pickles"):
            return path, found
    return None
