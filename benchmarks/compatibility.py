"""What goes with what, for docs/compatibility.md: every prediction, variance, solver and guidance is run.

    python benchmarks/compatibility.py                   # run all cells, print the page
    python benchmarks/compatibility.py --write docs      # and write docs/compatibility.md

From a checkout with the package importable; about a minute on one core. The cells, what they must give and the page are
those of the tests (tests/support/compatibility.py, tests/solvers/test_compatibility.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tests.solvers.test_compatibility import EVERY, check, reason  # noqa: E402

from support.compatibility import page  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="DIR", help="write DIR/compatibility.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for why, count in check(EVERY).items():
        print(f"{count:7,}  {why}", flush=True)
    text = page(EVERY, reason)
    if args.write:
        (Path(args.write) / "compatibility.md").write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
