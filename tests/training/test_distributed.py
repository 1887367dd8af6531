"""Two processes train the model that one would have trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.training_runs import Processes, run, tiny_task, told
from undiffuse import checkpoints, distributed
from undiffuse.training import NonFiniteError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")


def collectives(folder: str) -> None:
    with distributed.session("cpu") as ranks:
        mine = torch.arange(float(2 + 3 * ranks.rank)) + 100 * ranks.rank  # two and five numbers
        shared = [torch.full((2, 2), float(ranks.rank)).t()]
        ranks.broadcast_(shared)
        out = {
            "rank": ranks.rank,
            "main": ranks.is_main,
            "gather": ranks.gather(mine).tolist(),
            "gather2d": ranks.gather(torch.full((ranks.rank, 2), 7.0)).tolist(),
            "any": [ranks.any(False), ranks.any(ranks.rank == 1)],
            "gathered": ranks.gather_json([ranks.rank]),
            "json": ranks.broadcast_json({"é": [1, None]} if ranks.is_main else "ignored"),
            "broadcast": shared[0].tolist(),
        }
        ranks.barrier()
        Path(folder, f"{ranks.rank}.json").write_text(json.dumps(out))


def test_collectives(tmp_path: Path) -> None:
    assert Processes(collectives, str(tmp_path), world_size=2).join() == [0, 0]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "rank": rank,
            "main": rank == 0,
            "gather": [0.0, 1.0, 100.0, 101.0, 102.0, 103.0, 104.0],
            "gather2d": [[7.0, 7.0]],
            "any": [False, True],
            "gathered": [[0], [1]],
            "json": {"é": [1, None]},
            "broadcast": [[0.0, 0.0], [0.0, 0.0]],
        }


def train_with_trouble(folder: str, changes: dict[str, Any]) -> None:
    """Without dropout (whose masks depend on the process), with memory trouble in the second process only."""
    task = tiny_task(seed=distributed_rank(), dropout=0.0)  # fresh weights differ: those of rank 0 must win
    original = task.losses
    attempts = []

    def terms(forward: Any, inputs: Any) -> Any:
        attempts.append(len(inputs))
        if distributed_rank() == 1 and len(attempts) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(forward, inputs)

    task.losses = terms  # type: ignore[method-assign]
    run(Path(folder), task, **changes)


def train_to_a_bad_end(folder: str) -> None:
    """A loss that is not finite in the second process only."""
    task = tiny_task()
    original = task.losses

    def terms(forward: Any, inputs: Any) -> Any:
        out = original(forward, inputs)
        return {**out, "loss": out["loss"] * torch.where(inputs.positions == 7, float("nan"), 1.0)}

    task.losses = terms  # type: ignore
    with pytest.raises(NonFiniteError) as caught:
        run(Path(folder), task, max_bad_updates=0)
    Path(folder, f"{distributed_rank()}.json").write_text(json.dumps(caught.value.diagnosis))


def test_all_processes_stop_with_the_same_diagnosis(tmp_path: Path) -> None:
    assert Processes(train_to_a_bad_end, str(tmp_path), world_size=2).join() == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert (first["positions"], first["first"], first["last"]) == ([7], 4, 7)
    assert len(first["files"]) == len(first["t"]) == 1


def distributed_rank() -> int:
    import os

    return int(os.environ.get("RANK", "0"))


def test_two_processes_equal_one_and_memory_trouble_of_one_does_not_hang(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "timesteps": "loss-second-moment",
        "steps": 6,
        "ema_decays": (0.9,),
        "lr": 1e-3,
        "grad_clip": 0.5,
    }
    assert Processes(train_with_trouble, str(tmp_path / "two"), changes, world_size=2).join() == [0, 0]
    run(tmp_path / "one", tiny_task(dropout=0.0), **changes)
    one, two = (checkpoints.read(checkpoints.latest(tmp_path / n)) for n in ("one", "two"))  # type: ignore[arg-type]
    for name, tensor in one[0].items():
        if not name.endswith("exp_avg_sq"):
            torch.testing.assert_close(two[0][name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    assert (one[1]["progress"]["microbatch"], two[1]["progress"]["microbatch"]) == (4, 1)
    for a, b in zip(told(tmp_path / "one"), told(tmp_path / "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        for x, y in zip(a["by_quartile"]["mse"], b["by_quartile"]["mse"], strict=True):
            assert y == (None if x is None else pytest.approx(x, rel=1e-4))


def train_badly(folder: str) -> None:
    """An unsuitable folder is reported by every process; a batch that cannot be shared, too."""
    cases: list[tuple[dict[str, Any], str]] = [({"batch": 8}, "other settings"), ({"batch": 5}, "multiple of 2")]
    for changes, text in cases:
        with pytest.raises(ValueError, match=text):
            run(Path(folder), **changes)


def test_all_processes_report_an_unsuitable_folder(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    assert Processes(train_badly, str(tmp_path), world_size=2).join() == [0, 0]


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with distributed.session("cpu") as ranks:
        x = torch.randn(3)
        assert torch.equal(ranks.sum_(x.clone()), x)
        assert torch.equal(ranks.gather(x), x)
        assert ranks.any(True)
        assert not ranks.any(False)
        assert ranks.broadcast_json("é") == "é"
        assert ranks.is_main
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK, MASTER_ADDR, MASTER_PORT is not set; start the processes"):  # noqa: SIM117
        with distributed.session("cpu"):
            pass
