"""The page of the benchmark on a GPU, from its results alone. A program: RESULTS.json [docs/benchmarks-gpu]."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INTRODUCTION = """# Benchmarks on a GPU

Written by `python benchmarks/gpu/page.py` from docs/benchmarks-gpu.json, which `bash benchmarks/gpu.sh` measures on one
GPU in eight minutes; benchmarks/README.md says how.
"""
UNMEASURED = """**Not measured yet.** No GPU has been at hand. The script is tested on a CPU (`--dry-run`), where it
shows that everything runs and measures nothing. The targets it will be held against: 2.5 times guided-diffusion's fp16
at large batches, 5 times at batch 1 to 8, 2 times in training, more than half of the card's peak for M and larger
networks, and 1.3 times diffusers under `torch.compile`.
"""
DRY = "**A dry run on a CPU: it shows that everything runs, and its times mean nothing.**\n"
TITLES = {
    "guided-fp16": "guided-diffusion, its own fp16",
    "diffusers-fp16": "diffusers, fp16",
    "diffusers-fp16-compiled": "diffusers, fp16, torch.compile",
    "ours-bf16": "**undiffuse bf16**",
    "ours-fp16": "**undiffuse fp16**",
    "ours-bf16-eager": "undiffuse bf16, no CUDA graphs",
    "ours-bf16-torch": "undiffuse bf16, no CUDA graphs, PyTorch's norms",
    "ours-bf16-compiled": "undiffuse bf16, torch.compile",
}
PARTS = {
    "forward": "forward pass",
    "training": "training step",
    "sampling": "25 steps of DDIM",
    "guided": "25 steps of DDIM with classifier guidance",
    "compiled": "forward pass beside torch.compile",
    "compiled training": "training step beside torch.compile",
}
Stage = Mapping[str, Any]


def page(results: Mapping[str, Any] | None) -> str:
    """Returns the page; without results it says that nothing was measured."""
    if results is None:
        return f"{INTRODUCTION}\n{UNMEASURED}"
    stages: Mapping[str, Stage] = results["stages"]
    sections = [INTRODUCTION]
    if results.get("dry"):
        sections.append(DRY)
    sections += [_about(stages.get("about")), _state(stages), _correctness(stages.get("correctness"))]
    peaks = next(iter(stages.get("peaks", {}).get("results", [])), {})
    sections.append(_peaks(peaks))
    cells = [
        cell for name, stage in stages.items() if name.startswith(("speed", "compiled")) for cell in stage["results"]
    ]
    sections += [_summary(cells), *(_cell(cell, peaks) for cell in cells)]
    return "\n".join(section for section in sections if section)


def _about(stage: Stage | None) -> str:
    if stage is None or not stage["results"]:
        return "What it ran on was not recorded.\n"
    return ", ".join(f"{name} {value}" for name, value in stage["results"][0].items()) + ".\n"


def _state(stages: Mapping[str, Stage]) -> str:
    lines = [f"- {name}: {stage['status']}" for name, stage in stages.items() if stage["status"] != "complete"]
    return "\n".join(["Stages that did not complete:", "", *lines, ""]) if lines else ""


def _correctness(stage: Stage | None) -> str:
    if stage is None:
        return ""
    lines = ["## Correctness\n", "| check | | error | allowed | |", "|---|---|---:|---:|---|"]
    for found in stage["results"]:
        if "skipped" in found:
            lines.append(f"| {found['check']} | {found['skipped']} | | | |")
        elif "what" in found:
            error, allowed = (f"{found[key]:.2g}" if key in found else "" for key in ("error", "allowed"))
            what = found["what"] + (f": {found['message']}" if "message" in found else "")
            lines.append(f"| {found['check']} | {what} | {error} | {allowed} | {'' if found['ok'] else '**wrong**'} |")
    return "\n".join(lines) + "\n"


def _peaks(peaks: Mapping[str, float]) -> str:
    best = {name: value for name, value in peaks.items() if " " not in name}
    if not best:
        return "## Speed\n"
    said = ", ".join(f"{value / 1e12:.3g} TFLOP/s in {name}" for name, value in best.items())
    return (
        "## Speed\n\nSides of a table were timed in turns in one process; times are medians. A ratio is "
        "guided-diffusion's time over the row's. The peak is the fastest of matrix products and 3x3 convolutions "
        f'measured here: {said}. "First" is the first call, which builds kernels or compiles; memory is what calls '
        "need beyond weights and inputs. The difference is the root mean square one from the first row's output.\n"
    )


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['model']}, {PARTS[cell['part']]}, batch {cell['batch']}"


def _ratio(cell: Mapping[str, Any], name: str, other: str = "guided-fp16") -> str:
    timings = cell["timings"]
    if name not in timings or other not in timings:
        return "-"
    return f"{timings[other]['seconds'] / timings[name]['seconds']:.2f}"


def _summary(cells: list[Mapping[str, Any]]) -> str:
    names = ("diffusers-fp16", "ours-bf16-torch", "ours-bf16-eager", "ours-bf16", "ours-fp16")
    lines = [
        f"| ratio over guided-diffusion's fp16 | {' | '.join(TITLES[name].strip('*') for name in names)} |",
        "|---|" + "---:|" * len(names),
    ]
    for cell in cells:
        if not cell["part"].startswith("compiled") and "timings" in cell:
            lines.append(f"| {_name(cell)} | {' | '.join(_ratio(cell, name) for name in names)} |")
    return "\n".join(lines) + "\n"


def _cell(cell: Mapping[str, Any], peaks: Mapping[str, float]) -> str:
    if "skipped" in cell:
        return f"**{_name(cell)}**: not measured, {cell['skipped']}.\n"
    lines = [
        f"**{_name(cell)}**\n",
        "| | ms | +- | ratio | of the peak | first, s | memory, MiB | difference |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, timing in cell["timings"].items():
        peak = peaks.get("fp16" if "fp16" in name else "bf16", 0.0)
        share = f"{cell['flop'] / timing['seconds'] / peak:.0%}" if peak and cell["flop"] else "-"
        error = cell.get("errors", {}).get(name)
        columns = [
            TITLES[name], f"{1000 * timing['seconds']:,.2f}", f"{timing['spread']:.0%}", _ratio(cell, name), share,
            f"{timing['first']:.1f}", f"{timing['beyond'] / 2**20:,.0f}", f"{error:.1e}" if error else "-",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(columns)} |")
    lines += [f"\n{TITLES[name].strip('*')}: {why}." for name, why in cell["failed"].items()]
    return "\n".join(lines) + "\n"


def main(results: Path, target: Path) -> None:
    """Keeps results beside the documentation's page and writes that."""
    found = json.loads(results.read_text())
    target.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    target.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/benchmarks-gpu"))
