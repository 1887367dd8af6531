"""The page of the networks' benchmark, from its results alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from common.measuring import described
from unets import imports

INTRODUCTION = """# Benchmarks of the networks

Written by `python benchmarks/networks.py --write docs/{name}` from docs/{name}.json;
benchmarks/README.md explains how the numbers are measured.
All sides of a table were timed in turns, each in a process of its
own, on the same inputs; times are medians. A ratio is guided-diffusion's time over the row's: above 1 is faster.
`undiffuse evaluate` has a page of its own, benchmarks.md.
"""
PARTS = {
    "forward": "Forward pass",
    "training": "Training step: forward, backward, optimiser, average",
    "sampling": "25 steps of DDIM",
    "guided": "25 steps of DDIM with classifier guidance",
    "start": "From the start of a process to the first image",
    "imports": "Imports",
}
CELLS = ("forward", "training", "sampling", "guided")
ERRORS = {
    "forward": "error against float64",
    "training": "error of the gradient against guided-diffusion's",
    "sampling": "error of the images against guided-diffusion's",
    "guided": "error of the images against guided-diffusion's",
}
CALLS = {"forward": 1, "training": 3, "sampling": 25}  # forward passes whose work it is
FEW = 3
GUIDED, OURS = "guided", "ours"
Cell = Mapping[str, Any]


def page(
    known: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "benchmarks-networks",
) -> str:
    """All tables, and the summaries of other machines.

    Args:
        known: By "DEVICE PART", with results, peaks, work, and what it was measured on.
        others: The same of other machines, by the page that shows them.
        name: Of this page.
    """
    sections = [INTRODUCTION.format(name=name)]
    for device in dict.fromkeys(key.split()[0] for key in known):
        parts = {part: known[f"{device} {part}"] for part in PARTS if f"{device} {part}" in known}
        compared = {part: of for part, of in parts.items() if part in CELLS}
        sections.append(f"## {'GPU' if device == 'cuda' else 'CPU'}\n")
        if compared:
            sections += [_summary(compared), _roofline(next(iter(compared.values())))]
            sections += [_elsewhere(title, other, device) for title, other in (others or {}).items()]
        for part, of in parts.items():
            sections += [f"### {PARTS[part]}\n", _surroundings(of["about"])]
            if part == "start":
                sections.append(_start(of))
            elif part == "imports":
                sections.append(imports.table(of["results"]))
            else:
                sections += [_cell(cell, of) for cell in of["results"]]
    return "\n".join(sections)


def _elsewhere(name: str, known: Mapping[str, Any], device: str) -> str:
    parts = {part: known[f"{device} {part}"] for part in CELLS if f"{device} {part}" in known}
    if not parts:
        return ""
    about = next(iter(parts.values()))["about"]
    return f"### On another machine ([{name}]({name}.md))\n\n{described(dict(about))}\n\n{_summary(parts)}"


def _surroundings(about: Mapping[str, Any]) -> str:
    said = [described(dict(about)), f"Commit {about['commit']}; our kernels: {about['kernels']}."]
    if about["device"]:
        said.insert(0, f"{about['device']}.")
    if about["quick"]:
        said.insert(0, "**With --quick, which shows that everything runs and measures nothing.**")
    return " ".join(said) + "\n"


def _name(cell: Cell) -> str:
    return f"{cell['model']}, batch {cell['batch']}"


def _milliseconds(timing: Mapping[str, Any]) -> str:
    ms = 1000 * timing["seconds"]
    shown = f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"
    return shown + ("*" if len(timing["clean"]) < FEW else "")


def _ratio(cell: Cell, name: str) -> str:
    ratio = cell["timings"][GUIDED]["seconds"] / cell["timings"][name]["seconds"]
    return f"({ratio:.2f})" if name == "lucidrains" else f"{ratio:.2f}"


def _mebibytes(cell: Cell, name: str, which: str) -> str:
    found = cell["memory"].get(name, {})
    return f"{found[which] / 2**20:,.0f}" if found else "-"


def _share(cell: Cell, name: str, of: Mapping[str, Any]) -> str:
    """Of the peak of the row's precision, the work being that of the products and convolutions."""
    if cell["part"] not in CALLS:
        return "-"
    work = of["work"][cell["model"] + (" lucidrains" if name == "lucidrains" else "")]["flop"]
    speed = work * cell["batch"] * CALLS[cell["part"]] / cell["timings"][name]["seconds"]
    peak = of["peaks"].get(of["about"]["sides"][name]["precision"])
    return f"{speed / peak:.0%}" if peak else "-"


