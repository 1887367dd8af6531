"""How fast the networks are: ours against OpenAI's, azula's, diffusers' and denoising-diffusion-pytorch's.

    python benchmarks/networks.py --write docs/benchmarks-networks   # all, kept for the documentation; an hour
    python benchmarks/networks.py forward start                      # some parts
    python benchmarks/networks.py --full                             # with what takes minutes a call
    python benchmarks/networks.py --quick                            # does everything run? Measures nothing

Linux; on the GPU where there is one (--device). The other libraries are installed into a virtual environment under
build/benchmarks. README.md says what is compared, and how.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from common.blocks import QUICK, Pace, in_turns, whole
from common.installing import prepared
from common.measuring import commit, environment, keep, surroundings
from unets import imports
from unets.tables import page

PEERS = {
    "guided-diffusion-sdk": "1.0.0",
    "azula": "0.11.1",
    "diffusers": "0.42.1",
    "denoising-diffusion-pytorch": "2.3.4",
    "ema-pytorch": "0.8.3",
    "accelerate": "1.15.0",
}
SUPPORT = (
    *("numpy", "pillow", "safetensors", "tqdm", "einops", "scipy", "pyyaml", "packaging", "requests", "filelock"),
    *("regex", "importlib_metadata", "huggingface-hub", "psutil", "blobfile", "gdown", "setuptools"),
)
PARTS = ("forward", "training", "sampling", "guided", "start", "imports")
# (model, batch), and those that only --full measures
CELLS: dict[str, tuple[tuple[str, int], ...]] = {
    "forward": (("S", 1), ("S", 8), ("S", 32), ("M", 1), ("M", 8), ("L", 1)),
    "training": (("S", 16), ("M", 8)),
    "sampling": (("S", 16),),
    "guided": (("S", 16),),
}
FULL: dict[str, tuple[tuple[str, int], ...]] = {"forward": (("M", 32), ("L", 8)), "sampling": (("M", 8),)}
LARGE: dict[str, tuple[tuple[str, int], ...]] = {  # on a GPU
    "forward": (("S", 128), ("M", 32), ("L", 8)),
    "training": (("S", 128), ("M", 64)),
    "sampling": (("M", 32),),
    "guided": (("S", 128),),
}
PATIENCE = {"forward": 400.0, "training": 900.0, "sampling": 900.0, "guided": 900.0}  # seconds a cell


def cells(part: str, args: argparse.Namespace) -> list[tuple[str, int]]:
    """What is measured of a part."""
    chosen = list(CELLS[part])
    if args.full:
        chosen += FULL.get(part, ())
    if args.device == "cuda":
        chosen += [cell for cell in LARGE.get(part, ()) if cell not in chosen]
    if args.models:
        chosen = [cell for cell in chosen if cell[0] in args.models]
    if args.quick:  # every way of computing, the least work
        chosen = list(dict.fromkeys((model, 2 if part == "training" else 1) for model, _ in chosen))
    return chosen


class Served:
    """A worker that waits for its turns."""

    def __init__(self, command: list[str], surrounding: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=surrounding)
        self.ready = self._answer() == "ready"

    def __call__(self) -> tuple[float, float]:
        """A block's seconds a call, and cores used by others."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, foreign = self._answer()
        return seconds, foreign

    def end(self) -> dict[str, Any]:
        """Its memory; the process ends."""
        out, _ = self.process.communicate()
        return json.loads(out.splitlines()[-1])

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            try:
                return json.loads(line)
            except json.JSONDecodeError:  # what a library printed
                continue
        _, err = self.process.communicate()
        sys.exit(f"a worker failed:\n{err}")


