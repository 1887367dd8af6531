"""Indices of large data sets kept in the cache folder: which files there are, what is wrong with them.

Listing a million files and looking at their headers takes minutes; reading the index of that takes seconds. An index is
used only while what it was made from is unchanged, and it is an aid: where it cannot be written, it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.downloads import cache_dir
from undiffuse.util.files import atomic_file

__all__ = ["FROM", "cached", "joined", "place", "read", "split", "write"]

FROM = 50_000
"""Items from which a data set is indexed."""
Arrays = Mapping[str, NDArray[Any]]


def cached(
    kind: str,
    identity: str,
    build: Callable[[], Arrays],
    *,
    valid: Callable[[Arrays], bool] = lambda arrays: True,
    keep: Callable[[Arrays], bool] = lambda arrays: True,
) -> Arrays:
    """Arrays from the cache, made and kept there if they are not.

    Args:
        kind: the name of a sub-folder of the cache.
        identity: of what the arrays are made from.
        build: makes them.
        valid: looks at arrays from the cache; False makes them anew.
        keep: whether arrays that were made are worth keeping.
    """
    path = place(kind, identity)
    found = read(path)
    if found is not None and valid(found):
        return found
    arrays = build()
    if keep(arrays):
        write(path, arrays)
    return arrays


def place(kind: str, identity: str) -> Path:
    """The file in the cache for arrays of a kind that are made from what `identity` names."""
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_dir("index", kind, f"{name}.npz")


def read(path: Path) -> Arrays | None:
    """The arrays of an npz file; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def write(path: Path, arrays: Arrays) -> None:
    """Keeps arrays in an npz file, if the folder can be written."""
    with contextlib.suppress(OSError), atomic_file(path, overwrite=True, durable=False) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def joined(texts: list[str]) -> NDArray[np.uint8]:
    """Texts without null characters as one array of bytes."""
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def split(array: NDArray[np.uint8]) -> list[str]:
    """The inverse of `joined`."""
    return array.tobytes().decode("utf-8", "surrogateescape").split("\0") if len(array) else []
