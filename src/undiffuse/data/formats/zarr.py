"""Zarr (versions 2 and 3): an array of pictures, or a group with arrays of pictures and labels."""

from __future__ import annotations

import builtins
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from undiffuse.data.formats.base import Reading, need
from undiffuse.data.formats.named import build
from undiffuse.data.sources import Source
from undiffuse.util.limits import open_zip

_MARKS = (".zarray", ".zgroup", "zarr.json")
_END, _MOST = 66_000, 20_000  # bytes in which a zip's directory is found; members of a zip that is looked into


def recognise(path: Path) -> bool:
    """A folder with Zarr's description, or a zip of one."""
    if path.is_file():
        name = path.name.lower()
        return name.endswith((".zarr.zip", ".zarr")) or (name.endswith(".zip") and _holds_zarr(path))
    return any((path / mark).is_file() for mark in _MARKS)


def _holds_zarr(path: Path) -> bool:
    """Whether a zip has Zarr's description at its top. Zips of very many members must be called .zarr.zip."""
    try:
        with builtins.open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _END))
            tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 12 or int.from_bytes(tail[end + 10 : end + 12], "little") > _MOST:
            return False
        with open_zip(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError, ValueError):
        return False
    return any(mark in names for mark in _MARKS)


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures, read one by one."""
    library = need("zarr", "zarr", str(path))
    try:
        root = library.open(_store(str(path)), mode="r")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as Zarr: {str(error) or type(error).__name__}") from error
    arrays: dict[str, Any] = {}
    if isinstance(root, library.Array):
        arrays[""] = root
    else:
        _collect(library, root, "", arrays)
    names = root.attrs.get("class_names") or root.attrs.get("label_names")
    arrays = {key or "images": array for key, array in arrays.items()}
    single = isinstance(root, library.Array)
    return build(
        f"Zarr {path}", path.name, arrays, lambda key: partial(_array, str(path), "" if single else key), reading,
        [str(name) for name in names] if names else None,
    )  # fmt: skip


def _collect(library: Any, group: Any, prefix: str, arrays: dict[str, Any]) -> None:
    for name in sorted(group.keys()):
        item = group[name]
        if isinstance(item, library.Array):
            if item.shape:
                arrays[prefix + name] = item
        else:
            _collect(library, item, f"{prefix}{name}/", arrays)


def _store(path: str) -> Any:
    if path.lower().endswith(".zip"):
        storage = need("zarr.storage", "zarr", path)
        return storage.ZipStore(path, mode="r")
    return path


def _array(path: str, key: str) -> Any:
    root = need("zarr", "zarr", path).open(_store(path), mode="r")
    return root[key] if key else root
