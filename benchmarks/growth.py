"""How time and memory grow with batch, resolution, steps and number of processes; with plots and the reasons for bends.

    python benchmarks/growth.py --write docs/benchmarks-growth   # ten minutes on two cores
    python benchmarks/growth.py batch processes                  # some axes
    python benchmarks/growth.py --quick                          # does everything run? Measures nothing

Linux, on the CPU, model S of benchmarks/networks.py, with this environment's torch and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.blocks import Pace, others
from common.measuring import commit, described, environment, keep, surroundings
from growing.explaining import caches, fitted, processes, reasons

PRECISIONS = ("fp32", "bf16")
FEW = 3  # undisturbed blocks that a point needs to be trusted
BATCH = 16  # of training by several processes
AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "training batch": (1, 2, 4, 8, 16),
    "resolution": (16, 32, 64, 128),
    "steps": (5, 10, 25, 50),
    "processes": (1, 2, 4),
}
QUICK: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4),
    "training batch": (1, 2),
    "resolution": (16, 32),
    "steps": (2, 4),
    "processes": (1, 2),
}
TITLES = {
    "batch": "Forward pass against batch",
    "training batch": "Training step against batch",
    "resolution": "Forward pass of one image against its side",
    "steps": "DDIM sampling of four images against steps",
    "processes": f"Training step on {BATCH} images against number of processes",
}
INTRODUCTION = """# How cost grows

