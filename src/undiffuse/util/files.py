"""Files that are either whole or absent: written beside their final place and renamed when complete."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_file", "remove_leftovers"]

PREFIX, SUFFIX = ".undiffuse-", ".tmp"


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` only when the block ends without an exception; folders are made as needed.

    A process killed inside the block leaves ``path`` as it was, and a hidden temporary file that ``remove_leftovers``
    finds. ``durable`` also waits for the disk, so that a power cut cannot leave an empty file behind the new name.
    Raises FileExistsError when there is a file already and ``overwrite`` is false.
    """
    target = Path(path)
    if not overwrite and target.exists():
        raise FileExistsError(f"{target} exists already: choose another name, or pass overwrite=True to replace it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A random name: two processes never share it. Not tempfile, whose files stay readable by their owner only.
    temporary = target.parent / f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: str | os.PathLike[str], older_than: float = 0.0) -> int:
    """Remove what killed processes left half-written in ``folder``, ``older_than`` seconds ago; returns how many."""
    removed = 0
    for file in Path(folder).glob(f"{PREFIX}*{SUFFIX}"):
        try:
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()
                removed += 1
        except FileNotFoundError:  # its owner finished meanwhile
            continue
    return removed
