"""How busy the machine is."""

from __future__ import annotations


def running() -> int:
    """Returns how many threads of the whole machine are running or ready to run, this one included; 1 if unknown."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1
