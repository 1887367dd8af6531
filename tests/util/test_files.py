"""Files that appear whole or not at all, locks that end with their process, and what damaged content is turned into."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from undiffuse.util import files
from undiffuse.util.errors import ConfigError, reading
from undiffuse.util.files import atomic_file, place, remove_leftovers, temporary
from undiffuse.util.locks import FolderLock, locked

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(FileExistsError, match="exists already"), atomic_file(target) as file:
        file.write(b"mine")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    with atomic_file(tmp_path / "a") as file:
        file.write(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    with pytest.raises(FileExistsError), temporary(tmp_path) as new:
        place(new, tmp_path / "a", overwrite=False)


@POSIX
def test_unfinished_files_stay_while_their_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_looked_at", set())
    (tmp_path / ".undiffuse-dead.tmp").mkdir()
    with temporary(tmp_path) as one, temporary(tmp_path, is_folder=True) as two:
        assert not (tmp_path / ".undiffuse-dead.tmp").exists()  # removed by the first look at the folder
        assert remove_leftovers(tmp_path) == 0
        assert one.is_file() and two.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_name_reaches_the_disk_after_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), real_sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("rename"), real_replace(*a))[1])
    with atomic_file(tmp_path / "a", overwrite=True):
        pass
    assert order == ["sync", "rename", "sync"]


def hold(folder: str, connection: Any) -> None:
    lock = FolderLock(Path(folder), "measuring")
    connection.send("held")
    connection.recv()
    lock.close(remove=True)
    connection.send("free")
    connection.recv()


@POSIX
def test_a_folder_has_one_user(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    place = tmp_path / "new"
    child = multiprocessing.get_context("fork").Process(target=hold, args=(str(place), theirs))
    child.start()
    assert ours.recv() == "held"
    with pytest.raises(ValueError, match=rf"new is in use by process {child.pid}, which has been measuring since 20"):
        FolderLock(place, "sampling")
    ours.send("go")
    assert ours.recv() == "free"
    assert not place.exists()  # it was made for the lock, and is empty
    lock = FolderLock(tmp_path, "sampling")
    assert lock.state == "held" and locked(lock.path) is None
    lock.path.unlink()
    assert lock.state == "deleted"
    lock.path.touch()
    assert lock.state == "replaced"
    lock.close(remove=True)
    assert lock.path.exists()  # which is somebody else's
    ours.send("end")
    child.join()


def test_a_file_is_no_folder_to_work_in(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="a is a file: give a folder"):
        FolderLock(tmp_path / "a", "sampling")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("images"), "it lacks 'images'"),
        (TypeError("'int' object is not iterable"), "is not iterable"),
        (RecursionError(), "RecursionError"),
        (ZeroDivisionError("division by zero"), "division by zero"),
    ],
)
def test_content_of_an_unexpected_form(error: Exception, message: str) -> None:
    with pytest.raises(ValueError, match=f"the table cannot be read, .*{message}") as raised, reading("the table"):
        raise error
    assert raised.value.__cause__ is error


def test_errors_that_say_what_is_wrong_stay(tmp_path: Path) -> None:
    for error in (ConfigError("steps", "is too large"), FileNotFoundError("a"), MemoryError()):
        with pytest.raises(type(error)) as raised, reading("the table"):
            raise error
        assert raised.value is error
