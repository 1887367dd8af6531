"""Zarr (versions 2 and 3): an array of pictures, or a group with arrays of pictures and labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from undiffuse.data.formats.base import Reading, need
from undiffuse.data.formats.files import members
from undiffuse.data.formats.named import build
from undiffuse.data.sources import Source

_MARKS = (".zarray", ".zgroup", "zarr.json")


def recognise(path: Path) -> bool:
    """A folder with Zarr's description, or a zip of one."""
    if path.is_file():
        name = path.name.lower()
        return name.endswith((".zarr.zip", ".zarr")) or any(mark in members(path) for mark in _MARKS)
    return any((path / mark).is_file() for mark in _MARKS)


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
