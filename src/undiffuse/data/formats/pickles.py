"""Pickled data sets, which are refused: reading a pickle executes what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from undiffuse.data.formats.base import Reading, peek

SUFFIXES = (".pkl", ".pickle", ".p", ".pck", ".joblib", ".pt", ".pth")


def recognise(path: Path) -> bool:
    """A pickle by its name and first bytes, or a folder of CIFAR's Python batches."""
    if path.is_dir():
        names = peek(path).files
        pickled = [name for name in names if name.startswith(("data_batch_", "train_data_batch_")) and "." not in name]
        return bool(pickled) or ("meta" in names and _pickled(path / "meta"))
    return path.suffix.lower() in SUFFIXES or ("." not in path.name and _pickled(path))


def _pickled(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def open(path: Path, reading: Reading) -> NoReturn:  # noqa: A001
    """Refuse, and say what to do instead.

    Raises:
        ValueError: always.
    """
    del reading
    name = path.name.lower()
    cifar = path.is_dir() or name.startswith(("data_batch", "test_batch")) or name in ("train", "test")
    if name.startswith("train_data") or (path.is_dir() and any(n.startswith("train_data") for n in peek(path).files)):
        raise ValueError(
            f"{path} holds batches of downsampled ImageNet for Python, which are pickles: reading one executes what is "
            "in it, so they are refused. Take the npz version of the data set (Imagenet32_train_npz.zip and the like)"
        )
    if cifar:
        raise ValueError(
            f"{path} holds CIFAR's batches for Python, which are pickles: reading one executes what is in it, so they "
            "are refused. Take the binary version of the data set (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz), "
            "or write an npz with arr_0 (uint8 images [N, H, W, 3]) and arr_1 (labels [N])"
        )
    raise ValueError(
        f"{path} is a pickle: reading one executes what is in it, so it is refused. Write an npz instead, with arr_0 "
        "(uint8 images [N, H, W, C]) and arr_1 (labels [N])"
    )
