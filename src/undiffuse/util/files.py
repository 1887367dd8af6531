"""Files that are either whole or absent: written beside their final place, flushed to the disk and renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from undiffuse.util.locks import locked
from undiffuse.util.text import size_text

__all__ = ["atomic_file", "needed_text", "place", "remove", "remove_leftovers", "sync", "sync_tree", "temporary"]

PREFIX, SUFFIX = ".undiffuse-", ".tmp"
_looked_at: set[str] = set()


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """Yields a binary file that appears at `path` only when the block ends without an exception.

    A process killed inside the block leaves `path` as it was, and a hidden file that `remove_leftovers` finds.

    Args:
        path: The file; missing folders are created.
        overwrite: Whether to replace an existing file.
        durable: Whether to wait for the disk, so that after a power cut `path` holds the old file or the whole new one.

    Raises:
        FileExistsError: There is a file, maybe only since the block began, and `overwrite` is false.
    """
    target = Path(path)
    if not overwrite and target.exists():
        raise _exists(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(target.parent) as new:
        with open(new, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        place(new, target, overwrite=overwrite, durable=durable)


@contextmanager
def temporary(folder: Path, is_folder: bool = False) -> Iterator[Path]:
    """Yields a hidden file or folder for unfinished work; it is removed at the end unless it was renamed.

    It is locked, so that `remove_leftovers` of other processes leaves it alone while this one lives.

    Args:
        folder: Where it lies.
        is_folder: Whether to make a folder instead of an empty file.
    """
    _look_for_leftovers(folder)
    while True:  # a random name that no other process has
        new = folder / f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}"
        try:
            new.mkdir() if is_folder else open(new, "xb").close()  # not tempfile: its files stay private
        except FileExistsError:
            continue
        lock = locked(new)
        if lock is not None:
            break
    try:
        yield new
    finally:
        lock.close()
        if is_folder:
            shutil.rmtree(new, ignore_errors=True)
        else:
            with suppress(OSError):  # a disk that is gone has raised its error already
                new.unlink(missing_ok=True)


def place(new: Path, target: Path, *, overwrite: bool, durable: bool = True) -> None:
    """Gives a finished file or folder its final name.

    Args:
        new: A file or folder beside the target; with `durable`, the caller has flushed its files (`sync`).
        target: The final name.
        overwrite: Whether to replace a file; folders are never replaced.
        durable: Whether to wait until the new name is on the disk.

    Raises:
        FileExistsError: There is something at `target` that may not be replaced.
    """
    if overwrite:
        os.replace(new, target)
    else:
        _rename_to_free(new, target)
    if durable:
        sync(target.parent)


def _rename_to_free(new: Path, target: Path) -> None:
    """Renames, without replacing what another process has put there meanwhile."""
    if not new.is_dir():
        try:
            os.link(new, target)
        except FileExistsError:
            raise _exists(target) from None
        except OSError:  # a file system without hard links
            pass
        else:
            return
    if target.exists() or target.is_symlink():
        raise _exists(target)
    os.rename(new, target)


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(f"{target} exists already: choose another name, or pass overwrite=True to replace it.")


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Waits until all files in a folder are on the disk, by one call for the whole system: there may be a million."""
    if hasattr(os, "sync"):
        os.sync()


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the names in a folder, are on the disk. Windows cannot do so for folders."""
    if os.name == "nt" and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | os.PathLike[str], older_than: float = 0.0) -> int:
    """Removes unfinished files and folders of killed processes.

    Args:
        folder: Where to look; not in its sub-folders.
        older_than: Keep what is younger than so many seconds.

    Returns:
        How many were removed. Those of processes that are alive are kept.
    """
    removed = 0
    for file in Path(folder).glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):  # its owner finished meanwhile, or it is not ours to delete
            if older_than and time.time() - file.stat().st_mtime < older_than:
                continue
            lock = locked(file)
            if lock is None:
                continue
            with lock:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
                removed += 1
    return removed


def _look_for_leftovers(folder: Path) -> None:
    """Removes leftovers, once for every folder that this process writes to."""
    key = os.path.abspath(folder)
    if key not in _looked_at:
        _looked_at.add(key)
        remove_leftovers(folder)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there; a folder is renamed first, so that no half of it keeps the name."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = path
    if not path.name.endswith(SUFFIX):
        gone = path.with_name(f".{path.name}.gone{SUFFIX}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def needed_text(needed: int, path: str | os.PathLike[str], more: str = "") -> str:
    """Says how much disk something will need, with a warning if less is free: "about 50 MB; only 20 MB free".

    Args:
        needed: Bytes.
        path: What will be written; it and folders above it need not exist yet.
        more: Follows the number.
    """
    folder = next(place for place in (Path(path), *Path(path).absolute().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    return f"about {size_text(needed)}{more}" + ("" if free > needed else f"; only {size_text(free)} free")
