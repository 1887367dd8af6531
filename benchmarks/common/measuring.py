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

from undiffuse.util.text import count_of

Run = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]  # of the checkout


class Stages:
    """Seconds of the clock and of the processor by stage, and the process's peak memory beyond where it began.

    The kernel keeps the peak (VmHWM), so that nothing between two looks is missed, whoever allocates it.
    """

    def __init__(self) -> None:
        self.before = restart_peak()
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
        peak = 1024 * kilobytes("VmHWM") - self.before
        return {"values": values, "seconds": self.seconds, "cpu_seconds": self.cpu, "memory": peak}


def kilobytes(name: str) -> int:
    """The number of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def restart_peak() -> int:
    """Makes this process's peak memory (VmHWM) what it holds now, and returns that in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * kilobytes("VmRSS")


def environment(threads: int) -> dict[str, str]:
    """Variables for a run: this checkout's package and benchmarks, so many threads everywhere, no progress bars."""
    libraries = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **dict.fromkeys(libraries, str(threads)), "PYTHONPATH": path, "TQDM_DISABLE": "1"}


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
        "instructions": _instructions(flags.split()),
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


def _instructions(flags: Sequence[str]) -> str:
    """What decides how fast products are on an x86 processor; empty for others."""
    if "avx2" not in flags:
        return ""
    return f"{'AVX-512' if 'avx512f' in flags else 'AVX2 only'}, {'AMX' if 'amx_tile' in flags else 'no AMX'}"


def described(about: dict[str, Any]) -> str:
    """`surroundings` in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    natively = "with" if about["bfloat16"] else "without"
    processor = ", ".join(filter(None, (about["processor"], about.get("instructions"))))
    return (
        f"{about['date']}; {processor}, {about['cores']} cores, {count_of(about['threads'], 'thread')}, {natively} "
        f"bfloat16 arithmetic, {about['memory_gib']} GiB; load {about['load']} when it ended; {versions}."
    )


def commit() -> str:
    """The checkout's commit, and whether its package differs from it; "unknown" outside of a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "src", "benchmarks").strip()
        return git("rev-parse", "--short", "HEAD").strip() + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def keep(path: Path, found: dict[str, Any], page: Callable[[dict[str, Any]], str]) -> None:
    """Puts new results beside those of path.json and writes path.md, the `page` of all of them."""
    data = path.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {}
    known.update(found)
    data.write_text(json.dumps(known, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(known))
