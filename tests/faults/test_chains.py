"""Every command that writes is killed, signalled and cut off from its disk at many moments, and ends as if it was not.

The quick tests take a few commands and moments. All of them, and the page docs/faults.md:

    python -m faults --moments 50        in the folder tests
"""

from __future__ import annotations

import sys

import pytest

from faults.commands import COMMANDS
from faults.outcomes import Lab, moments
from faults.page import record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, killed and watched")
KINDS = ("kill", "SIGTERM", "SIGINT", "full", "read-only", "gone", "memory")
SHARED = [name for name, command in COMMANDS.items() if command.shared]


def chain(lab: Lab, name: str, kind: str, count: int, by: str = "change", ranks: int = 1) -> None:
    row = lab.chain(COMMANDS[name], kind, moments(count), by, ranks)
    record(f"{kind} at any time" if by == "time" else kind, name, row, ranks)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sample", "kill"), ("nll", "SIGTERM"), ("export", "kill"), ("convert zip", "full"), ("encode", "read-only")],
)
def test_some(lab: Lab, name: str, kind: str) -> None:
    chain(lab, name, kind, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_before_changes_of_files(lab: Lab, name: str, kind: str) -> None:
    chain(lab, name, kind, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "SIGTERM"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_at_any_time(lab: Lab, name: str, kind: str) -> None:
    chain(lab, name, kind, 8, by="time")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_each_rank_of_two(lab: Lab, name: str) -> None:
    chain(lab, name, "kill", 4, by="time", ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "SIGTERM", "full", "gone"])
def test_with_an_empty_cache_into_which_kernels_are_compiled(lab: Lab, kind: str) -> None:
    row = lab.chain(COMMANDS["sample"], kind, moments(8), cold=True)
    record(kind, "sample, first use", row)
