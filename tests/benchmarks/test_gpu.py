"""The benchmark on a GPU, dry: every stage on a CPU, what becomes of stages that fail or hang, and the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DOCS = BENCHMARKS.parent / "docs"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_dry_run_completes_every_stage(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), "--dry-run"], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "WHEELS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    stages = found["stages"]
    assert list(stages) == ["about", "peaks", "correctness", "speed tiny", "compiled"]
    assert {name: stage["status"] for name, stage in stages.items()} == dict.fromkeys(stages, "complete")
    checks = stages["correctness"]["results"]
    assert [check for check in checks if not check.get("ok", True)] == []
    names = ["norms", "networks", "trajectories", "graphs", "batches", "guidance", "precisions", "resumed"]
    assert list(dict.fromkeys(check["check"] for check in checks)) == names
    assert {"trajectories, ddim_guided", "trajectories, ddim_encoded"} <= {check.get("what") for check in checks}
    cells = {cell["part"]: cell for cell in stages["speed tiny"]["results"] + stages["compiled"]["results"]}
    assert list(cells) == ["forward", "training", "sampling", "guided", "compiled"]
    for cell in cells.values():
        assert {"ours-bf16"} <= set(cell["timings"])
        assert not [name for name in cell["failed"] if name.startswith("ours")], cell["failed"]
    assert cells["forward"]["flop"] > 1e6
    page = (tmp_path / "out" / "benchmarks-gpu.md").read_text()
    assert "its times mean nothing" in page and "**wrong**" not in page and "tiny, training step, batch 2" in page


def test_a_stage_that_fails_or_hangs_costs_its_own_time(benchmarks: None, tmp_path: Path) -> None:
    from gpu import main

    results: dict[str, Any] = {"stages": {}}
    main.run_stage("speed nothing", "cpu", 120.0, tmp_path, results)
    assert results["stages"]["speed nothing"]["status"] == "failed: [\"KeyError: 'nothing'\"]"
    began = time.monotonic()
    main.run_stage("correctness", "cpu", 0.1 - main.GRACE, tmp_path, results)
    assert results["stages"]["correctness"]["status"].startswith("stopped after")
    assert time.monotonic() - began < 60
    assert json.loads((tmp_path / "gpu.json").read_text()) == results


def test_a_side_that_fails_stops_no_other(benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from gpu import speed
    from unets.models import find

    reports: list[dict[str, Any]] = []
    bench = speed.Bench(find("tiny"), torch.device("cpu"), time.monotonic() + 600, reports.append)
    original = bench._library

    def library(name: str) -> Any:
        if name == "ours-fp16":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")
        return original(name)

    monkeypatch.setattr(bench, "_library", library)
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: None)
    bench.cell("forward", 1)
    bench.until = 0.0
    bench.cell("forward", 2)
    bench.close()
    first, second = reports
    assert first["failed"] == {
        "guided-fp16": "LookupError: guided_diffusion is not installed",
        "diffusers-fp16": "LookupError: diffusers is not installed",
        "ours-fp16": "OutOfMemoryError: CUDA out of memory. Tried to allocate",
    }
    assert set(first["timings"]) == {"ours-bf16", "ours-bf16-eager", "ours-bf16-torch"}
    assert first["errors"]["ours-bf16-eager"] == 0.0
    assert second["skipped"] == "no time was left"


def test_the_budgets_fit_into_eight_minutes(benchmarks: None) -> None:
    from gpu import main, speed

    assert main.TOTAL <= 480 - 2 * main.GRACE
    assert sum(main.STAGES.values()) - main.STAGES["compiled"] <= main.TOTAL - 20
    assert {name.removeprefix("speed ") for name in main.STAGES if name.startswith("speed")} | {"tiny"} == set(
        speed.CELLS
    )


def test_the_page_says_what_was_measured(benchmarks: None) -> None:
    from gpu.page import page

    data = DOCS / "benchmarks-gpu.json"
    known = json.loads(data.read_text()) if data.exists() else None
    assert (DOCS / "benchmarks-gpu.md").read_text() == page(known)
    timing = {"seconds": 0.002, "spread": 0.01, "first": 1.0, "beyond": 2**20}
    cell = {
        "model": "S", "part": "forward", "batch": 8, "flop": 1e12, "failed": {"diffusers-fp16": "not installed"},
        "timings": {"guided-fp16": {**timing, "seconds": 0.01}, "ours-bf16": timing}, "errors": {"ours-bf16": 0.01},
    }  # fmt: skip
    skipped = {"model": "S", "part": "guided", "batch": 1, "flop": 0.0, "skipped": "no time was left"}
    checks = [
        {"check": "graphs", "what": "equal", "error": 0.5, "allowed": 0.0, "ok": False},
        {"check": "norms", "what": "an error was raised", "ok": False, "message": "RuntimeError: no"},
    ]
    stages = {
        "peaks": {"status": "complete", "results": [{"bf16": 1e15, "bf16 product": 1e15}]},
        "correctness": {"status": "complete", "results": checks},
        "speed S": {"status": "stopped after 70 s", "results": [cell, skipped]},
    }
    text = page({"dry": False, "stages": stages})
    assert "| **undiffuse bf16** | 2.00 | 1% | 5.00 | 50% | 1.0 | 1 | 1.0e-02 |" in text
    assert "- speed S: stopped after 70 s" in text and "diffusers, fp16: not installed." in text
    assert "| graphs | equal | 0.5 | 0 | **wrong** |" in text and "RuntimeError: no" in text
    assert "S, 25 steps of DDIM with classifier guidance, batch 1**: not measured, no time was left." in text
