"""A process that dies, fails or stands still is named in one line, and the others end."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.training_runs import Processes, run, tiny_task
from undiffuse import checkpoints, distributed
from undiffuse.distributed import watch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")


def lines(folder: Path) -> list[str]:
    """What the processes wrote on stderr, without tracebacks of the tests' own processes."""
    return [line for path in sorted(folder.glob("*.err")) for line in path.read_text().splitlines() if "rank" in line]


def into_file(folder: str) -> None:
    """Sends stderr of this process to a file."""
    file = os.open(Path(folder) / f"{os.environ['RANK']}.err", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 2)


def end(folder: str, how: str, victim: int) -> None:
    into_file(folder)
    with distributed.join() as job:
        job.barrier()
        if job.rank == victim:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no such\nclass")
        if job.rank == 2:
            while True:  # busy, and waits for nobody
                time.sleep(0.1)
        job.barrier()


@pytest.mark.parametrize(
    ("how", "victim", "text"),
    [
        ("killed", 1, r"rank 1 \(process \d+ on \S+\) was killed( because memory ran out)? or crashed"),
        ("killed", 0, r"rank 0 \(process \d+ on \S+\) was killed( because memory ran out)? or crashed"),
        ("failed", 1, r"rank 1 \(process \d+ on \S+\) failed: no such class"),
    ],
)
def test_the_end_of_one_process_ends_all_within_ten_seconds(tmp_path: Path, how: str, victim: int, text: str) -> None:
    processes = Processes(end, str(tmp_path), how, victim, world_size=3)
    processes.children[victim].join(60)
    begin = time.monotonic()
    codes = processes.join(30)
    assert time.monotonic() - begin < 10
    assert 0 not in codes
    named = [line for line in lines(tmp_path) if line.startswith("undiffuse: ")]
    assert len(named) == 1, named
    assert re.fullmatch(rf"undiffuse: error: {text}; the job ends, and the same command resumes it", named[0])


def end_with_a_slow_line(folder: str) -> None:
    into_file(folder)
    watch._write = lambda line: time.sleep(1)
    with distributed.join() as job:
        job.barrier()
        if job.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.rank == 2:
            while True:
                time.sleep(0.1)
        job.barrier()


def test_all_hear_of_the_end_although_rank_0_leaves_before_it_has_said_so(tmp_path: Path) -> None:
    processes = Processes(end_with_a_slow_line, str(tmp_path), world_size=3)
    processes.children[1].join(60)
    begin = time.monotonic()
    processes.join(30)
    assert time.monotonic() - begin < 15


def stand(folder: str) -> None:
    into_file(folder)
    watch.STILL = 3.0
    with distributed.join() as job:
        job.barrier()
        if job.rank == 1:
            time.sleep(7)
        job.barrier()


def test_a_process_that_stands_still_is_named_and_may_go_on(tmp_path: Path) -> None:
    assert Processes(stand, str(tmp_path), world_size=3).join() == [0, 0, 0]
    (line,) = lines(tmp_path)
    assert re.fullmatch(
        r"undiffuse: rank 1 \(process \d+ on \S+\) has stood still for \d s in stand \(test_watch.py, line \d+\); "
        "the others wait for it",
        line,
    )


def stop_beating(folder: str) -> None:
    into_file(folder)
    watch.STILL, watch.SILENT = 1.0, 4.0
    with distributed.join() as job:
        job.barrier()
        if job.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        job.barrier()


def test_a_stopped_process_is_named_and_counts_as_dead_in_the_end(tmp_path: Path) -> None:
    processes = Processes(stop_beating, str(tmp_path), world_size=2)
    processes.children[0].join(60)
    assert processes.children[0].exitcode not in (0, None)
    processes.kill()
    first, second = lines(tmp_path)[:2]
    assert "rank 1" in first and "has given no sign of life for 1 s" in first
    assert "error: rank 1" in second and "has given no sign of life for 4 s" in second


def train_and_die(folder: str) -> None:
    into_file(folder)
    task, calls = tiny_task(), []
    original = task.losses

    def losses(forward: Any, inputs: Any) -> Any:
        calls.append(1)
        if os.environ["RANK"] == "1" and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(forward, inputs)

    task.losses = losses  # type: ignore[method-assign]
    run(Path(folder) / "run", task, steps=50, save_every=None)


def test_training_ends_with_one_line_and_saves_what_it_has(tmp_path: Path) -> None:
    processes = Processes(train_and_die, str(tmp_path), world_size=2)
    processes.children[1].join(60)
    begin = time.monotonic()
    processes.join(30)
    assert time.monotonic() - begin < 10
    assert processes.children[0].exitcode == 1
    named = [line for line in lines(tmp_path) if line.startswith("undiffuse: ")]
    assert len(named) == 1 and "rank 1" in named[0] and "was killed" in named[0]
    newest = checkpoints.latest(tmp_path / "run")
    assert newest is not None and checkpoints.images_of(newest) == 3 * 4
