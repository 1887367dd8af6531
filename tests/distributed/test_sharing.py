"""Processes share sampling, editing, encoding and measuring; what they make does not depend on their number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.cli_runs import write_images, write_model
from support.training_runs import Processes
from undiffuse import distributed
from undiffuse.cli import main
from undiffuse.kernels import autotune, timing_table
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.run import SamplingRun
from undiffuse.util.progress import NoProgress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")


CASE, WAYS = ("conv3x3_packed", "fp32", 32, 32, 8, 8), ("winograd", "packed", "torch")


def share(folder: str) -> None:
    """23 items in batches of 4; rank 1 is slow. Each process has timed an implementation of its own as the fastest."""
    table = timing_table.TimingTable(Path(folder, "no table"))
    rank = int(os.environ["RANK"])
    table.entries[str(timing_table.Case.of(*CASE, 8))] = timing_table.Entry(WAYS[rank], {WAYS[rank]: 1.0})
    autotune._table = table
    with distributed.join() as job:
        bar, mine = NoProgress(), []
        for batch, shared in job.shared(list(range(100, 123)) if job.is_main else [], 4 if job.is_main else 0, bar):
            time.sleep(0.4 if job.rank == 1 else 0.02)
            shared.advance(len(batch))
            mine.append(batch)
        fails = job.main_first(lambda main: "first" if main else "later")
        gathered, sent = job.gather_json([job.rank]), job.broadcast_json({"é": job.rank})
        chosen = autotune._decide(CASE, 8, WAYS, lambda *given: lambda: None, 0.0)
        try:
            job.main_first(lambda main: int("x"))
        except ValueError as error:
            fails += f": {error}"
    found = {"mine": mine, "done": bar.done, "fails": fails, "gathered": gathered, "sent": sent, "chosen": chosen}
    Path(folder, f"{job.rank}.json").write_text(json.dumps(found))


def test_every_batch_is_taken_once_and_a_fast_process_takes_more(tmp_path: Path) -> None:
    assert Processes(share, str(tmp_path), world_size=3).join() == [0, 0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    batches = sorted(batch for part in found for batch in part["mine"])
    assert batches == [list(range(k, min(k + 4, 123))) for k in range(100, 123, 4)]
    assert len(found[1]["mine"]) <= 2
    assert all(len(part["mine"][0]) == 4 for part in found)
    assert found[0]["done"] == 23  # the bar of rank 0 shows the work of all
    assert len({part["chosen"] for part in found}) == 1 and found[0]["chosen"] in WAYS
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


def mistakes(folder: str, model: str) -> None:
    """Each command line is wrong in all processes; the last one is not shared."""
    rank = os.environ["RANK"]
    for name in ("out", "err"):
        setattr(sys, f"std{name}", open(Path(folder) / f"{rank}.{name}", "w"))  # noqa: SIM115
    for words in (["sample", "--stepz", "3"], ["sample", "--model", str(Path(folder) / "nowhere.safetensors")]):
        assert main(words) == 2
    assert main(["inspect", model]) == 0
    for name in ("out", "err"):
        getattr(sys, f"std{name}").close()


def test_a_mistake_is_reported_once_and_other_commands_run_once(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors")
    assert Processes(mistakes, str(tmp_path), str(model), world_size=2).join() == [0, 0]
    told = (tmp_path / "0.err").read_text()
    assert "no option --stepz" in told and told.count("nowhere.safetensors") == 1
    assert (tmp_path / "1.err").read_text() == (tmp_path / "1.out").read_text() == ""
    assert "diffusion" in (tmp_path / "0.out").read_text()


@pytest.mark.slow
def test_processes_of_one_command_end_with_one_line(tmp_path: Path) -> None:
    words = ["train", "fashion-mnist", "--size", "8", "--width", "8", "--device", "cpu", "--processes", "2"]
    words += ["--batch", "4", "--images", "1M", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "undiffuse", *words]
    for end in ("killed", "stopped"):
        parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        children: list[int] = []
        deadline = time.monotonic() + 120
        size = (tmp_path / "run" / "metrics.jsonl").stat().st_size if (tmp_path / "run").exists() else 0
        while time.monotonic() < deadline:
            time.sleep(0.2)
            path = tmp_path / "run" / "metrics.jsonl"
            children = [int(n) for n in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
            if len(children) == 2 and path.exists() and path.stat().st_size > size + 300:
                break
        begin = time.monotonic()
        os.kill(children[1], signal.SIGKILL) if end == "killed" else parent.send_signal(signal.SIGUSR1)
        _, told = parent.communicate(timeout=60)
        errors = [line for line in told.splitlines() if "error" in line]
        assert time.monotonic() - begin < 10
        if end == "killed":
            assert parent.returncode == 1
            assert errors[0].startswith("undiffuse: error: rank 1 (process") and "Traceback" not in told
        else:
            assert parent.returncode == 75 and "stopped by SIGUSR1" in told
