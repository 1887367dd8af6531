"""A run that was interrupted, however, equals the one that was not."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from support.training_runs import Processes, Recorder, assert_same_run, run, tiny_data, tiny_task, told, train_tiny
from undiffuse import checkpoints
from undiffuse.kernels import Plan, autotune
from undiffuse.kernels.convolution import has_winograd
from undiffuse.training import read_events
from undiffuse.training import signals as signals_module
from undiffuse.training.signals import StopSignals

pytestmark = pytest.mark.usefixtures("one_thread")
needs_forkserver = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Interrupt(BaseException):
    """Stands for a kill in the middle of a run: no exception that anything handles."""


def interrupted(folder: Path, at_step: int, channels: int = 8, **changes: Any) -> None:
    """A run that dies in the middle of an update, after `at_step` of them."""
    task = tiny_task(channels=channels)
    original = task.losses
    calls = iter(range(10**6))

    def terms(*arguments: Any) -> Any:
        if next(calls) == at_step:
            raise Interrupt
        return original(*arguments)

    task.losses = terms  # type: ignore
    with pytest.raises(Interrupt):
        run(folder, task, **changes)


@pytest.mark.parametrize("timesteps", ["stratified", "loss-second-moment"])
def test_resumed_run_is_bit_identical(tmp_path: Path, timesteps: str) -> None:
    run(tmp_path / "whole", timesteps=timesteps)
    interrupted(tmp_path / "parts", 4, timesteps=timesteps)
    interrupted(tmp_path / "parts", 2, timesteps=timesteps)  # from checkpoint 12, dies at 20
    assert [checkpoints.images_of(p) for p in checkpoints.checkpoints(tmp_path / "parts")] == [12]
    outcome = run(tmp_path / "parts", tiny_task(seed=5), timesteps=timesteps)  # fresh weights do not matter
    assert outcome.complete
    assert outcome.images == 32
    assert outcome.steps == 8
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_kernels_of_a_run_are_kept_in_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"batch": 4, "winograd": ["conv3x3 fp32 64-64 8x8"]}
    seen: list[object] = []
    original = Plan.__init__

    def noted(self: Plan, batch: int | None = None, recorded: object = None, seconds: float = 0.0) -> None:
        seen.append(recorded)
        original(self, batch, recorded, seconds)

    monkeypatch.setattr(Plan, "__init__", noted)
    monkeypatch.setattr(Plan, "note", lambda self: {"kernels": chosen})
    interrupted(tmp_path / "parts", 4)
    assert not any(seen)
    run(tmp_path / "parts")
    assert chosen in seen


@pytest.mark.skipif(not has_winograd(32, 32, torch.float32), reason="no compiled convolution here")
def test_a_resumed_run_keeps_its_choices_whatever_is_timed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "timed")
    fastest = ["winograd"]
    monkeypatch.setattr(autotune, "_decide", lambda *given: fastest[0])
    run(tmp_path / "whole", tiny_task(channels=32))
    interrupted(tmp_path / "parts", 4, channels=32)
    fastest[0] = "torch"
    run(tmp_path / "parts", tiny_task(channels=32))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    run(tmp_path / "other", tiny_task(channels=32))
    with pytest.raises(AssertionError):  # the choice matters here
        assert_same_run(tmp_path / "whole", tmp_path / "other")


def test_loss_second_moment_history_is_saved(tmp_path: Path) -> None:
    run(tmp_path, timesteps="loss-second-moment")
    tensors, _ = checkpoints.read(checkpoints.latest(tmp_path), "sampler")  # type: ignore[arg-type]
    assert int(tensors["sampler.counts"].sum()) == 32
    filled = tensors["sampler.losses"][tensors["sampler.counts"] > 0]
    assert bool((filled[:, 0] > 0).all())


def test_a_longer_run_continues_a_finished_one(tmp_path: Path) -> None:
    run(tmp_path / "whole", images=32)
    run(tmp_path / "parts", images=16)
    again = Recorder()
    assert run(tmp_path / "parts", images=16, listeners=[again]).images == 16
    assert not again.of("train"), "a finished run has nothing left to do"
    config = (tmp_path / "parts" / "config.json").read_bytes()
    run(tmp_path / "parts", images=8, warmup_images=1, listeners=[again])
    assert not again.of("note"), "settings that nothing is trained with are not worth a word"
    assert (tmp_path / "parts" / "config.json").read_bytes() == config
    run(tmp_path / "parts", steps=8)
    assert told(tmp_path / "whole")[-1] == told(tmp_path / "parts")[-1]


def test_a_preview_is_told_before_the_checkpoint_that_would_skip_it(tmp_path: Path) -> None:
    """Killed between the two, the run resumes from the checkpoint before and draws the preview again."""
    kinds: list[str] = []
    run(tmp_path, images=8, preview_every=8, save_every=8, listeners=[lambda record: kinds.append(record.kind)])
    assert kinds.count("preview") == 1
    assert kinds.index("preview") < kinds.index("save")


def test_metrics_are_not_doubled(tmp_path: Path) -> None:
    interrupted(tmp_path, 6)  # checkpoint at 12; records at 8, 16 and 24 were written
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "images": 24, "lo')  # cut short by a kill
    run(tmp_path)
    images = [r["images"] for r in read_events(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert images == [8, 16, 24, 32]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_newest_checkpoint_falls_back(tmp_path: Path, damage: str) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts")
    newest = checkpoints.latest(tmp_path / "parts")
    assert newest is not None
    data = bytearray(newest.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[-10] ^= 0xFF
    newest.write_bytes(data)
    recorder = Recorder()
    run(tmp_path / "parts", listeners=[recorder])
    notes = [r.values["text"] for r in recorder.of("note")]
    assert any(newest.name in text and "checkpoint before it" in text for text in notes)
    assert recorder.of("start")[0].images == 24
    assert newest.with_name(newest.name + ".damaged").exists()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_all_checkpoints_damaged_is_an_error(tmp_path: Path) -> None:
    run(tmp_path, images=16)
    for path in checkpoints.checkpoints(tmp_path):
        path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no checkpoint of"):
        run(tmp_path)


def test_incompatible_settings_are_refused_with_the_differences(tmp_path: Path) -> None:
    run(tmp_path, images=16)
    before = (tmp_path / "checkpoints" / "0000000016.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"train.batch: 4 -> 8(.|\n)*train.seed: 0 -> 3"):
        run(tmp_path, batch=8, seed=3)
    with pytest.raises(ValueError, match=r"process.steps: 20 -> 30"):
        run(tmp_path, tiny_task(steps=30))
    with pytest.raises(ValueError, match=r"net.dropout: 0.1 -> 0.0"):
        run(tmp_path, tiny_task(dropout=0.0))
    with pytest.raises(ValueError, match=r"images to train on are others \(24 images then, 25 now"):
        run(tmp_path, data=tiny_data(25))
    with pytest.raises(ValueError, match=r"data.flip: True -> False"):
        run(tmp_path, data=tiny_data(flip=False))
    assert (tmp_path / "checkpoints" / "0000000016.safetensors").read_bytes() == before


def test_a_new_learning_rate_is_honoured_and_noted(tmp_path: Path) -> None:
    run(tmp_path, images=16)
    recorder = Recorder()
    run(tmp_path, lr=5e-3, precision="bf16", listeners=[recorder])
    assert recorder.of("train")[-1].values["lr"] == 5e-3
    notes = " ".join(r.values["text"] for r in recorder.of("note"))
    assert "train.lr: 0.01 -> 0.005" in notes
    assert "train.precision: 'fp32' -> 'bf16'" in notes


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    def second_run(record: Any) -> None:
        if record.kind == "train":
            with pytest.raises(ValueError, match=f"in use by process {os.getpid()}, which has been training since"):
                run(tmp_path)
            raise Interrupt

    with pytest.raises(Interrupt):
        run(tmp_path, listeners=[second_run])
    assert run(tmp_path, images=8).complete, "the folder is free again after the crash"


def kill_at_random_moments(folder: Path, world_size: int, kills: int, changes: dict[str, Any]) -> int:
    """Runs until done, killing all processes at random moments on the way; how often they were really killed."""
    killed = 0
    while True:
        processes = Processes(train_tiny, str(folder), changes, world_size=world_size)
        if killed == kills:
            assert processes.join() == [0] * world_size
            return killed
        metrics = folder / "metrics.jsonl"
        deadline = time.monotonic() + 30
        began = metrics.read_bytes() if metrics.exists() else b""
        while processes.alive and time.monotonic() < deadline:
            if (metrics.read_bytes() if metrics.exists() else b"") != began:
                break
            time.sleep(0.002)
        time.sleep(random.uniform(0.0, 0.15))  # anywhere: in a step, while a record or a checkpoint is written
        killed += processes.alive
        processes.kill()
        if not killed:
            return 0


@needs_forkserver
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_processes_resume_bit_identically(tmp_path: Path, world_size: int) -> None:
    changes = {"images": 64, "save_every": 12, "log_every": 8, "timesteps": "loss-second-moment"}
    assert Processes(train_tiny, str(tmp_path / "whole"), changes, world_size=world_size).join() == [0] * world_size
    killed = kill_at_random_moments(tmp_path / "parts", world_size, 2 if world_size == 1 else 1, changes)
    assert killed, "the run was over before it could be killed"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    leftovers = list((tmp_path / "parts" / "checkpoints").glob(".*"))
    assert not leftovers, "half-written files of killed processes are removed"


@needs_forkserver
@pytest.mark.parametrize(("number", "world_size"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_signal_saves_and_leaves(tmp_path: Path, number: signal.Signals, world_size: int) -> None:
    changes = {"images": 4 * 5000, "log_every": 4, "save_every": None}
    processes = Processes(train_tiny, str(tmp_path), changes, world_size=world_size)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("train") > 2):
        time.sleep(0.01)
    os.kill(processes.pids[-1], number)  # one process is told, all stop at the same step
    assert processes.join() == [0] * world_size
    last = list(read_events(metrics))[-1]
    assert last["kind"] == "end"
    assert last["text"].startswith(f"stopped by {number.name}")
    newest = checkpoints.latest(tmp_path)
    assert newest is not None
    assert checkpoints.images_of(newest) == last["images"]
    assert 0 < last["images"] < 4 * 5000


@pytest.mark.parametrize("announce", [True, False])
def test_the_first_signal_is_answered_at_once(announce: bool, capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals(announce=lambda: announce) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # launchers may send it twice
        told = capfd.readouterr().err
        assert signals.received == "SIGTERM"
    assert told == ("" if not announce else signals_module.STOPPING.decode())


@needs_forkserver
def test_second_signal_leaves_at_once(tmp_path: Path) -> None:
    processes = Processes(ignore_the_first_signal, str(tmp_path / "ready"))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (tmp_path / "ready").exists():
        time.sleep(0.01)
    child = processes.pids[0]
    os.kill(child, signal.SIGTERM)
    time.sleep(0.7)
    assert processes.alive
    os.kill(child, signal.SIGTERM)
    assert processes.join(10) == [128 + signal.SIGTERM]


def ignore_the_first_signal(ready: str) -> None:
    """A step that never ends."""
    with StopSignals():
        Path(ready).touch()
        while True:
            time.sleep(0.05)
