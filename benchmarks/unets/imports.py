"""What it costs to import each library's networks and samplers: whole processes by the clock."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.blocks import whole
from common.measuring import environment

_STATEMENTS = {
    "nothing": "pass",
    "torch": "import torch",
    "guided-diffusion": "import guided_diffusion.unet, guided_diffusion.respace",
    "azula": "import azula.plugins.adm, azula.sample",
    "diffusers": "from diffusers import UNet2DModel, DDIMScheduler",
    "denoising-diffusion-pytorch": "from common.installing import stand_in; stand_in(); "
    "import denoising_diffusion_pytorch",
    "**undiffuse**": "import undiffuse.models, undiffuse.sampling",
}


def measure(python: Path, repeats: int, threads: int) -> dict[str, dict[str, Any]]:
    """Seconds of a process that imports and ends, in turns."""
    calls = {name: partial(_seconds, [str(python), "-c", does], threads) for name, does in _STATEMENTS.items()}
    for call in calls.values():
        call()  # the first fills the disk's cache
    return whole(calls, repeats)


def _seconds(command: list[str], threads: int) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(threads))
    elapsed = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return elapsed


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Medians, and by how much they exceed torch's."""
    medians = {name: statistics.median(of["runs"]) for name, of in found.items()}
    lines = ["| a process that imports | s | beyond torch |", "|---|---:|---:|"]
    for name, seconds in medians.items():
        star = "" if found[name]["calm"] else "*"
        beyond = "" if name in ("nothing", "torch") else f"{seconds - medians['torch']:.2f}"
        lines.append(f"| {name} | {seconds:.2f}{star} | {beyond} |")
    return "\n".join([*lines, "", counted(found)])


def counted(found: Mapping[str, Mapping[str, Any]]) -> str:
    """How many processes there were of a kind, and what a star means if there is one."""
    counts = [len(of["runs"]) for of in found.values()]
    said = f"Medians of {min(counts)} to {max(counts)} processes each, in turns."
    busy = " A star: none was undisturbed, and the time is that of a busy machine."
    return said + (busy if not all(of["calm"] for of in found.values()) else "") + "\n"
