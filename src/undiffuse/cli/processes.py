"""`--processes N`: a command as N processes of this machine, without torchrun.

The processes get the variables that torchrun sets. Unlike torchrun this passes on the exit status, with which a job
script decides whether to start the command again, and prints nothing of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

__all__ = ["run_processes"]

_GRACE = 70.0
"""Seconds in which the other processes may end, and rank 0 may save, after one has failed."""
_PAUSE = 0.05


def run_processes(count: int, words: Sequence[str]) -> int:
    """Runs a command line in several processes and waits for them.

    Args:
        count: How many.
        words: The words after `undiffuse`.

    Returns:
        The exit status of rank 0, or of the first process that failed if rank 0 did not; 128 and the signal for
        one that was killed.
    """
    address, threads = "127.0.0.1", max(1, len(os.sched_getaffinity(0)) // count) if sys.platform == "linux" else 1
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": str(_free_port(address))}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    command = [sys.executable, "-m", "undiffuse", *words]
    children = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before: dict[int, Any] = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}  # the terminal tells all
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            before[getattr(signal, name)] = signal.signal(getattr(signal, name), forward)
    try:
        return _wait(children)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all, and after a failure for some time only."""
    first, end = 0, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < end:
        time.sleep(_PAUSE)
        failed = [child.returncode for child in children if child.returncode]
        if failed and not first:
            first, end = failed[0], time.monotonic() + _GRACE
    status = children[0].poll() or first or next((child.returncode for child in children if child.returncode), 0)
    return int(status) if status >= 0 else 128 - int(status)


def _free_port(address: str) -> int:
    with socket.socket() as found:
        found.bind((address, 0))
        return int(found.getsockname()[1])
