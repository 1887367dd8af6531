"""A real disk that is too small, and grows a little each time: one clear line, nothing lost, nothing half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from faults.commands import COMMANDS, results
from faults.injection import run
from faults.outcomes import Lab, moments, temporary
from faults.page import record

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a disk of its own"
)


class Disk:
    """A disk in memory, mounted at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def leave(self, room: int) -> None:
        """Gives the disk so many free bytes, in whole pages."""
        used = shutil.disk_usage(self.folder).used
        subprocess.run(["mount", "-o", f"remount,size={used + room}", str(self.folder)], check=True)


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        folder.rmdir()
        pytest.skip(f"no disk can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def shrink(lab: Lab, name: str, count: int) -> None:
    command = COMMANDS[name]
    reference = lab.reference(command)
    row = {"moments": 0, "refused": 0}
    with disk(lab.root / f"{name.replace(' ', '-')}-disk") as small:
        place = small.folder
        lab.place("small", command)
        shutil.copytree(lab.root / "small", place, dirs_exist_ok=True)
        for room in np.geomspace(4096, 1e6, count):
            small.leave(int(room))
            code, said = run(lab.words(command, place), place)
            where = f"{name} with {room:,.0f} bytes: exit {code}\n{said[-3000:]}"
            row["moments"] += 1
            row["refused"] += code != 0
            assert "Traceback" not in said and code in (0, 1, 2), where
            if code:
                errors = [line for line in said.splitlines() if "error: " in line]
                assert len(errors) == 1, where
                assert "space" in said or "room" in said or "disk" in said, where
            leftovers = [file for file in place.rglob("*") if temporary(file)]
            assert not leftovers, f"{where}\n{leftovers}"
            lab.check_files(command, place, where)
        small.leave(512 << 20)
        code, said = run(lab.words(command, place), place)
        assert code == 0, said
        found = results(place, command)
    assert row["refused"], "the disk was never too small"
    different = [key for key in {*found, *reference.results} if found.get(key) != reference.results.get(key)]
    assert not different, f"{name}: {different} differ"
    record("small disk", name, row)


@pytest.mark.parametrize("name", ["encode"])
def test_some(lab: Lab, name: str) -> None:
    shrink(lab, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command(lab: Lab, name: str) -> None:
    shrink(lab, name, moments(8))
