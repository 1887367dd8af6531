"""How threads wait: decided before PyTorch is there, by the load of the machine, and by the user first of all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from undiffuse.cli import waiting

linux = pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP is PyTorch's on Linux")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*waiting.OWN, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(waiting.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(waiting.os, "sched_getaffinity", lambda pid: range(4))
    return monkeypatch


def policy() -> dict[str, str]:
    waiting.set_wait_policy()
    return {name: os.environ[name] for name in waiting.OWN if name in os.environ}


@linux
@pytest.mark.parametrize(
    ("running", "threads", "wanted"),
    [
        (1, "", {"GOMP_SPINCOUNT": "10000"}), (2, "", {"OMP_WAIT_POLICY": "PASSIVE"}),
        (3, "2", {"GOMP_SPINCOUNT": "10000"}), (4, "2", {"OMP_WAIT_POLICY": "PASSIVE"}),
        (9, "1", {"GOMP_SPINCOUNT": "10000"}),
    ],
)  # fmt: skip
def test_the_load_decides(plain: pytest.MonkeyPatch, running: int, threads: str, wanted: dict[str, str]) -> None:
    plain.setattr(waiting, "running", lambda: running)
    plain.setenv("OMP_NUM_THREADS", threads)
    assert policy() == wanted


@linux
def test_one_look_at_a_free_machine_is_enough(plain: pytest.MonkeyPatch) -> None:
    looks = iter((9, 9, 1))
    plain.setattr(waiting, "running", lambda: next(looks))
    assert policy() == {"GOMP_SPINCOUNT": "10000"}


@pytest.mark.parametrize("name", waiting.OWN)
def test_settings_of_the_user_stay(plain: pytest.MonkeyPatch, name: str) -> None:
    plain.setattr(waiting, "running", lambda: 99)
    plain.setenv(name, "7")
    assert policy() == {name: "7"}


def test_nothing_is_set_once_torch_is_there(plain: pytest.MonkeyPatch) -> None:
    plain.setitem(sys.modules, "torch", waiting)
    assert policy() == {}


def test_the_number_of_running_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting.running() >= 1
    monkeypatch.setattr("builtins.open", lambda *given: (_ for _ in ()).throw(OSError))
    assert waiting.running() == 1


@linux
def test_the_command_line_sets_it_before_torch_is_imported() -> None:
    program = """
import os, sys
from undiffuse.cli import main
main(["inspect"])
import ctypes
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print("policy", getenv(b"OMP_WAIT_POLICY") or getenv(b"GOMP_SPINCOUNT"))
"""
    clean = {name: value for name, value in os.environ.items() if name not in waiting.OWN}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.splitlines()[-1] in ("policy b'PASSIVE'", f"policy b'{waiting.SPINS}'")
