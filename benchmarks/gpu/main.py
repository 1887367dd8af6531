"""Runs all stages of the benchmark on a GPU, each in a process of its own with a budget of time.

    bash benchmarks/gpu.sh                  # on a GPU, eight minutes at most
    bash benchmarks/gpu.sh --dry-run        # on a CPU: does everything run? Measures nothing

Results are in OUT/gpu.json after every line that a stage prints, so that a stage that hangs or fails costs its own
budget and nothing else. OUT/benchmarks-gpu.md is made of them at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from common.measuring import environment
from gpu.page import page

TOTAL = 470.0  # seconds of all stages
# Seconds of each. What a stage leaves, the last one gets.
STAGES = {
    "about": 40.0,  # builds Triton's norm
    "peaks": 30.0,
    "correctness": 90.0,
    "speed S": 70.0,
    "speed M": 65.0,
    "speed ADM-64": 60.0,
    "speed L": 30.0,
    "speed ADM-256": 60.0,
    "compiled": 120.0,
}
DRY = {"about": 120.0, "peaks": 120.0, "correctness": 600.0, "speed tiny": 300.0, "compiled": 300.0}
GRACE = 5.0  # seconds that a stage may take beyond what it was given
Results = dict[str, Any]


def run_stage(name: str, device: str, seconds: float, out: Path, results: Results) -> None:
    """Runs a stage, and writes the results after each of its lines. Whatever it does, this returns in time."""
    stage: dict[str, Any] = {"status": "running", "results": []}
    results["stages"][name] = stage
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", "gpu.stage", name, device, str(seconds)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(device == "cpu"),
        start_new_session=True,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds + GRACE, stop)
    timer.start()
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
    reader.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("RESULT "):
            stage["results"].append(json.loads(line.removeprefix("RESULT ")))
            write(out, results)
    status = process.wait()
    timer.cancel()
    reader.join(5)
    stage["seconds"] = round(time.monotonic() - began, 1)
    if late.is_set():
        stage["status"] = f"stopped after {stage['seconds']:.0f} s"
    elif status:
        stage["status"] = f"failed: {''.join(errors).strip().splitlines()[-1:] or status}"
        stage["stderr"] = "".join(errors)[-4000:]
    else:
        stage["status"] = "complete"
    print(f"{name}: {stage['status']}, {len(stage['results'])} results, {stage['seconds']} s", flush=True)
    write(out, results)


def write(out: Path, results: Results) -> None:
    """Puts the results into OUT/gpu.json, whole or not at all."""
    own = out / ".gpu.json"
    own.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(own, out / "gpu.json")


def _environment(dry: bool) -> dict[str, str]:
    more = {"TORCHDYNAMO_DISABLE": "1"} if dry else {}  # compiling takes minutes, and is not what is tested
    return {**environment(1 if dry else min(8, len(os.sched_getaffinity(0)))), **more}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="every stage on a CPU with tiny sizes")
    parser.add_argument("--stages", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "build/benchmarks/gpu"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device, stages = ("cpu", DRY) if args.dry_run else ("cuda", STAGES)
    unknown = set(args.stages or ()) - set(stages)
    if unknown:
        parser.error(f"there is no stage {sorted(unknown)[0]!r}; there are: {', '.join(stages)}")
    results: Results = {"dry": args.dry_run, "stages": {}}
    end = time.monotonic() + (sum(DRY.values()) if args.dry_run else TOTAL)
    for name, budget in stages.items():
        if args.stages and name not in args.stages:
            continue
        left = end - time.monotonic() - GRACE
        seconds = left if name == "compiled" else min(budget, left)
        if seconds < GRACE:
            results["stages"][name] = {"status": "not begun: no time was left", "results": []}
            continue
        run_stage(name, device, seconds, args.out, results)
    write(args.out, results)
    (args.out / "benchmarks-gpu.md").write_text(page(results))
    print(f"{args.out / 'gpu.json'}\n{args.out / 'benchmarks-gpu.md'}")
    wrong = [check for check in results["stages"].get("correctness", {}).get("results", []) if check.get("ok") is False]
    for check in wrong:
        print(f"WRONG: {json.dumps(check)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
