"""How fast the evaluation is: its arithmetic against that of OpenAI's evaluator, all of it against torch-fidelity.

    python benchmarks/evaluation.py                       # both, small: a fifth of 50,000 x 10,000 images
    python benchmarks/evaluation.py arithmetic --scale 1  # all of them; 6 GB of memory
    python benchmarks/evaluation.py fidelity --images 1000
    python benchmarks/evaluation.py --write docs/benchmarks

Linux. `arithmetic` needs SciPy; `fidelity` makes a virtual environment of its own under build/benchmarks. README.md
says what is compared.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from common.measuring import keep
from quality import arithmetic, fidelity

PARTS = {"arithmetic": arithmetic, "fidelity": fidelity}
TITLES = {
    "arithmetic": "Everything after the network, against the arithmetic of OpenAI's evaluator",
    "fidelity": "From images to numbers, against torch-fidelity",
}
INTRODUCTION = """# Benchmarks

Written by `python benchmarks/evaluation.py --write docs/benchmarks`, from docs/benchmarks.json. benchmarks/README.md
explains how the numbers are measured. A ratio above 1 means that undiffuse takes less.
"""


def page(known: dict[str, Any]) -> str:
    """The documentation's page, of all results."""
    sections = [
        f"## {TITLES[name.split()[0]]}\n\n{PARTS[name.split()[0]].table(known[name])}\n" for name in sorted(known)
    ]
    return "\n".join([INTRODUCTION, *sections])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--scale", type=float, default=0.2, help="arithmetic: of 50,000 samples, 10,000 references")
    parser.add_argument("--distances", default="exact", help="arithmetic: as in undiffuse.metrics.manifold_metrics")
    parser.add_argument("--images", type=int, default=400, help="fidelity: samples, and as many reference images")
    parser.add_argument("--size", type=int, default=64, help="fidelity: side of the images")
    parser.add_argument("--repeats", type=int, default=3, help="runs a side, in turns")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="fidelity: environment, weights")
    parser.add_argument("--write", type=Path, metavar="PATH", help="put the results into PATH.json and PATH.md")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    for part in args.parts or PARTS:
        result = PARTS[part].measure(args)
        name = f"{part} {result['samples']}" if part == "arithmetic" else part
        if args.write is not None:
            keep(args.write, {name: result}, page)
        print(f"\n{TITLES[part]}\n\n{PARTS[part].table(result)}\n", flush=True)


if __name__ == "__main__":
    main()
