"""How fast the runtimes of a CPU are (`--runtime`), and what each costs at its start.

    python benchmarks/runtimes.py --write docs/benchmarks-runtimes   # all, kept for the documentation; 20 minutes
    python benchmarks/runtimes.py --models shipped --sides torch onnxruntime
    python benchmarks/runtimes.py --quick                            # does everything run? Measures nothing

Linux. The other libraries are installed into a virtual environment under build/benchmarks, or are those of --python.
All calls are made in one process, in turns: a round gives each side one call, and rounds begin with another side each.
Times are of the processor (all threads of the process) and of the clock; the first says more on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.installing import prepared
from common.measuring import ROOT, commit, described, environment, keep, surroundings

PEERS = {"guided-diffusion-sdk": "1.0.0"}
SUPPORT = ("numpy", "pillow", "safetensors", "tqdm", "onnx", "onnxscript", "onnxruntime==1.32.0", "openvino==2026.4.1")
SHIPPED = "fashion-mnist-32"
NAMES = {SHIPPED: "the shipped model", "S": "S"}
SIDES = {  # (runtime, precision); "guided" is guided-diffusion in PyTorch, without more
    "guided": ("guided", "fp32"),
    "torch": ("torch", "fp32"),
    "inductor": ("inductor", "fp32"),
    "onnxruntime": ("onnxruntime", "fp32"),
    "openvino": ("openvino", "fp32"),
    "torch-bf16": ("torch", "bf16"),
    "openvino-bf16": ("openvino", "bf16"),
}
TITLES = {
    "guided": "guided-diffusion", "torch": "**undiffuse**", "inductor": "`inductor` (torch.compile)",
    "onnxruntime": "`onnxruntime`", "openvino": "`openvino`", "torch-bf16": "**undiffuse bf16**",
    "openvino-bf16": "`openvino`, bf16",
}  # fmt: skip
BATCHES = (1, 8)


def loaded(side: str, model: str, folder: Path) -> Callable[[Any], Any]:
    """A side's network, ready to be called with the arguments of `inputs`."""
    import torch
    from safetensors.torch import load_file
    from unets.models import find

    from undiffuse.denoiser import ProcessConfig
    from undiffuse.models import DiffusionModel, load_model
    from undiffuse.nets import UNetConfig
    from undiffuse.runtimes import load_runner

    runtime, precision = SIDES[side]
    if runtime == "guided":
        from common.installing import stand_in

        stand_in()
        from guided_diffusion.unet import UNetModel

        net = UNetModel(**find(model).arguments)
        net.load_state_dict(load_file(find(model).weights(folder)))
        return net.eval()
    if model == SHIPPED:
        given = load_model(model)
    else:
        net = UNetConfig(**find(model).arguments).build()
        net.load_state_dict(load_file(find(model).weights(folder)))
        given = DiffusionModel(net.eval(), ProcessConfig(variance="learned_range"))
    return load_runner(given, runtime, precision, torch.device("cpu"))


def weights(task: dict[str, Any]) -> None:
    """Draws the weights of S unless they are there."""
    from unets.models import MODELS
    from unets.preparing import main

    main(Path(task["folder"]), [MODELS["S"]], diffusers=False)


