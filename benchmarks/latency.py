"""What a person waits for: help, imports, and the first image after a process starts.

    python benchmarks/latency.py                                     # medians of 15 fresh processes each; 5 minutes
    python benchmarks/latency.py --cold 3                            # and of 3 whose files are not in memory
    python benchmarks/latency.py --write docs/benchmarks-latency     # keep the results for the documentation

Every number is of a process of its own; the kinds take turns. Compiled bytecode lies in a folder of this benchmark and
is there before the first measurement, as after an installation by pip. Linux.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.measuring import ROOT, commit, described, environment, keep, surroundings

PACKAGES = ("torch", "numpy", "pillow", "safetensors")
_IMPORT = "import time; import torch; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to wait for.

    `words`   of the interpreter's command line; OUT in them is a folder that is not there yet
    `goal`    seconds at most, if there is one
    `beyond`  the case whose median is taken off
    `told`    the process itself prints the seconds; else they are the clock's, until it ends
    `image`   until a file of this pattern is in OUT; what comes after it is not waited for
    """

    what: str
    words: tuple[str, ...]
    goal: float | None = None
    beyond: str | None = None
    told: bool = False
    image: str | None = None
    status: int = 0


def _command(what: str, *words: str, status: int = 0) -> Case:
    return Case(what=what, words=("-m", "undiffuse", *words), goal=0.3, beyond="interpreter", status=status)


def _import(what: str, statement: str, goal: float | None = 0.2) -> Case:
    return Case(what=what, words=("-c", _IMPORT.format(statement)), goal=goal, told=True)


def _image(what: str, pattern: str, goal: float | None, *words: str) -> Case:
    return Case(what=what, words=("-m", "undiffuse", *words, "--out", "OUT"), goal=goal, image=pattern)


CASES = {
    "interpreter": Case(what="the interpreter alone, start and end", words=("-c", "pass")),
    "torch": Case(what="`import torch`, start and end of the process included", words=("-c", "import torch")),
    "help": _command("`undiffuse --help`", "--help"),
    "command": _command("`undiffuse sample --help`", "sample", "--help"),
    "mistake": _command("`undiffuse sample --nothing`, a mistake", "sample", "--nothing", status=2),
    "package": _import("`import undiffuse`", "import undiffuse"),
    "models": _import("`from undiffuse.models import load_diffusion`", "from undiffuse.models import load_diffusion"),
    "sampling": _import("`from undiffuse.sampling import sample`", "from undiffuse.sampling import sample"),
    "rooms": _import(
        "`undiffuse.training`, `.evaluation` and `.recipes`, which is nearly all",
        "import undiffuse.training, undiffuse.evaluation, undiffuse.recipes",
        goal=None,
    ),
    "loaded": _import(
        "`undiffuse.models` and the shipped model loaded",
        "from undiffuse.models import load_diffusion; load_diffusion('fashion-mnist-32')",
        goal=None,
    ),
    "quickstart": _image("`undiffuse quickstart`: its first picture is there", "first.png", 5.0, "quickstart"),
    "sample": _image("`undiffuse sample --count 1`: the image is there", "*0*.png", None, "sample", "--count", "1"),
}
BEYOND_TORCH = ("package", "models", "sampling", "rooms", "loaded")


def wait(case: Case, folder: Path, variables: dict[str, str]) -> float:
    """The seconds of one fresh process; the benchmark ends if the process fails."""
    out = folder / f"out-{time.monotonic_ns()}"
    words = [str(out) if word == "OUT" else word for word in case.words]
    with tempfile.TemporaryFile("w+") as told:
        begin = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], stdout=told, stderr=subprocess.STDOUT, env=variables)
        there = False
        while case.image is not None and not there and process.poll() is None:
            time.sleep(0.002)
            there = any(out.glob(case.image))
        if there:
            seconds = time.perf_counter() - begin
            process.kill()
            process.wait()
            return seconds
        status = process.wait()
        seconds = time.perf_counter() - begin
        told.seek(0)
        text = told.read()
    if status != case.status or case.image is not None:
        sys.exit(f"{case.what} ended with status {status}:\n{text}")
    return float(text.split()[-1]) if case.told else seconds


def measure(repeats: int, cold: int, threads: int) -> dict[str, Any]:
    """Seconds of every run by case, warm and (`cold` times) with files to be read again."""
    result: dict[str, Any] = {"warm": {name: [] for name in CASES}, "cold": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        variables = {**environment(threads), "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        for case in CASES.values():
            wait(case, folder, variables)
        for number in range(repeats):
            for name, case in CASES.items():
                result["warm"][name].append(wait(case, folder, variables))
            print(f"round {number + 1} of {repeats}", flush=True)
        for _ in range(cold):
            for name, case in CASES.items():
                forget([folder / "bytecode"])
                result["cold"].setdefault(name, []).append(wait(case, folder, variables))
    about = {"repeats": repeats, "commit": commit(), **surroundings(threads, PACKAGES)}
    return {**result, "surroundings": about}


def forget(more: list[Path]) -> None:
    """Asks the kernel to drop the files of Python's packages from memory. It keeps those that other processes map."""
    roots = [ROOT / "src", *more]
    for package in ("torch", "numpy", "PIL", "safetensors"):
        found = importlib.util.find_spec(package)
        assert found is not None
        roots += [Path(place) for place in found.submodule_search_locations or ()]
    for path in _files(roots):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _files(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        yield from (path for path in root.rglob("*") if path.suffix in (".py", ".pyc", ".so", ".safetensors"))


def table(result: dict[str, Any]) -> str:
    """Medians in seconds as a table in Markdown, with the fastest run and the goals."""
    medians = {
        kind: {name: statistics.median(runs) for name, runs in result[kind].items()} for kind in ("warm", "cold")
    }
    cold = bool(medians["cold"])
    head = ["", "median, s", *(["files not in memory"] if cold else []), "fastest run", "goal"]
    lines = [" | ".join(head).join(["| ", " |"]), "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, case in CASES.items():
        if name not in result["warm"]:
            continue
        cells = [_shown(medians["warm"], name)]
        cells += [_shown(medians["cold"], name)] if cold else []
        fastest = min(result["warm"][name]) - (medians["warm"][case.beyond] if case.beyond else 0.0)
        goal = f"{case.goal:g}" if case.goal is not None else ""
        beyond = ", beyond torch" if name in BEYOND_TORCH else f", beyond the {case.beyond}" if case.beyond else ""
        lines.append("| " + " | ".join([case.what + beyond, *cells, f"{max(fastest, 0):.3f}", goal]) + " |")
    about = result["surroundings"]
    repeats = f"Medians of {about['repeats']} fresh processes, in turns, compiled bytecode there."
    return "\n".join(lines) + f"\n\n{repeats} {described(about)} Commit {about['commit']}."


def _shown(medians: dict[str, float], name: str) -> str:
    beyond = CASES[name].beyond
    return f"{medians[name] - (medians[beyond] if beyond else 0.0):.3f}"


def page(known: dict[str, Any]) -> str:
    """The documentation's page."""
    return (
        "# What a person waits for\n\nWritten by `python benchmarks/latency.py --write docs/benchmarks-latency`. Every "
        f"number is of fresh processes.\n\n{table(known['latency'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="processes of each kind")
    parser.add_argument("--cold", type=int, default=0, metavar="N", help="as many more with files out of memory")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", type=Path, metavar="PATH", help="put the results into PATH.json and PATH.md")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats is 1 at least")
    result = measure(args.repeats, args.cold, args.threads)
    if args.write is not None:
        keep(args.write, {"latency": result}, page)
    print(table(result))


if __name__ == "__main__":
    main()