class Bench:
    """Runs workers in the peers' environment."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        pinned = [f"{name}=={version}" for name, version in PEERS.items()]
        self.python = args.python or prepared(args.folder / "networks-venv", SUPPORT, pinned)
        self.weights = args.folder / "networks"
        self._run(["unets.preparing", str(self.weights)])
        self.about = json.loads(self._run(["unets.sides", args.device]))
        self.sides = [name for name in self.about["sides"] if not args.sides or name in args.sides]

    def pace(self, part: str) -> Pace:
        """How long to measure."""
        if self.args.quick:
            return QUICK
        rounds = min(self.args.rounds, 3) if part in ("sampling", "guided") else self.args.rounds
        return Pace(rounds=rounds, most=3 * rounds, patience=PATIENCE.get(part, 600.0))

    def command(self, action: str, part: str, model: str, batch: int, sides: Sequence[str]) -> list[str]:
        """A worker's command line, for now: it carries the time."""
        task = {
            "action": action,
            "what": part,
            "model": model,
            "batch": batch,
            "sides": list(sides),
            "device": self.args.device,
            "folder": str(self.weights),
            "quick": self.args.quick,
            "pace": asdict(self.pace(part)),
            "threads": self.args.threads,
        }
        return [str(self.python), "-W", "ignore", "-m", "unets.worker", str(time.time()), json.dumps(task)]

    def worker(self, action: str, part: str, model: str, batch: int, sides: Sequence[str]) -> dict[str, Any]:
        """A worker's result."""
        return json.loads(self._checked(self.command(action, part, model, batch, sides)))

    def _run(self, module: list[str]) -> str:
        return self._checked([str(self.python), "-W", "ignore", "-m", *module])

    def _checked(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(self.args.threads))
        if done.returncode:
            sys.exit(f"{' '.join(command[3:])} failed:\n{done.stderr}")
        return (done.stdout.splitlines() or [""])[-1]

    def cell(self, part: str, model: str, batch: int) -> dict[str, Any]:
        """Timings and errors of all sides together, then the memory of each alone."""
        print(f"{part}, {model}, batch {batch}", flush=True)
        errors = self.worker("errors", part, model, batch, self.sides)
        served = {name: served for name in self.sides if (served := self.serve(part, model, batch, name)) is not None}
        timings = {name: timing.result() for name, timing in in_turns(served, self.pace(part)).items()}
        for name, timing in timings.items():
            print(f"  {name}: {1000 * timing['seconds']:.1f} ms", flush=True)
        memory = {name: one.end() for name, one in served.items()}
        return {
            "part": part, "model": model, "batch": batch, "timings": timings, "errors": errors, "memory": memory
        }  # fmt: skip

    def serve(self, part: str, model: str, batch: int, side: str) -> Served | None:
        """A side in a process of its own, ready; None if it does not have this."""
        served = Served(self.command("serve", part, model, batch, [side]), environment(self.args.threads))
        return served if served.ready else None

    def result(self, part: str) -> Any:
        """Of a part."""
        if part == "start":
            return self.start()
        if part == "imports":
            return imports.measure(self.python, 1 if self.args.quick else 3, self.args.threads)
        return [self.cell(part, *chosen) for chosen in cells(part, self.args)]

    def start(self) -> dict[str, Any]:
        """Fresh processes, in turns."""

        def run(side: str) -> dict[str, Any]:
            found = self.worker("start", "start", "S", 1, [side])
            print(f"start, {side}: {sum(found['seconds'].values()):.1f} s", flush=True)
            return found

        return whole({side: partial(run, side) for side in self.sides}, 1 if self.args.quick else 3)


def others(path: Path) -> dict[str, Any]:
    """Results of other machines, in files beside that one whose names begin alike, by name."""
    files = sorted(path.parent.glob(f"{'-'.join(path.name.split('-')[:2])}*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files if file.stem != path.name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--models", nargs="*", choices=["S", "M", "L"], help="only these")
    parser.add_argument("--sides", nargs="*", metavar="NAME", help="only these, for instance guided ours ours-bf16")
    parser.add_argument("--full", action="store_true", help="also what takes minutes a call")
    parser.add_argument("--quick", action="store_true", help="each cell once, with the smallest batch")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7, help="undisturbed blocks a row (default 7; of sampling 3)")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="environment, weights")
    parser.add_argument("--python", type=Path, help="of an environment with the other libraries, instead of making one")
    parser.add_argument("--write", type=Path, metavar="PATH", help="put the results into PATH.json and PATH.md")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    if args.device is None:
        args.device = "cuda" if Path("/dev/nvidia0").exists() else "cpu"

    bench = Bench(args)
    found: dict[str, Any] = {}
    peaks = bench.worker("roofline", "roofline", "S", 1, [])
    for part in args.parts or PARTS:
        result = bench.result(part)
        about = surroundings(args.threads, ("torch", "numpy"))
        about["versions"] |= PEERS
        about |= {"device": bench.about["device"], "kernels": bench.about["kernels"], "commit": commit()}
        about |= {"quick": args.quick, "sides": bench.about["sides"]}
        found[f"{args.device} {part}"] = {"results": result, "about": about, **peaks}
        if args.write is not None:
            keep(args.write, found, partial(page, others=others(args.write), name=args.write.name))
    print(f"\n{page(found)}")


if __name__ == "__main__":
    main()
