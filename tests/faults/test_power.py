"""Power loss: what a file is renamed to its name for is on the disk before, and the new name right after.

A system may write to the disk in any order what it was not told to wait for. So a file must be flushed before it gets
its final name, and the folder afterwards, before the command says that it is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from faults.commands import COMMANDS
from faults.injection import run
from faults.outcomes import Lab
from faults.page import record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads names of open files from /proc")
NOT_DURABLE = (".png", ".gif")
"""Pictures of a run are seen to be whole when it resumes, and waiting for the disk at each would take long."""
QUICK = ("export", "ema", "encode", "convert zip")


def unsafe(events: list[str], out: str) -> list[str]:
    """Renames whose file was not flushed before, or whose folder was not flushed after."""
    problems = []
    for k, event in enumerate(events):
        verb, _, rest = event.partition(" ")
        if verb not in ("rename", "link"):
            continue
        old, new = rest.split(" -> ")
        if not new.startswith(out) or new.endswith(NOT_DURABLE):
            continue
        before, after = events[:k], events[k:]
        written = max((j for j, other in enumerate(before) if other == f"write {old}"), default=-1)
        flushed = f"sync {old}" in before[written + 1 :] or "sync everything" in before
        # A file that was moved within its folder's temporary one is flushed under its name there.
        flushed = flushed or any(other.startswith("sync ") and other.endswith("/" + Path(new).name) for other in before)
        if not flushed:
            problems.append(f"{new} is not flushed before it is renamed")
        folder = str(Path(new).parent)
        if f"sync {folder}" not in after:
            problems.append(f"the folder of {new} is not flushed afterwards")
    return problems


def check(lab: Lab, name: str) -> None:
    command = COMMANDS[name]
    place, trace = lab.place(f"{name}-power", command), lab.root / "trace.synced"
    code, said = run(command.words, place, trace=trace)
    assert code == 0, said
    events = json.loads(trace.read_text())
    assert any(event.startswith(("rename ", "link ")) and f"-> {command.out}" in event for event in events), events
    assert not unsafe(events, command.out), events
    record("power", name, {"moments": sum(event.startswith(("rename ", "link ")) for event in events)})


@pytest.mark.parametrize("name", QUICK)
def test_some(lab: Lab, name: str) -> None:
    check(lab, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in QUICK])
def test_every_command(lab: Lab, name: str) -> None:
    check(lab, name)


def test_the_check_sees_what_is_missing() -> None:
    good = ["write .t", "sync .t", "rename .t -> out", "sync ."]
    assert not unsafe(good, "out")
    for k in (1, 3):
        assert unsafe([event for j, event in enumerate(good) if j != k], "out")
    assert unsafe(["sync .t", "write .t", "rename .t -> out", "sync ."], "out")
