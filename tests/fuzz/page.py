"""The table of what was fuzzed, a part of docs/faults.md made from the counts of campaigns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORD = DOCS / "fuzz.json"
DOORS = {
    "answer": "HTTP answers of a server that lies, drips or never ends",
    "arguments": "command lines: options of every command with odd values",
    "cached": "what the cache folder keeps: features, indices, times, tuned grids",
    "checkpoint": "checkpoints, damaged anywhere",
    "diffusers": "folders of diffusers: configuration and scheduler",
    "evaluation": "evaluations",
    "folder": "folders of pictures, with tables and files of formats",
    "format": "IDX, CIFAR, TFRecord, TIFF, GIF, PNG, DICOM, FITS, NIfTI, MATLAB",
    "frontier": "frontiers",
    "inspect": "`undiffuse inspect` of any content under any ending",
    "latents": "latents",
    "like": "weights with a description by another program's options",
    "manifest": "manifests of checkpoints",
    "npy": "npy files",
    "npz": "npz files: pictures, statistics, references",
    "options": "settings of the sampler and of guidance",
    "packed": "zips of pictures whose pixels are compared",
    "parquet": "parquet files",
    "path": "grids of noise levels and numbers of steps",
    "record": "records in pictures",
    "reference": "reference files of `undiffuse reference`",
    "report": "runs and evaluations as reports",
    "rows": "rows of measurements that are resumed",
    "run": "run folders: request, metrics, sessions",
    "safetensors": "safetensors files of other programs",
    "samples": "half-finished folders of samples",
    "settings": "settings of recipes and trainings",
    "sharded": "sharded checkpoints",
    "table": "tables of labels",
    "tar": "tar files (WebDataset)",
    "torchscript": "TorchScript files",
    "weights": "files of torch.save, trainers' files, pickles",
    "words": "values of options on the command line",
    "zip": "zips of pictures, with tables",
}


def section(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The section as Markdown."""
    tried = {door: row["random"] + row["guided"] for door, row in counts.items()}
    failed = sum(row["failed"] for row in counts.values())
    guided = sum(row["guided"] for row in counts.values())
    found = "none failed" if not failed else f"{failed:,} failed, and what they found is mended and tested"
    lines = [
        "## Damaged and hostile input",
        "",
        "A fuzzer damages honest files and values with knowledge of their forms and gives them to every door of the",
        "package. A refusal in one clear message and a result are both right. A traceback, ten seconds of computing,",
        "one gigabyte of memory, the end of the process, and damage that goes unnoticed where something could notice",
        f"it are failures. Of {sum(tried.values()):,} different inputs {found};",
        f"{guided:,} of them were chosen by coverage (libFuzzer).",
        "`python -m fuzz.campaign` in the folder `tests` goes on from there (CONTRIBUTING.md); a minute of it is in",
        "every test run. The limits that hostile files run into are listed in [data.md](data.md#limits).",
        "",
        "| door | inputs | refused | failed |",
        "|---|---:|---:|---:|",
        *(
            f"| {DOORS[door]} | {tried[door]:,} | {row['refused']:,} | {row['failed']:,} |"
            for door, row in sorted(counts.items(), key=lambda item: DOORS[item[0]].lower())
        ),
    ]
    return "\n".join(lines) + "\n"


def read() -> dict[str, dict[str, int]]:
    """The counts in docs."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def write(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Writes the counts and the page into docs."""
    from faults import page

    RECORD.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    content = json.loads((DOCS / "faults.json").read_text(encoding="utf-8"))
    (DOCS / "faults.md").write_text(page.page(content, read()), encoding="utf-8")
