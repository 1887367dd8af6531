"""Where and with what a run was trained: one line of sessions.jsonl for every start, so that it can be repeated."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from undiffuse.util.records import check_record

__all__ = ["SESSIONS", "add_session", "environment", "read_sessions"]

SESSIONS = "sessions.jsonl"
_PACKAGES = ("undiffuse", "torch", "numpy", "pillow", "safetensors")


def environment() -> dict[str, Any]:
    """Describes the software and the machine of this process.

    Returns:
        A record with "versions" (of Python and packages) and "machine" (system, processor, cores, threads, memory in
        bytes, devices).
    """
    versions: dict[str, Any] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    machine: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
        "devices": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
    }
    return {"versions": versions, "machine": machine}


def add_session(run_dir: Path, values: Mapping[str, Any]) -> None:
    """Appends the record of this process to a run folder.

    Args:
        run_dir: The folder of the run.
        values: What else belongs into the record, for example the images seen so far.
    """
    record = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_line(sys.argv),
        **values,
        **environment(),
    }
    with open(run_dir / SESSIONS, "a", encoding="utf-8") as file:
        file.write(json.dumps(check_record(record)) + "\n")


def command_line(argv: Sequence[str]) -> str:
    """Returns the command of a process as it can be pasted: `python -m NAME ...` where a package was run."""
    program = Path(argv[0] if argv else "")
    first = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name or "python"]
    return shlex.join([*first, *argv[1:]])


def read_sessions(run_dir: Path | str) -> list[dict[str, Any]]:
    """Returns the records of a run folder, oldest first. A line that was cut short by a crash is left out."""
    path = Path(run_dir) / SESSIONS
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _processor() -> str:
    """The name of the processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
