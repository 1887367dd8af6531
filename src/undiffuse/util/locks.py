"""Locks of files and folders, which the system releases when their process ends, however it ends."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["FolderLock", "Lock", "locked"]

NAME = ".lock"


class Lock:
    """A lock that is held until it is closed.

    Attributes:
        fd: The open file descriptor; None on systems without such locks.
    """

    def __init__(self, fd: int | None) -> None:
        self.fd = fd

    def close(self) -> None:
        """Releases the lock."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def locked(path: str | os.PathLike[str]) -> Lock | None:
    """Locks an existing file or folder for this process, without waiting.

    Args:
        path: The file or folder.

    Returns:
        The lock; None if another process holds it, or removed or replaced the file meanwhile. On systems and file
        systems without locks, a lock that protects nothing.
    """
    if sys.platform == "win32":
        return Lock(None)
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)  # NFS locks what may be written
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:  # a file system without locks
        return Lock(fd)
    with suppress(FileNotFoundError):
        mine, there = os.fstat(fd), os.stat(path)
        if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
            return Lock(fd)
    os.close(fd)
    return None


class FolderLock:
    """Holds a folder against other processes by a file `.lock` in it, which says who holds it.

    Args:
        folder: The folder, which is created.
        doing: What this process does there: "training".

    Raises:
        ValueError: Another process holds it, which the message names, or it is a file.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file: give a folder for the output.")
        self._made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self._lock: Lock | None = None
        for _ in range(100):  # the file may be removed by its owner between opening and locking
            with open(self.path, "a", encoding="utf-8"):
                pass
            self._lock = locked(self.path)
            if self._lock is not None or self.path.exists():
                break
        if self._lock is None:
            owner = "another process"
            with suppress(OSError):
                owner = self.path.read_text(encoding="utf-8", errors="replace").strip() or owner
            raise ValueError(f"{folder} is in use by {owner}; wait for it, stop it, or use another folder")
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(f"process {os.getpid()}, which has been {doing} since {time.strftime('%Y-%m-%d %H:%M:%S')}")

    @property
    def state(self) -> str:
        """ "held"; "deleted" or "replaced" if somebody removed the file, or put another one in its place."""
        try:
            there = os.stat(self.path)
        except OSError:
            return "deleted"
        mine = os.fstat(self._lock.fd) if self._lock is not None and self._lock.fd is not None else there
        return "held" if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino) else "replaced"

    def close(self, remove: bool = False) -> None:
        """Releases the folder.

        Args:
            remove: Whether to remove the file, while it is still locked, and its folder if that is new and empty.
        """
        if remove and self._lock is not None and self.state == "held":
            with suppress(OSError):
                self.path.unlink()
                if self._made:
                    self.path.parent.rmdir()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