def _cell(cell: Cell, of: Mapping[str, Any]) -> str:
    lines = [
        f"**{_name(cell)}**\n",
        f"| | ms | +- | ratio | of the peak | {ERRORS[cell['part']]}: max | rms | memory, MiB | beyond weights |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, timing in cell["timings"].items():
        error = cell["errors"].get(name)
        columns = [
            of["about"]["sides"][name]["title"],
            _milliseconds(timing),
            f"{timing['spread']:.0%}",
            _ratio(cell, name) if GUIDED in cell["timings"] else "-",
            _share(cell, name, of),
            *([f"{error['max']:.1e}", f"{error['rms']:.1e}"] if error else ["-", "-"]),
            _mebibytes(cell, name, "peak"),
            _mebibytes(cell, name, "beyond"),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    blocks = [len(timing["clean"]) for timing in cell["timings"].values()]
    aside = sum(len(timing["set_aside"]) for timing in cell["timings"].values())
    lines.append(f"\n{min(blocks)} to {max(blocks)} undisturbed blocks a row, {aside} set aside.")
    if min(blocks) < FEW:
        lines.append(f"A star marks rows with fewer than {FEW}, whose time may be that of a busy machine.")
    return "\n".join(lines) + "\n"


def _summary(parts: Mapping[str, Any]) -> str:
    """A row a cell: ours against the original and against the best of the same network's other implementations."""
    sides = next(iter(parts.values()))["about"]["sides"]
    ours = [name for name in sides if name.startswith("ours") and "pure" not in name]
    titles = [sides[name]["title"].strip("*") for name in ours]
    lines = [
        "| | guided-diffusion, ms | " + " | ".join(f"{title}, ratio" for title in titles) + " | best other in float32 "
        "| guided-diffusion, MiB | " + " | ".join(f"{title}, MiB" for title in titles) + " |",
        "|---|" + "---:|" * (3 + 2 * len(ours)),
    ]
    for part, of in parts.items():
        for cell in of["results"]:
            timings = cell["timings"]
            if GUIDED not in timings:
                continue
            peers = [n for n in ("guided", "azula", "diffusers") if n in timings]
            best = min(peers, key=lambda name: timings[name]["seconds"])
            columns = [
                f"{PARTS[part].split(':')[0]}, {_name(cell)}",
                _milliseconds(timings[GUIDED]),
                *(f"**{_ratio(cell, name)}**" if name in timings else "-" for name in ours),
                f"{_ratio(cell, best)} ({sides[best]['title']})",
                _mebibytes(cell, GUIDED, "peak"),
                *(_mebibytes(cell, name, "peak") for name in ours),
            ]
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _roofline(of: Mapping[str, Any]) -> str:
    peaks = [(name, value) for name, value in of["peaks"].items() if " " not in name]
    said = ", ".join(f"{value / 1e12:.3g} TFLOP/s in {name}" for name, value in peaks)
    work = of["work"]
    networks = "; ".join(
        f"{name}: {w['parameters'] / 1e6:.1f} M parameters, {w['flop'] / 1e9:.2f} GFLOP" for name, w in work.items()
    )
    return (
        f"The peak is the fastest of matrix products and 3x3 convolutions measured here: {said}. A forward pass of one "
        f"image: {networks} (lucidrains: what denoising-diffusion-pytorch has in its place; its ratios, in brackets, "
        "are not for equal work).\n"
    )


def _start(of: Mapping[str, Any]) -> str:
    stages = ("torch", "library", "call", "image")
    lines = [
        "| seconds | interpreter, torch | library, network, weights | first call | image, 25 steps | together | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in of["results"].items():
        runs = found["runs"]
        seconds = [statistics.median(run["seconds"][stage] for run in runs) for stage in stages]
        together = statistics.median(sum(run["seconds"][stage] for stage in stages) for run in runs)
        memory = statistics.median(run["memory"] for run in runs) / 2**20
        star = "" if found["calm"] else "*"
        columns = [*(f"{s:.2f}" for s in seconds), f"{together:.2f}{star}", f"{memory:,.0f}"]
        lines.append(f"| {of['about']['sides'][name]['title']} | {' | '.join(columns)} |")
    return "\n".join([*lines, "", "Model S, one image, a fresh process each. " + imports.counted(of["results"])])
