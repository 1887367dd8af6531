"""`torchrun --max-restarts` starts a training again whose process died, and it resumes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.training_runs import free_port, run
from undiffuse import checkpoints
from undiffuse.training import read_events

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by signals")

SCRIPT = """
import os, signal, sys
from pathlib import Path
from support.training_runs import run, tiny_task

task = tiny_task(dropout=0.0)
original, calls = task.losses, []

def losses(forward, inputs):
    calls.append(1)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1" and len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(forward, inputs)

task.losses = losses
run(Path(sys.argv[1]), task, steps=6, save_every=8, lr=1e-3, sharding=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_job_whose_process_died_is_started_again_and_resumes(tmp_path: Path, sharding: str) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    paths = [str(Path(__file__).resolve().parents[1]), *sys.path]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--master-port", str(free_port()), str(script), str(folder), sharding]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 1 (process" in done.stderr
    starts = [r["images"] for r in read_events(folder / "metrics.jsonl") if r["kind"] == "start"]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] >= 8
    run(tmp_path / "whole", steps=6, save_every=8, lr=1e-3, task=None)
    one, two = (checkpoints.read(checkpoints.latest(path)) for path in (tmp_path / "whole", folder))  # type: ignore[arg-type]
    assert one[1]["progress"]["images"] == two[1]["progress"]["images"] == 24
    assert set(one[0]) == set(two[0]) and all(torch.isfinite(tensor).all() for tensor in two[0].values())