def inputs(model: str, batch: int) -> tuple[Any, Any, Any]:
    """Noisy images, times and classes."""
    import torch

    channels = 1 if model == SHIPPED else 3
    x = torch.randn(batch, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    return x, torch.linspace(10, 900, batch), torch.arange(batch) % 10


def call(network: Callable[..., Any], given: tuple[Any, Any, Any]) -> Any:
    """One call without gradients."""
    import torch

    with torch.no_grad():
        return network(given[0], given[1], y=given[2])


def cell(task: dict[str, Any]) -> dict[str, Any]:
    """Times all sides of a model and a batch in turns, in this process; errors are relative to the largest output."""
    model, given = task["model"], inputs(task["model"], task["batch"])
    networks = {side: loaded(side, model, Path(task["folder"])) for side in task["sides"]}
    outputs = {side: call(network, given) for side, network in networks.items()}
    for network in networks.values():
        call(network, given)
    truth = outputs["torch"]
    errors = {side: float((out - truth).abs().max() / truth.abs().max()) for side, out in outputs.items()}
    cpu: dict[str, list[float]] = {side: [] for side in networks}
    wall: dict[str, list[float]] = {side: [] for side in networks}
    order = list(networks)
    for number in range(task["rounds"]):
        shift = number % len(order)
        for side in order[shift:] + order[:shift]:
            before = time.process_time(), time.perf_counter()
            call(networks[side], given)
            cpu[side].append(time.process_time() - before[0])
            wall[side].append(time.perf_counter() - before[1])
    timings = {
        side: {"cpu": statistics.median(cpu[side]), "wall": statistics.median(wall[side]), "spread": _spread(cpu[side]),
               "error": errors[side]}
        for side in networks
    }  # fmt: skip
    return {"model": model, "batch": task["batch"], "rounds": task["rounds"], "timings": timings}


def _spread(values: list[float]) -> float:
    """Half the distance of the quartiles, relative to the median."""
    if len(values) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def start(task: dict[str, Any]) -> dict[str, float]:
    """Seconds from the beginning of this process to a side's first output, of the clock and of all processors."""
    network = loaded(task["side"], task["model"], Path(task["folder"]))
    call(network, inputs(task["model"], 1))
    times = os.times()
    return {"wall": time.time() - task["began"], "cpu": sum(times[:4])}


class Bench:
    """Runs workers in the other libraries' environment, each with one thread."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.folder / "networks"
        pinned = [f"{name}=={version}" for name, version in PEERS.items()]
        self.python = args.python or prepared(args.folder / "runtimes-venv", SUPPORT, pinned)
        self.cache = args.folder / "runtimes-cache"
        self.worker("weights")

    def sides(self, model: str) -> list[str]:
        """The sides of a model; guided-diffusion has another network than the shipped one."""
        wanted = self.args.sides or list(SIDES)
        return ["torch", *(s for s in SIDES if s in wanted and s != "torch" and (s != "guided" or model != SHIPPED))]

    def worker(self, action: str, cache: Path | None = None, **task: Any) -> Any:
        """A worker's result."""
        sent = json.dumps({"action": action, "folder": str(self.folder), "began": time.time(), **task})
        command = [str(self.python), "-W", "ignore", __file__, "--worker", sent]
        surrounding = {**environment(1), "UNDIFFUSE_CACHE": str(cache or self.cache)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=surrounding)
        if done.returncode:
            sys.exit(f"a worker failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    def starts(self, model: str) -> dict[str, Any]:
        """By side in float32: the first start, with an empty cache, and the second."""
        found = {}
        for side in [side for side in self.sides(model) if SIDES[side][1] == "fp32"]:
            with tempfile.TemporaryDirectory(dir=self.args.folder) as cache:
                runs = [self.worker("start", Path(cache), side=side, model=model) for _ in range(2)]
            found[side] = dict(zip(("first", "second"), runs, strict=True))
            print(f"start, {model}, {side}: " + ", ".join(f"{run['wall']:.1f} s" for run in runs), flush=True)
        return found


def page(found: dict[str, Any]) -> str:
    """The documentation's page."""
    about = found["about"]
    lines = [
        "# Benchmarks of the runtimes", "",
        "Written by `python benchmarks/runtimes.py --write docs/benchmarks-runtimes`. Milliseconds of one call on one "
        "thread: processor time, and in brackets time of the clock, which on a busy machine contains other programs' "
        "work. Medians of calls in turns, all in one process. Errors are relative to the largest output, against "
        "undiffuse in float32.",
        "", described(about) + f" Commit {about['commit']}.", "",
    ]  # fmt: skip
    for cell in found["cells"]:
        lines += [f"**{NAMES[cell['model']]}, batch {cell['batch']}** ({cell['rounds']} rounds)", ""]
        lines += ["| | ms | +- | ratio to undiffuse float32 | error |", "|---|---:|---:|---:|---:|"]
        base = cell["timings"]["torch"]["cpu"]
        for side, timing in cell["timings"].items():
            lines.append(
                f"| {TITLES[side]} | {1000 * timing['cpu']:.1f} ({1000 * timing['wall']:.1f}) | "
                f"{100 * timing['spread']:.0f}% | {base / timing['cpu']:.2f} | "
                + ("-" if side == "torch" else f"{timing['error']:.1e}") + " |"
            )  # fmt: skip
        lines.append("")
    lines += [
        "## Starts", "",
        "Seconds from the start of a process to the first output (one image): of all processors, and in brackets of "
        "the clock. The first start has an empty cache, so that it exports or compiles; the second does not.", "",
        "| | first start, s | second start, s |", "|---|---:|---:|",
    ]  # fmt: skip
    for model, sides in found["starts"].items():
        for side, runs in sides.items():
            both = [f"{runs[when]['cpu']:.1f} ({runs[when]['wall']:.1f})" for when in ("first", "second")]
            lines.append(f"| {NAMES[model]}, {TITLES[side]} | {both[0]} | {both[1]} |")
    return "\n".join(lines) + "\n"


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What the results were measured on, and with which versions."""
    found = surroundings(1, ("torch", "numpy"))
    found["versions"] |= {**PEERS, **dict(pin.split("==") for pin in SUPPORT if "==" in pin)}
    return found | {"commit": commit(), "quick": args.quick}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(NAMES), default=list(NAMES), help="only these")
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), help="only these, and undiffuse in float32")
    parser.add_argument("--rounds", type=int, default=25, help="calls of each side (default 25)")
    parser.add_argument("--quick", action="store_true", help="one call of each side")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/benchmarks", help="environment, weights, cache")
    parser.add_argument("--python", type=Path, help="of an environment with the other libraries (default: make one)")
    parser.add_argument("--write", type=Path, metavar="PATH", help="put the results into PATH.json and PATH.md")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        print(json.dumps({"cell": cell, "start": start, "weights": weights}[args.worker["action"]](args.worker)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    rounds = 1 if args.quick else args.rounds
    found: dict[str, Any] = {"starts": {}, "cells": []}
    for model in args.models:
        for batch in BATCHES:
            cell_ = bench.worker("cell", model=model, batch=batch, rounds=rounds, sides=bench.sides(model))
            found["cells"].append(cell_)
            for side, timing in cell_["timings"].items():
                print(f"{model}, batch {batch}, {side}: {1000 * timing['cpu']:.1f} ms", flush=True)
            if args.write is not None:
                keep(args.write, {**found, "about": about(args)}, page)
    for model in (model for model in args.models if model == "S"):
        found["starts"][model] = bench.starts(model)
    found["about"] = about(args)
    if args.write is not None:
        keep(args.write, found, page)
    print(f"\n{page(found)}")


if __name__ == "__main__":
    main()
