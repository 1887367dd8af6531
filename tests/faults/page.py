"""docs/faults.md: what was tried and what came of it, made from a record that the tests write."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz.page import read, section

RECORD = "UNDIFFUSE_FAULTS_RECORD"
"""The environment variable with the JSON file that tests add their rows to."""
DOCS = Path(__file__).resolve().parents[2] / "docs"
KINDS = {
    "kill": "`kill -9` before a change of a file",
    "kill at any time": "`kill -9` at a random time",
    "kill of a rank": "`kill -9` of either process of two, at a random time",
    "SIGTERM": "SIGTERM before a change of a file",
    "SIGTERM at any time": "SIGTERM at a random time",
    "SIGINT": "SIGINT before a change of a file",
    "full": "disk full from then on",
    "read-only": "disk read-only from then on",
    "gone": "disk gone from then on",
    "memory": "an error of memory before a change of a file",
    "network memory": "a network that runs out of memory, once and from then on",
    "NaN": "a network that gives NaN, once and from then on",
    "NaN weights": "a model file with NaN",
    "small disk": "a disk with room for 4 kB to 1 MB (tmpfs), a little more each time",
    "clock": "jumps of the clock by an hour to a year, forwards and backwards",
    "flip": "one bit of a stored file flipped",
    "cut": "a stored file cut short",
    "vanish": "half of the images vanish",
    "turn corrupt": "half of the images turn corrupt",
    "twice": "the command a second time in the same folder",
    "beside": "another command in the same folder",
    "power": "power loss: files that are flushed before they get their name, and the folder afterwards",
}


def record(kind: str, command: str, row: Mapping[str, Any], ranks: int = 1) -> None:
    """Adds what a test tried to the record, if one is kept."""
    path = os.environ.get(RECORD)
    if not path:
        return
    import fcntl

    kind = "kill of a rank" if ranks > 1 else kind
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = json.loads(file.read() or "{}")
        content.setdefault(kind, {})[command] = dict(row)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(content, indent=1, sort_keys=True) + "\n")


def page(content: Mapping[str, Mapping[str, Mapping[str, Any]]], fuzzed: Mapping[str, Mapping[str, int]]) -> str:
    """The page as Markdown.

    Args:
        content: The record of the suite.
        fuzzed: The counts of the fuzzer.
    """
    commands = sorted({name for rows in content.values() for name in rows})
    kinds = [kind for kind in KINDS if kind in content]
    totals: dict[str, int] = defaultdict(int)
    for kind in kinds:
        totals[kind] = sum(int(row["moments"]) for row in content[kind].values())
    lines = [
        "# Faults",
        "",
        "Every command that writes is disturbed while it works, in the ways that the first table lists. After each",
        "disturbance the same command is repeated where it was left. Its results must then equal those of a usual run,",
        "or the command must refuse with one clear message. A half-written file under a final name, a leftover",
        "temporary file or a traceback fails the test. An empty cell was not tried.",
        "",
        "`python -m faults` in the folder `tests` runs everything and writes this page (CONTRIBUTING.md); a part of it",
        "is in every test run. Moments before a change of a file are chosen among all openings for writing, renamings",
        "and removals that the command makes, so that they lie within its writes. "
        f"{sum(totals.values()):,} disturbances passed.",
        "",
        "| disturbance | times | commands |",
        "|---|---:|---:|",
        *(f"| {KINDS[kind]} | {totals[kind]:,} | {len(content[kind])} |" for kind in kinds),
        "",
        "By command:",
        "",
        "| command | " + " | ".join(kinds) + " |",
        "|---|" + "---:|" * len(kinds),
    ]
    for name in commands:
        cells = [str(content[kind][name]["moments"]) if name in content[kind] else "" for kind in kinds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + (f"\n{section(fuzzed)}" if fuzzed else "")


def write(record_file: Path) -> None:
    """Writes the page and its record into docs."""
    content = json.loads(record_file.read_text(encoding="utf-8"))
    (DOCS / "faults.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (DOCS / "faults.md").write_text(page(content, read()), encoding="utf-8")