Written by `python benchmarks/growth.py --write docs/benchmarks-growth` from docs/benchmarks-growth.json;
benchmarks/README.md explains how the numbers are measured.
Model S (32x32, 8.0 M parameters) with the calls that the library's
own commands make. A line, fixed + slope x work, is fitted to the times; a point more than 10 % off it is a bend, whose
reason is given. Memory is what the work needs beyond weights and inputs.
"""


def worker(task: dict[str, Any], threads: int, extra: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A process of `growing.points`."""
    command = [sys.executable, "-W", "ignore", "-m", "growing.points", json.dumps({**task, "threads": threads})]
    surrounding = {**environment(threads), **(extra or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surrounding)


def results(of: Sequence[subprocess.Popen[str]]) -> list[Any]:
    """What processes printed last; ends the benchmark, and the others, if one of them failed."""
    found = []
    for process in of:
        out, err = process.communicate()
        if process.returncode:
            for other in of:
                other.kill()
            sys.exit(f"a process failed:\n{err}")
        found.append(json.loads(out.splitlines()[-1]))
    return found


def measure(axis: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of one axis by precision and point, for JSON."""
    points = list((QUICK if args.quick else AXES)[axis])
    found: dict[str, Any] = {"points": points, "time": {}, "memory": {}}
    for precision in PRECISIONS:
        task = {"axis": axis, "precision": precision, "quick": args.quick, "points": points}
        if axis == "processes":
            found["time"][precision] = {str(n): together(precision, n, args) for n in points}
            continue
        pace = asdict(Pace(rounds=3, most=9, seconds=0.4))
        (found["time"][precision],) = results([worker({**task, "action": "time", "pace": pace}, args.threads)])
        alone = [{**task, "action": "memory", "points": [point]} for point in points]
        found["memory"][precision] = {
            str(point): results([worker(one, args.threads)])[0] for point, one in zip(points, alone, strict=True)
        }
        print(f"{axis}, {precision}: {[round(t['seconds'], 3) for t in found['time'][precision].values()]}", flush=True)
    if axis != "processes":
        sides = points if axis == "resolution" else [32]
        (found["work"],) = results(
            [worker({"action": "work", "axis": axis, "precision": "fp32", "points": sides}, args.threads)]
        )
    return found


def together(precision: str, count: int, args: argparse.Namespace) -> dict[str, float]:
    """A training step by `count` processes, which share the threads; times of the slowest, memory of one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    threads = max(1, args.threads // count)
    task = {"action": "exchange", "axis": "processes", "precision": precision, "points": [], "batch": BATCH}
    task["steps"] = 1 if args.quick else 9
    world_size = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before, began = others(), time.perf_counter()
    ranks = [worker(task, threads, {**world_size, "RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(count)]
    steps = results(ranks)
    foreign = (others() - before) / (time.perf_counter() - began)
    print(f"{count} processes, {precision}: {steps[0]['seconds']:.2f} s", flush=True)
    slowest = max(steps, key=lambda step: step["seconds"])
    return {**slowest, "memory": max(step["memory"] for step in steps), "threads": float(threads), "foreign": foreign}


def loads(axis: str, of: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """(work, bytes of the largest feature map) at every point of an axis."""
    points: list[int] = of["points"]
    if axis == "resolution":
        return [of["work"][str(p)]["flop"] for p in points], [of["work"][str(p)]["largest"] for p in points]
    largest = of["work"]["32"]["largest"]
    return [float(p) for p in points], [largest * (4 if axis == "steps" else p) for p in points]


def table(axis: str, of: Mapping[str, Any]) -> str:
    """Points, times, what the line says, memory, notes; a table a precision."""
    out = []
    for precision, timings in of["time"].items():
        seconds = [timings[str(p)]["seconds"] for p in of["points"]]
        if axis == "processes":
            notes = processes({p: timings[str(p)] for p in of["points"]})
            rows = [
                f"| {p} | {1000 * s:,.0f} | {1000 * timings[str(p)]['exchange']:,.0f} | "
                f"{timings[str(p)]['memory'] / 2**20:,.0f} | {notes[p]} |"
                for p, s in zip(of["points"], seconds, strict=True)
            ]
            head = f"| {precision}: processes | ms | exchange, ms | MiB each | |\n|---:|---:|---:|---:|---|"
        else:
            work, largest = loads(axis, of)
            line = fitted(work, seconds)
            trusted = [len(timings[str(p)]["clean"]) >= FEW for p in of["points"]]
            notes_ = reasons(seconds, line, work, largest, trusted)
            if axis == "resolution":
                shares = [of["work"][str(p)]["attention"] / of["work"][str(p)]["flop"] for p in of["points"]]
                notes_ = [
                    f"attention is {s:.0%} of the work{'; ' if n else ''}{n}"
                    for s, n in zip(shares, notes_, strict=True)
                ]
            memory = of["memory"][precision]
            rows = [
                f"| {p} | {1000 * s:,.1f} | {1000 * line.at(w):,.1f} | {memory[str(p)] / 2**20:,.0f} | {note} |"
                for p, s, w, note in zip(of["points"], seconds, work, notes_, strict=True)
            ]
            head = f"| {precision}: {axis} | ms | line, ms | MiB | |\n|---:|---:|---:|---:|---|"
        out.append("\n".join([head, *rows]))
    return "\n\n".join(out)


def plots(path: Path, axis: str, of: Mapping[str, Any]) -> list[Path]:
    """Time and memory of an axis as pictures beside `path`."""
    from undiffuse.pictures import Panel, draw_plot

    made = []
    for what, label in (("time", "ms"), ("memory", "MiB")):
        lines: dict[str, list[tuple[float, float]]] = {}
        series: dict[str, list[tuple[float, float]]] = {}
        for precision in PRECISIONS:
            timings = of["time"][precision]
            if what == "time":
                series[precision] = [(p, 1000 * timings[str(p)]["seconds"]) for p in of["points"]]
            else:
                used = {p: timings[str(p)]["memory"] for p in of["points"]} if axis == "processes" else None
                used = used or {p: of["memory"][precision][str(p)] for p in of["points"]}
                series[precision] = [(p, used[p] / 2**20) for p in of["points"]]
            if what == "time" and axis != "processes":
                work, _ = loads(axis, of)
                line = fitted(work, [ms for _, ms in series[precision]])
                lines[f"{precision}: fixed + slope x work"] = [
                    (p, line.at(w)) for p, w in zip(of["points"], work, strict=True)
                ]
        series = {**series, **lines}
        panel = Panel(lines=series, title=TITLES[axis], x_label=axis, y_label=label, log_x=True, log_y=True)
        picture = draw_plot(panel)
        made.append(path.with_name(f"{path.name}-{axis.replace(' ', '-')}-{what}.png"))
        picture.save(made[-1], optimize=True)
    return made


def page(known: Mapping[str, Any]) -> str:
    """The documentation's page."""
    sections = [INTRODUCTION]
    for axis in (axis for axis in AXES if axis in known):
        of = known[axis]
        pictures = " ".join(f"![{what}]({name})" for what, name in of.get("pictures", {}).items())
        sections += [f"## {TITLES[axis]}\n", *([f"{pictures}\n"] if pictures else []), table(axis, of) + "\n"]
        said = ", ".join(f"{name} {size / 2**20:g} MiB" for name, size in of["caches"].items())
        quick = "**With --quick, which measures nothing.** " if of["quick"] else ""
        sections.append(f"{quick}{described(of['about'])} Commit {of['commit']}. Caches: {said}.\n")
    return "\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", choices=[*AXES, []], help="default: all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="few points, once")
    parser.add_argument("--write", type=Path, metavar="PATH", help="put results into PATH.json, PATH.md and pictures")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    found = {}
    for axis in args.axes or AXES:
        found[axis] = measure(axis, args)
        about = surroundings(args.threads, ("torch", "numpy"))
        found[axis] |= {"about": about, "commit": commit(), "caches": caches(), "quick": args.quick}
        if args.write is not None:
            names = [picture.name for picture in plots(args.write, axis, found[axis])]
            found[axis]["pictures"] = dict(zip(("time", "memory"), names, strict=True))
            keep(args.write, found, page)
    print(f"\n{page(found)}")


if __name__ == "__main__":
    main()
