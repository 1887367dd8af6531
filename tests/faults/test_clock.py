"""The clock jumps while a command works, forwards and backwards, and between its parts: the results stay the same."""

from __future__ import annotations

import random
import shutil
import sys

import pytest

from faults.commands import COMMANDS, results
from faults.injection import Fault, run
from faults.outcomes import Lab, moments
from faults.page import record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed")


def jump(lab: Lab, name: str, count: int) -> None:
    """Kills the command at two thirds, with a clock that has jumped; repeats it with another clock that jumps."""
    command = COMMANDS[name]
    reference, rng = lab.reference(command), random.Random(f"{name} clock")
    place, last = lab.place(f"{name}-clock", command), len(reference.events)
    numbers = tuple(sorted(rng.sample(range(last), min(count, last))))
    if command.resumes:
        code, said = run(command.words, place, Fault("kill", at=2 * last // 3, jumps=numbers))
        assert code in (-9, 0), said
    code, said = run(command.words, place, Fault("clock", jumps=(0, *numbers)))
    assert code == 0 and "Traceback" not in said, said
    found = results(place, command)
    different = [key for key in {*found, *reference.results} if found.get(key) != reference.results.get(key)]
    assert not different, f"{different}\n{said}"
    shutil.rmtree(place)
    record("clock", name, {"moments": len(numbers)})


@pytest.mark.parametrize("name", ["sample"])
def test_some(lab: Lab, name: str) -> None:
    jump(lab, name, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command(lab: Lab, name: str) -> None:
    jump(lab, name, moments(8))


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["600s", "1s"])
def test_a_time_limit_counts_seconds_and_not_the_time_of_day(lab: Lab, limit: str) -> None:
    """A jump ends no run early, and lets none go on for ever."""
    command = COMMANDS["train"]
    place = lab.place("train-limit", command)
    more = ("--images", 400_000) if limit == "1s" else ()
    code, said = run(
        (*command.words, *more, "--time-limit", limit), place, Fault("clock", jumps=tuple(range(3, 60, 7)))
    )
    assert code == (75 if limit == "1s" else 0), said
