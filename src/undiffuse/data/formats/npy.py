"""One array of pictures in an npy file, memory-mapped; labels in a file beside it (x.npy and y.npy, and the like)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from undiffuse.data.formats.base import Reading, peek
from undiffuse.data.formats.named import build
from undiffuse.data.sources import Source
from undiffuse.util.limits import load_npy

_MOST = 64
"""Files of a folder that are read as arrays with names."""
_PAIRS = (
    ("images", "labels"),
    ("imgs", "labels"),
    ("image", "label"),
    ("x", "y"),
    ("X", "y"),
    ("X", "Y"),
    ("data", "labels"),
)


def recognise(path: Path) -> bool:
    """An npy file, or a folder of nothing but such files and what describes them."""
    return path.suffix.lower() == ".npy" if path.is_file() else bool(_arrays(path))


def _arrays(folder: Path) -> list[Path]:
    """The npy files of a folder; none where it holds anything else."""
    entries = peek(folder)
    if entries.folders or not all(name.lower().endswith((".npy", ".txt", ".md", ".json")) for name in entries.files):
        return []
    return [folder / name for name in entries.files if name.lower().endswith(".npy")]


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures, with labels from the file of the same name with "labels" for "images", "y" for "x".

    The files of a folder are arrays with names, as in an npz: train_images.npy, train_labels.npy, test_images.npy.
    """
    if path.is_dir():
        files = _arrays(path)
        if len(files) > _MOST:
            raise ValueError(
                f"{path} holds {len(files):,} npy files: expected a few arrays [N, H, W, C]. Stack files of one "
                "picture each with numpy.stack, or save them as TIFF files"
            )
        return build(f"npy files in {path}", path.name, {file.stem: _load(file) for file in files}, None, reading)
    arrays = {"images": _load(path)}
    beside = None if reading.labels == "none" else labels_beside(path)
    if beside is not None:
        arrays["labels"] = _load(beside)
    source = build(f"npy {path}", path.name, arrays, None, reading)
    if beside is not None:
        source.notes.append(f"labels are in {beside.name}")
    return source


def _load(path: Path) -> NDArray[Any]:
    try:
        return load_npy(path, str(path), mmap_mode="r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an npy file: {error}") from error


def labels_beside(path: Path) -> Path | None:
    """ "train_images.npy" -> "train_labels.npy", "x.npy" -> "y.npy", if it is there."""
    words = path.stem.replace("-", "_").split("_")
    for images, labels in _PAIRS:
        if images in words:
            name = path.stem[::-1].replace(images[::-1], labels[::-1], 1)[::-1]
            if (file := path.with_name(f"{name}{path.suffix}")).is_file() and file != path:
                return file
    return None
