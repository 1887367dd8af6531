"""Two commands at once in one place: the second is refused with the number of the first, or both are right."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from faults.commands import COMMANDS, results
from faults.injection import Process, run
from faults.outcomes import Lab
from faults.page import record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
FOLDERS = [name for name, command in COMMANDS.items() if command.resumes]
BESIDE = ("train", "sample", "inpaint", "nll")
FILES = [name for name, command in COMMANDS.items() if not command.resumes]


def _locked(place: Path, out: str) -> bool:
    """Whether a command holds its place: it writes its number into the file once that is locked."""
    return any(file.stat().st_size for file in place.glob(f"{out}*/.lock"))


def refuse(lab: Lab, name: str, other: str = "") -> None:
    """Starts a command, and it or another one in its place while it works."""
    command, second = COMMANDS[name], COMMANDS[other or name]
    place = lab.place(f"{name}-twice", command)
    lab.reference(command)
    first = Process(command.words, place)
    end = time.monotonic() + 60
    while not _locked(place, command.out) and first.children[0].is_alive() and time.monotonic() < end:
        time.sleep(0.002)
    first.send(19)  # SIGSTOP: it holds the place for as long as the second one needs
    try:
        held = _locked(place, command.out)
        code, said = run(second.words, place)
    finally:
        first.send(18)
    assert held, f"{name} never locked its place"
    assert code == 2 and sum("error: " in line for line in said.splitlines()) == 1, f"exit {code}: {said}"
    assert other or "is in use by process" in said, said
    assert first.wait() == [0]
    assert results(place, command) == lab.references[name].results
    record("beside" if other else "twice", f"{name}, {other}" if other else name, {"moments": 1})


@pytest.mark.parametrize("name", ["sample", "encode"])
def test_some(lab: Lab, name: str) -> None:
    refuse(lab, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_second_run_in_a_folder_is_refused(lab: Lab, name: str) -> None:
    refuse(lab, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_two_commands_that_write_one_file(lab: Lab, name: str) -> None:
    command = COMMANDS[name]
    place = lab.place(f"{name}-twice", command)
    lab.reference(command)
    both = [Process(command.words, place) for _ in range(2)]
    codes = [process.wait()[0] for process in both]
    assert 0 in codes and set(codes) <= {0, 2}, both[0].said
    assert "Traceback" not in both[0].said
    assert results(place, command) == lab.references[name].results
    record("twice", name, {"moments": 1})


@pytest.mark.slow
@pytest.mark.parametrize("other", BESIDE)
@pytest.mark.parametrize("name", BESIDE)
def test_another_command_in_the_same_folder_is_refused(lab: Lab, name: str, other: str) -> None:
    if name != other:
        refuse(lab, name, other)
