"""Model processes: turns, immediate stops, deaths that are reported, users that do not disturb each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.studio_shop import FakeShop
from undiffuse.studio import processes
from undiffuse.studio.jobs import Job
from undiffuse.studio.processes import Event, ModelProcesses
from undiffuse.studio.sessions import Studio
from undiffuse.studio.settings import Settings


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelProcesses]:
    made = ModelProcesses(1, device="cpu", workshop=FakeShop)
    yield made
    made.close()


def job(what: str = "work", pieces: int = 2, model: str = "m") -> Job:
    return Job(task="sample", settings=Settings(model=model), inputs={"do": what, "pieces": pieces})


def run(pool: ModelProcesses, one: Job, stop: threading.Event | None = None) -> list[Event]:
    return list(pool.run(one, None, stop or threading.Event()))


def test_a_job_reports_and_ends(pool: ModelProcesses) -> None:
    events = run(pool, job(pieces=3))
    assert [event.kind for event in events] == ["started", "progress", "progress", "progress", "done"]
    assert events[-2].values["done"] == 1
    assert events[-1].values["pid"] in pool.pids()


def test_errors_are_events(pool: ModelProcesses) -> None:
    last = run(pool, job("fail"))[-1]
    assert (last.kind, last.values["field"], last.values["text"]) == ("error", "steps", "cannot be this many")
    assert not last.values["bug"]
    assert run(pool, job("bug"))[-1].values["bug"]
    assert run(pool, job())[-1].kind == "done"  # the process goes on


def test_a_stop_ends_a_job_at_once_and_the_process_stays(pool: ModelProcesses) -> None:
    pid = run(pool, job())[-1].values["pid"]
    stop, seen = threading.Event(), []
    for event in pool.run(job(pieces=100_000), None, stop):
        seen.append(event.kind)
        if event.kind == "progress":
            stop.set()
            begin = time.monotonic()
    assert seen[-1] == "stopped"
    assert time.monotonic() - begin < 2
    assert run(pool, job())[-1].values["pid"] == pid


def test_a_job_that_does_not_stop_is_killed(pool: ModelProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    pid = run(pool, job())[-1].values["pid"]
    stop = threading.Event()
    stop.set()
    begin = time.monotonic()
    events = run(pool, job("stubborn"), stop)  # stopped before it began
    assert events[-1].kind == "stopped"
    stop.clear()
    threading.Timer(0.5, stop.set).start()
    last = run(pool, job("stubborn"), stop)[-1]
    assert (last.kind, last.values) == ("stopped", {"killed": True})
    assert time.monotonic() - begin < 20
    assert run(pool, job())[-1].values["pid"] != pid


def test_a_death_is_told_and_the_next_job_has_a_new_process(pool: ModelProcesses) -> None:
    pid = run(pool, job())[-1].values["pid"]
    last = run(pool, job("die"))[-1]
    assert last.kind == "died"
    assert "signal 9" in last.values["why"]
    again = run(pool, job())[-1]
    assert again.kind == "done"
    assert again.values["pid"] != pid


def test_users_wait_for_each_other_and_a_waiting_one_can_stop(pool: ModelProcesses) -> None:
    first = pool.run(job(pieces=20), None, threading.Event())
    assert next(first).kind == "started"
    stop = threading.Event()
    second = pool.run(job(), None, stop)
    waiting = next(second)
    assert (waiting.kind, waiting.values["ahead"]) == ("waiting", 0)
    third_stop = threading.Event()
    third = pool.run(job(), None, third_stop)
    assert next(third).values["ahead"] == 1
    third_stop.set()
    assert [event.kind for event in third][-1] == "stopped"
    assert [event.kind for event in first][-1] == "done"
    assert [event.kind for event in second][-1] == "done"


def test_a_job_that_nobody_follows_any_more_frees_its_place(pool: ModelProcesses) -> None:
    abandoned = pool.run(job(pieces=100_000), None, threading.Event())
    assert next(abandoned).kind == "started"
    abandoned.close()  # type: ignore[attr-defined]
    assert run(pool, job())[-1].kind == "done"


def test_sessions_are_apart(pool: ModelProcesses, tmp_path: Path) -> None:
    studio = Studio(pool, tmp_path / "out", "m")
    a, b = studio.session("a"), studio.session("b")
    assert studio.session("a") is a
    assert [event.kind for event in studio.run(a, "sample", job())][-1] == "done"
    assert len(a.entries) == 1
    assert not b.entries
    stop_of_a = a.start("sample")
    stop_of_b = b.start("sample")
    a.stop()
    assert stop_of_a.is_set()
    assert not stop_of_b.is_set()
    newer = b.start("sample")  # pressing again replaces the job of the same tab
    assert stop_of_b.is_set()
    assert not newer.is_set()
    other = b.start("edit")
    studio.drop("b")
    assert newer.is_set()
    assert other.is_set()
    assert studio.session("b") is not b


def test_a_stopped_or_dead_job_leaves_no_folder(pool: ModelProcesses, tmp_path: Path) -> None:
    studio = Studio(pool, tmp_path / "out", "m")
    session = studio.session("a")
    assert [event.kind for event in studio.run(session, "sample", job("die"))][-1] == "died"
    assert [event.kind for event in studio.run(session, "sample", job("fail"))][-1] == "error"
    assert list((tmp_path / "out").iterdir()) == []
    assert [event.kind for event in studio.run(session, "sample", job())][-1] == "done"
    assert len(session.entries) == 1
