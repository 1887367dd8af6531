"""`python -m faults`, in the folder tests: the whole suite, and docs/faults.md made of what it tried."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from faults.outcomes import MOMENTS
from faults.page import DOCS, RECORD, write


def main() -> int:
    """Runs the tests, and writes the page if all pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="disturbances of each kind for each command")
    parser.add_argument("--processes", default="auto", help="tests at once")
    parser.add_argument("--only", default="", help="tests as pytest -k chooses them; their rows join those of the page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "faults.json"
        os.environ.update({MOMENTS: str(args.moments), RECORD: str(file)})
        if args.only:
            shutil.copy(DOCS / "faults.json", file)
        words = [str(Path(__file__).parent), "-m", "slow or not slow", "-n", args.processes, "-k", args.only]
        status = int(pytest.main(words))
        if status == 0:
            write(file)
    return status


if __name__ == "__main__":
    sys.exit(main())
