"""Checkpoints are written beside the training; the time of a job is known to the run."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from support.training_runs import Processes, Recorder, free_port, run, tiny_task
from undiffuse import checkpoints
from undiffuse.cli import values
from undiffuse.cli.train import STOPPED
from undiffuse.training import saving
from undiffuse.training.deadline import OUT_OF_TIME, REQUEUE, Deadline
from undiffuse.training.events import read_events

WRITE = checkpoints.write


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[float]:
    """Makes every checkpoint take so long; returns the list of moments at which one was finished."""
    done: list[float] = []

    def write(path: Any, tensors: Any, manifest: Any) -> Any:
        time.sleep(seconds)
        written = WRITE(path, tensors, manifest)
        done.append(time.monotonic())
        return written

    monkeypatch.setattr(checkpoints, "write", write)
    return done


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"steps": 12, "save_every": 8, "log_every": 4, "keep": 10}
    run(tmp_path / "plain", **changes)
    recorder, seen = Recorder(), []
    done = slowly(monkeypatch, 0.4)
    outcome = run(
        tmp_path / "slow", listeners=[recorder, lambda r: seen.append((r.kind, r.images, len(done)))], **changes
    )
    assert ("train", 12, 0) in seen  # the first checkpoint, of 8 images, was not on disk yet
    assert len(done) == 6 and outcome.checkpoint == checkpoints.latest(tmp_path / "slow")  # the end waits for the last
    assert [r.images for r in recorder.of("save")] == [8, 16, 24, 32, 40, 48]
    for one, two in zip(*map(checkpoints.checkpoints, (tmp_path / "plain", tmp_path / "slow")), strict=True):
        (tensors, manifest), (others, other) = checkpoints.read(one), checkpoints.read(two)
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
        assert manifest["progress"]["images"] == other["progress"]["images"] == checkpoints.images_of(two)
        assert manifest["hashes"] == other["hashes"]


def test_a_checkpoint_that_fails_is_an_error_at_the_next_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def write(path: Any, tensors: Any, manifest: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the disk is full")
        return WRITE(path, tensors, manifest)

    monkeypatch.setattr(checkpoints, "write", write)
    with pytest.raises(OSError, match="0000000008.safetensors could not be written .the disk is full.; there is no"):
        run(tmp_path, steps=500, save_every=8)
    newest = checkpoints.latest(tmp_path)  # the state after the last update, once the error was known
    assert newest is not None and 8 <= checkpoints.images_of(newest) < 2000


def test_without_memory_for_a_copy_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "free_bytes", lambda device: 1000)
    done, seen = slowly(monkeypatch, 0.0), []
    run(tmp_path, steps=4, save_every=4, log_every=4, listeners=[lambda r: seen.append((r.kind, r.images, len(done)))])
    assert [(images, done) for kind, images, done in seen if kind == "train"] == [(4, 0), (8, 1), (12, 2), (16, 3)]


class Clock:
    """A clock that is set by hand."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("limit", "environ", "turn", "size", "ends_at"),
    [
        (3600.0, {}, 10.0, 0.0, 3600 - 15 - 30),  # one and a half turns, and half a minute
        (100.0, {}, 2.0, 0.0, 100 - 3 - 5),  # of a short limit a twentieth
        (3600.0, {}, 10.0, 10e9, 3600 - 15 - 30 - 200),  # ten gigabytes
        (None, {"SLURM_JOB_END_TIME": "1003600"}, 10.0, 0.0, 3600 - 15 - 30),
        (1800.0, {"SLURM_JOB_END_TIME": "1003600"}, 10.0, 0.0, 1800 - 15 - 30),
        (None, {"SLURM_JOB_END_TIME": "999000"}, 10.0, 0.0, None),  # extended meanwhile
        (None, {}, 10.0, 0.0, None),
    ],
)
def test_a_deadline_leaves_time_to_save(
    limit: float | None, environ: Mapping[str, str], turn: float, size: float, ends_at: float | None
) -> None:
    clock = Clock()
    begin = clock.now
    deadline = Deadline(limit, size, environ, clock, begin, now=begin)
    while not deadline.reached() and clock.now < begin + 4000:
        clock.now += turn
    assert clock.now - begin == pytest.approx(ends_at if ends_at is not None else 4000, abs=turn)


def test_a_run_ends_in_time_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3))
    outcome = run(tmp_path, steps=100_000, save_every=None, log_every=400)
    assert (outcome.stopped_by, STOPPED[outcome.stopped_by]) == (OUT_OF_TIME, REQUEUE)
    assert outcome.checkpoint is not None and checkpoints.images_of(outcome.checkpoint) == outcome.images > 0
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    again = run(tmp_path, steps=outcome.steps + 2, save_every=None, log_every=400)
    assert again.complete and again.steps == outcome.steps + 2


def train_until_usr1(folder: str) -> None:
    """Sends itself what Slurm sends before the end of a job."""
    task, calls = tiny_task(), []
    original = task.losses

    def losses(forward: Any, inputs: Any) -> Any:
        calls.append(1)
        if os.environ.get("SLURM_PROCID") == "1" and len(calls) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(forward, inputs)

    task.losses = losses  # type: ignore[method-assign]
    outcome = run(Path(folder), task, steps=400, save_every=None)
    sys.exit(STOPPED[outcome.stopped_by])


def under_srun(port: int, folder: str) -> None:
    """What srun sets in the place of what torchrun sets."""
    rank = os.environ.pop("RANK")
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name)
    os.environ.update(SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_STEP_NUM_TASKS="2", SLURM_STEP_ID="0")
    os.environ.update(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="localhost", MASTER_PORT=str(port))
    train_until_usr1(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")
def test_processes_of_srun_train_together_until_sigusr1(tmp_path: Path) -> None:
    assert Processes(under_srun, free_port(), str(tmp_path), world_size=2).join() == [REQUEUE, REQUEUE]
    last = list(read_events(tmp_path / "metrics.jsonl"))[-1]
    assert last["text"].startswith("stopped by SIGUSR1 after 12 images")
    newest = checkpoints.latest(tmp_path)
    assert newest is not None and checkpoints.images_of(newest) == 12


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("45m", 2700), ("3h50m", 13_800), ("1d12h30s", 129_630), ("3:50:00", 13_800), ("50:00", 3000),
        ("1-12:00:00", 129_600), ("1-12:00", 129_600), ("30min", 1800),
    ],
)  # fmt: skip
def test_times(text: str, seconds: float) -> None:
    assert values.time_span(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "h", "3x", "1:2", "-5", "inf"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time such as 45m"):
        values.time_span(text)
