"""A signal to stop does not wait for pictures, validation or metrics; the resumed run shows what was missed."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from support.training_runs import Recorder, assert_same_run, run, tiny_data, tiny_task
from undiffuse import checkpoints
from undiffuse.training import read_events
from undiffuse.training.signals import Interrupted, StoppableRunner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
LOOKING: dict[str, Any] = {"preview_every": 16, "validate_every": 16, "validate_images": 6}


def shown(folder: Path) -> list[tuple[str, int]]:
    return [
        (r["kind"], r["images"])
        for r in read_events(folder / "metrics.jsonl")
        if r["kind"] in ("preview", "validation")
    ]


def stopped_at(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run that gets SIGTERM at one of the calls of the network with which it looks at itself."""
    calls: list[int] = []
    original = StoppableRunner.__call__

    def call(self: Any, *args: Any, **conditions: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **conditions)

    with monkeypatch.context() as patched:
        patched.setattr(StoppableRunner, "__call__", call)
        outcome = run(folder, tiny_task(), validation=tiny_data(6), save_every=None, **LOOKING)
    return outcome, len(calls)


@pytest.mark.parametrize(("number", "pending"), [(2, ["preview", "validate"]), (8, ["validate"])])
def test_a_signal_cuts_looks_short(
    tmp_path: Path, number: int, pending: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, calls = stopped_at(tmp_path / "parts", number, monkeypatch)
    assert calls == number  # not one more
    assert (outcome.stopped_by, outcome.images) == ("SIGTERM", 16)
    assert checkpoints.read_manifest(outcome.checkpoint)["progress"]["pending"] == pending
    for name in ("parts", "whole"):
        assert run(tmp_path / name, tiny_task(), validation=tiny_data(6), save_every=None, **LOOKING).complete
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert shown(tmp_path / "parts") == shown(tmp_path / "whole")
    pictures = [sorted(p.name for p in (tmp_path / name / "previews").iterdir()) for name in ("parts", "whole")]
    assert pictures[0] == pictures[1]


def test_at_the_end_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = stopped_at(tmp_path, 9, monkeypatch)  # the second look, after the last update
    assert (outcome.stopped_by, outcome.images, outcome.complete) == ("SIGTERM", 32, False)
    again = run(tmp_path, tiny_task(), validation=tiny_data(6), save_every=None, **LOOKING)
    assert again.complete
    assert "pending" not in checkpoints.read_manifest(again.checkpoint)["progress"]
    assert shown(tmp_path) == [("preview", 16), ("validation", 16), ("preview", 32), ("validation", 32)]


def test_nothing_is_called_once_the_run_is_to_stop() -> None:
    import torch

    runner = StoppableRunner(tiny_task().net, "fp32", torch.device("cpu"))
    runner.stopping = lambda: True
    with pytest.raises(Interrupted):
        runner(torch.zeros(1, 1, 8, 8), torch.zeros(1), y=torch.zeros(1, dtype=torch.long))


def test_a_look_that_memory_does_not_suffice_for_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    original, calls = StoppableRunner.__call__, itertools.count()

    def call(self: Any, *args: Any, **conditions: Any) -> Any:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args, **conditions)

    monkeypatch.setattr(StoppableRunner, "__call__", call)
    recorder = Recorder()
    assert run(tmp_path, validation=tiny_data(6), listeners=[recorder], **LOOKING).complete
    assert [r.values["text"] for r in recorder.of("note") if "memory" in r.values["text"]] == [
        "no preview at 16 images: memory did not suffice"
    ]
    assert shown(tmp_path) == [("validation", 16), ("preview", 32), ("validation", 32)]
