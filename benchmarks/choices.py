"""Is the implementation that is chosen by timing the fastest one? A network by the choice, and by every single way.

    python benchmarks/choices.py --write docs/benchmarks-choices
    python benchmarks/choices.py --models S --batches 1

Linux. All sides run in one process, in turns. "The choice" is what a user gets; the others pin one implementation for
all convolutions of a kind (UNDIFFUSE_KERNELS). The times of the cache folder are used, and made if there are none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common.blocks import Pace, interleaved
from common.measuring import commit, described, surroundings
from unets.models import MODELS, batch

from undiffuse import kernels
from undiffuse.kernels import convolution, products
from undiffuse.kernels.autotune import Plan, planned
from undiffuse.nets import UNetConfig
from undiffuse.nets.packing import can_pack
from undiffuse.nets.runner import prepare_for_inference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPENT = 2.0  # seconds of processor time for timing, as a training has


def pins(precision: str) -> list[str]:
    """Every combination of one implementation for all 3x3 and one for all 1x1 convolutions that exists here."""
    if not can_pack(DTYPES[precision]):
        return []
    dtype = DTYPES[precision]
    ways = (
        [f"conv3x3_packed={way}" for way in convolution.possible("conv3x3_packed", 64, 64, dtype)],
        [f"conv1x1_packed={way}" for way in products.possible(64, 64, 64, dtype)],
    )
    return [",".join(pair) for pair in product(*ways)]


def sides(name: str, size: int, precision: str) -> dict[str, Callable[[], Any]]:
    """Functions that call a network with drawn weights, by implementation."""
    inputs, calls = batch(MODELS[name], size), {}
    torch.manual_seed(0)
    net = UNetConfig(**MODELS[name].arguments).build().eval()
    for pin in ("timed", *pins(precision)):
        with kernels.using(pin):
            runner = prepare_for_inference(net, precision, torch.device("cpu"))
        calls["the choice" if pin == "timed" else pin] = partial(called, runner, inputs, pin, Plan(seconds=SPENT))
    return calls


@torch.no_grad()
def called(runner: Any, inputs: Any, pin: str, plan: Plan) -> None:
    with kernels.using(pin), planned(plan):
        runner(inputs.x, inputs.t.float(), y=inputs.y)


def cell(name: str, size: int, precision: str, pace: Pace) -> dict[str, Any]:
    found = {side: timing.result() for side, timing in interleaved(sides(name, size, precision), pace).items()}
    return {"model": name, "batch": size, "precision": precision, "sides": found, "about": about()}


def about() -> dict[str, Any]:
    return {"commit": commit(), **surroundings(torch.get_num_threads(), ("torch",))}


def page(cells: list[dict[str, Any]], name: str = "benchmarks-choices") -> str:
    lines = [
        "# Choices by timing",
        "",
        f"Written by `python benchmarks/choices.py --write docs/{name}`. A forward pass by the",
        "implementations that were chosen by timing, beside the best and the worst single implementation for all 3x3",
        "and all 1x1 convolutions. Medians of interleaved blocks in one process.",
        "",
        "| | the choice, ms | best single way, ms | | worst, ms | choice / best |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for one in cells:
        times = {side: 1e3 * result["seconds"] for side, result in one["sides"].items()}
        chosen = times.pop("the choice")
        if not times:
            continue
        best, worst = min(times, key=times.__getitem__), max(times.values())
        what = f"{one['model']}, batch {one['batch']}, {one['precision']}"
        row = f"{chosen:.1f} | {times[best]:.1f} | `{best}` | {worst:.1f} | **{chosen / times[best]:.2f}**"
        lines.append(f"| {what} | {row} |")
    lines += ["", f"{described(cells[-1]['about'])} Commit {cells[-1]['about']['commit']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["S", "M"], choices=["S", "M", "L"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=7, help="undisturbed blocks a side (default 7)")
    parser.add_argument("--write", type=Path, metavar="PATH", help="put the results into PATH.json and PATH.md")
    args = parser.parse_args()
    pace = Pace(rounds=args.rounds, most=2 * args.rounds, seconds=0.3)
    cells = []
    for name, size, precision in product(args.models, args.batches, args.precisions):
        if pins(precision):
            cells.append(cell(name, size, precision, pace))
            print(page(cells[-1:]).splitlines()[8], flush=True)
    if args.write and cells:
        args.write.with_suffix(".json").write_text(json.dumps(cells, indent=1) + "\n")
        args.write.with_suffix(".md").write_text(page(cells, args.write.name))


if __name__ == "__main__":
    main()
