"""What every benchmark here needs: stages with their seconds and peak memory, runs in turns, and what they ran on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

Run = dict[str, Any]


class Stages:
    """Seconds of the clock and of the processor by stage, and the process's peak memory beyond where it began.

    The kernel keeps the peak (VmHWM), so that nothing between two looks is missed, whoever allocates it.
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        self.before = _status("VmRSS")
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def done(self, stage: str) -> None:
        """`stage` ends here and the next one begins."""
        now = time.perf_counter(), time.process_time()
        self.seconds[stage], self.cpu[stage] = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now

    def result(self, values: dict[str, float]) -> Run:
        """Everything for JSON, with the numbers that were computed."""
        peak = _status("VmHWM") - self.before
        return {"values": values, "seconds": self.seconds, "cpu_seconds": self.cpu, "memory": peak}


def _status(name: str) -> int:
    """Bytes by one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def environment(threads: int) -> dict[str, str]:
    """Variables for a run: this checkout's package, and so many threads in every library."""
    libraries = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    source = str(Path(__file__).resolve().parent.parent / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return {**os.environ, **dict.fromkeys(libraries, str(threads)), "PYTHONPATH": path}


def in_turns(
    sides: Sequence[str], repeats: int, command: Callable[[str], list[str]], threads: int
) -> dict[str, list[Run]]:
    """Runs each side's command `repeats` times, one side after the other; the last line of each is a run's JSON."""
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for number in range(repeats):
        for side in sides:
            done = subprocess.run(command(side), capture_output=True, text=True, check=False, env=environment(threads))
            if done.returncode:
                sys.exit(f"{side} failed:\n{done.stderr}")
            run = json.loads(done.stdout.splitlines()[-1])
            runs[side].append(run)
            print(f"{side}, run {number + 1}: {sum(run['seconds'].values()):.1f} s {run['values']}", flush=True)
    return runs


def compare(runs: dict[str, list[Run]], tolerances: dict[str, float]) -> None:
    """Ends the benchmark unless the two sides agree on every number within its tolerance times max(1, it)."""
    (one, first), (other, second) = ((side, of[0]["values"]) for side, of in runs.items())
    for name, tolerance in tolerances.items():
        if not abs(first[name] - second[name]) <= tolerance * max(1.0, abs(first[name])):
            sys.exit(f"{name} differs: {first[name]} by {one}, {second[name]} by {other}")


def median(runs: Sequence[Run], stage: str | None = None, kind: str = "seconds") -> float:
    """Median over runs of the seconds of a stage, or of all."""
    return statistics.median(sum(run[kind].values()) if stage is None else run[kind][stage] for run in runs)


def surroundings(threads: int, packages: Sequence[str]) -> dict[str, Any]:
    """Date, hardware, versions, and how busy the machine was."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat")))
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "date": str(date.today()),
        "processor": model[0].split(":")[1].strip() if model else platform.machine(),
        "bfloat16": any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16")),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gib": round(int(memory.split()[1]) / 2**20),
        "load": round(os.getloadavg()[0], 1),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def described(about: dict[str, Any]) -> str:
    """`surroundings` in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    natively = "with" if about["bfloat16"] else "without"
    return (
        f"{about['date']}; {about['processor']}, {about['cores']} cores, {about['threads']} threads, {natively} "
        f"bfloat16 arithmetic, {about['memory_gib']} GiB; load {about['load']} when it ended; {versions}."
    )
