"""Processes share sampling, editing, encoding and measuring; what they make does not depend on their number."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from support.cli_runs import write_images, write_model
from support.training_runs import Processes
from undiffuse import distributed
from undiffuse.cli import main
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.run import SamplingRun
from undiffuse.util.progress import NoProgress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")


def share(folder: str) -> None:
    """23 items in batches of 4; rank 1 is slow."""
    with distributed.join() as job:
        bar, mine = NoProgress(), []
        for batch, shared in job.shared(list(range(100, 123)) if job.is_main else [], 4 if job.is_main else 0, bar):
            time.sleep(0.4 if job.rank == 1 else 0.02)
            shared.advance(len(batch))
            mine.append(batch)
        fails = job.main_first(lambda main: "first" if main else "later")
        gathered, sent = job.gather_json([job.rank]), job.broadcast_json({"é": job.rank})
        try:
            job.main_first(lambda main: int("x"))
        except ValueError as error:
            fails += f": {error}"
    found = {"mine": mine, "done": bar.done, "fails": fails, "gathered": gathered, "sent": sent}
    Path(folder, f"{job.rank}.json").write_text(json.dumps(found))


def test_every_batch_is_taken_once_and_a_fast_process_takes_more(tmp_path: Path) -> None:
    assert Processes(share, str(tmp_path), world_size=3).join() == [0, 0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    batches = sorted(batch for part in found for batch in part["mine"])
    assert batches == [list(range(k, min(k + 4, 123))) for k in range(100, 123, 4)]
    assert len(found[1]["mine"]) <= 2
    assert all(len(part["mine"][0]) == 4 for part in found)
    assert found[0]["done"] == 23  # the bar of rank 0 shows the work of all
    assert [part["fails"][:7] for part in found] == ["first: ", "later: ", "later: "]
    assert all("invalid literal" in part["fails"] for part in found)
    assert all(part["gathered"] == [[0], [1], [2]] and part["sent"] == {"é": 0} for part in found)


@pytest.mark.parametrize(
    ("count", "size", "processes"), [(5, 4, 3), (4, 4, 3), (9, 4, 2), (1, 4, 2), (0, 4, 2), (13, 4, 4)]
)
def test_batches_are_dealt_once_and_no_process_begins_with_a_short_one(count: int, size: int, processes: int) -> None:
    class Store(dict):  # type: ignore[type-arg]
        def add(self, key: str, amount: int) -> int:
            self[key] = self.get(key, 0) + amount
            return int(self[key])

    store, taken = Store(), []
    number, short = -(-count // size), bool(count % size)
    for rank in reversed(range(processes)):
        job = distributed.Job(distributed.job.Launch(rank=rank, world_size=processes), store)
        mine = list(job._batches(number, short, 1))
        assert not short or number < 2 or mine[:1] != [number - 1]
        taken += mine
    assert sorted(taken) == list(range(number))


def commands(folder: str, model: str, images: str) -> None:
    """All commands that share work; what they print goes into a file for each process."""
    rank = os.environ.get("RANK", "0")
    sys.stdout = open(Path(folder).parent / f"{Path(folder).name}-{rank}.txt", "w")  # noqa: SIM115
    os.chdir(folder)  # records hold the paths that are given
    common, out = ["--device", "cpu", "--batch", "3"], Path()
    fast = ["--model", model, "--steps", "3", *common]
    assert main(["sample", *fast, "--count", "7", "--animation", "gif", "--out", str(out / "sample")]) == 0
    assert main(["encode", images, *fast, "--out", str(out / "z.safetensors")]) == 0
    assert main(["decode", str(out / "z.safetensors"), *common, "--out", str(out / "decoded")]) == 0
    assert main(["vary", images, *fast, "--variants", "2", "--format", "npz", "--out", str(out / "varied")]) == 0
    assert main(["nll", images, "--model", model, *common, "--terms", "4", "--out", str(out / "nll")]) == 0
    sys.stdout.close()


def contents(folder: Path) -> dict[str, bytes]:
    """All files by name; of an npz, which has times in it, the arrays."""
    import numpy as np

    out = {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                out |= {f"{name}/{key}": arrays[key].tobytes() for key in arrays.files}
        else:
            out[name] = path.read_bytes()
    return out


def test_three_processes_make_what_one_makes(tmp_path: Path) -> None:
    model, images = write_model(tmp_path / "model.safetensors"), write_images(tmp_path / "images")
    for name, processes in (("one", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        arguments = (str(tmp_path / name), str(model), str(images))
        assert Processes(commands, *arguments, world_size=processes).join() == [0] * processes
    one, three = contents(tmp_path / "one"), contents(tmp_path / "three")
    assert len(one) > 20
    assert sorted(one) == sorted(three)
    assert [name for name in one if one[name] != three[name]] == []
    assert "7 images made" in (tmp_path / "three-0.txt").read_text()
    assert [(tmp_path / f"three-{rank}.txt").read_text() for rank in (1, 2)] == ["", ""]


def sample(folder: str, model: str, count: int) -> None:
    pipeline = Pipeline.from_pretrained(model, device="cpu", solver="ddim", steps=8)
    SamplingRun.of(pipeline, folder, count=count, batch=2).run(progress=False)


def test_a_run_of_several_killed_processes_is_finished_by_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors")
    processes = Processes(sample, str(tmp_path / "killed"), str(model), 24, world_size=3)
    end = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("*_seed0*.png"))) < 6 and time.monotonic() < end:
        time.sleep(0.02)
    processes.kill()
    there = len(list((tmp_path / "killed").glob("*_seed0*.png")))
    assert 6 <= there < 24
    sample(str(tmp_path / "killed"), str(model), 24)
    sample(str(tmp_path / "whole"), str(model), 24)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
