"""How threads wait for each other, which has to be decided before PyTorch is imported.

By default the threads of GNU OpenMP, which PyTorch uses on Linux, spin for about a millisecond where they wait. That is
fastest while each has a core of its own. On a busy machine it is ruinous: a thread spins for the whole time in which
the one it waits for has no core.
"""

from __future__ import annotations

import os
import sys
import time

from undiffuse.util.load import running

OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = 10_000
"""Turns, 0.1 to 0.2 milliseconds: longer than the gaps between operations, far shorter than a turn of the scheduler."""
_LOOKS, _PAUSE = 5, 0.002  # seconds


def set_wait_policy() -> None:
    """Makes threads sleep at once where they wait if the machine is busy, else after a short time.

    Settings of the user's own in the environment are left alone. Does nothing once PyTorch is imported.
    """
    if sys.platform != "linux" or "torch" in sys.modules or any(name in os.environ for name in OWN):
        return
    if is_busy():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def is_busy() -> bool:
    """Returns whether other programs leave fewer cores free than this one has threads, as it was in several looks."""
    cores = os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdecimal() and int(asked) else len(os.sched_getaffinity(0))
    if threads < 2:
        return False
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        others = running() - 1
        if others + threads <= cores:
            return False
    return True
