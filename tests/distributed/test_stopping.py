"""A signal to stop, to whichever process, ends what several processes make together: no look holds it up."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.evaluation_sets import Toy
from support.training_runs import Processes, run, tiny_config, tiny_data, tiny_task
from undiffuse import checkpoints, distributed
from undiffuse.distributed.stopping import CommonStop, Interrupted, together
from undiffuse.evaluation import Summary, extract
from undiffuse.evaluation.images import StoredImages
from undiffuse.training import engine, read_events
from undiffuse.training.evaluation import Evaluator
from undiffuse.training.signals import StoppableRunner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, and signalled")
SETTINGS: dict[str, Any] = {
    "steps": 4, "save_every": None, "preview_every": 16, "preview_count": 3, "preview_steps": 4, "validate_every": 16,
    "evaluate_every": 16, "evaluate_images": 20, "evaluate_steps": 6, "microbatch": 1,
}  # fmt: skip
CALLS = {"preview": 3 * 4, "validate": 8, "evaluate": 6}  # of the busier process at least, if nothing cuts them short


def evaluator() -> Evaluator:
    toy = Toy(channels=1, size=8)
    reference = Summary.of(extract(StoredImages(tiny_data(20)), [toy])[0])
    return Evaluator(extractors=[toy], references=[reference])


def train(folder: str, changes: dict[str, Any]) -> None:
    # Validation on sixteen images, one at a time.
    engine.train(
        tiny_task(dropout=0.0), tiny_data(), tiny_config(**SETTINGS | changes), folder, validation=tiny_data(16),
        evaluator=evaluator(),
    )  # fmt: skip


def signalled(folder: str, changes: dict[str, Any], look: str, rank: int) -> None:
    """One process gets SIGTERM a moment after the look has begun, wherever it is then. Notes the calls since."""
    calls: list[float] = []
    begun: list[float] = []
    original: Callable[..., Any] = StoppableRunner.__call__
    own = int(os.environ["RANK"])

    def call(self: Any, *args: Any, **conditions: Any) -> Any:
        calls.append(time.monotonic())
        time.sleep(0.1)
        return original(self, *args, **conditions)

    from undiffuse.training import reviews

    looking: Callable[..., Any] = getattr(reviews, look)

    def watched(*args: Any) -> Any:
        begun.append(time.monotonic())
        if own == rank:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        calls.clear()
        return looking(*args)

    StoppableRunner.__call__ = call  # type: ignore[method-assign]
    setattr(reviews, look, watched)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    train(folder, changes)
    Path(folder, f"{own}.json").write_text(json.dumps([len(calls), time.monotonic() - begun[0]]))


def shown(folder: Path) -> list[tuple[str, int]]:
    kinds = ("preview", "validation", "evaluation")
    return [(r["kind"], r["images"]) for r in read_events(folder / "metrics.jsonl") if r["kind"] in kinds]


@pytest.mark.parametrize("sharding", ["none", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("look", "rank"), [("preview", 1), ("validate", 0), ("evaluate", 1)])
def test_a_signal_to_one_process_cuts_every_look_short(tmp_path: Path, sharding: str, look: str, rank: int) -> None:
    changes = {"sharding": sharding}
    run_ = Processes(signalled, str(tmp_path), changes, look, rank, world_size=2)
    assert run_.join(900) == [0, 0]
    made = [json.loads((tmp_path / f"{k}.json").read_text())[0] for k in range(2)]
    assert max(made) < CALLS[look], made
    newest = checkpoints.latest(tmp_path)
    assert newest is not None
    progress = checkpoints.read_manifest(newest)["progress"]
    names = ["preview", "validate", "evaluate"]
    assert progress["pending"] == names[names.index(look) :]
    assert progress["images"] == 16
    assert Processes(train, str(tmp_path), changes, world_size=2).join(900) == [0, 0]
    newest = checkpoints.latest(tmp_path)
    assert newest is not None and "pending" not in checkpoints.read(newest)[1]["progress"]
    assert shown(tmp_path) == [("preview", 16), ("validation", 16), ("evaluation", 16)]


def pictures_of_a_split_network(folder: str) -> None:
    """Counts the images that each process computes."""
    seen: list[int] = []
    original = StoppableRunner.__call__

    def call(self: Any, x: Any, *args: Any, **conditions: Any) -> Any:
        seen.append(len(x))
        return original(self, x, *args, **conditions)

    StoppableRunner.__call__ = call  # type: ignore[method-assign]
    engine.train(
        tiny_task(dropout=0.0), tiny_data(), tiny_config(steps=1, preview_every=4, preview_count=5, sharding="fsdp"),
        folder,
    )  # fmt: skip
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


def test_processes_share_the_pictures_of_a_split_network(tmp_path: Path) -> None:
    assert Processes(pictures_of_a_split_network, str(tmp_path / "two"), world_size=2).join(900) == [0, 0]
    for rank in range(2):
        seen = json.loads((tmp_path / "two" / f"{rank}.json").read_text())
        assert seen and set(seen) == {3}, "five images are three for each of two processes, one of them twice"
    run(tmp_path / "one", tiny_task(dropout=0.0), steps=1, preview_every=4, preview_count=5)
    names = [sorted(file.name for file in (tmp_path / name / "previews").iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    from PIL import Image

    for name in names[0]:
        one, two = (torch.tensor(list(Image.open(tmp_path / n / "previews" / name).tobytes())) for n in ("one", "two"))
        assert int((one - two).abs().max()) <= 2, name


def stops(folder: str) -> None:
    with distributed.session("cpu") as ranks:
        stop = CommonStop(ranks, lambda: ranks.rank == 1)
        if ranks.rank == 1:
            assert stop()
        ranks.barrier()
        time.sleep(0.15)
        found = stop()
        with pytest.raises(Interrupted), together(ranks):
            if ranks.rank == 1:
                raise Interrupted
        with together(ranks):
            pass
        Path(folder, f"{ranks.rank}.json").write_text(json.dumps(found))


def test_one_stop_is_known_to_all(tmp_path: Path) -> None:
    assert Processes(stops, str(tmp_path), world_size=2).join() == [0, 0]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [True, True]


def test_alone_only_the_own_signal_counts() -> None:
    asked: list[bool] = [False, True]
    with distributed.session("cpu") as ranks:
        stop = CommonStop(ranks, lambda: asked.pop(0))
        with stop.told_while_waiting():
            assert [stop(), stop()] == [False, True]
        with pytest.raises(Interrupted), together(ranks):
            raise Interrupted
