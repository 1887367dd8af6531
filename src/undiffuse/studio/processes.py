"""Starts model processes, gives them jobs in turn, and notices when one dies."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from undiffuse.studio import worker
from undiffuse.studio.jobs import Job

__all__ = ["Event", "ModelProcess", "ModelProcesses"]

GRACE = 4.0
"""Seconds that a job has to stop before its process is killed."""
_LOOK = 0.05  # seconds between two looks at a stop


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    Attributes:
        kind: "waiting", "started", "progress" or "step", and at the end "done", "error", "stopped" or "died".
        values: What belongs to it.
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> bool:
        """Whether the job has ended."""
        return self.kind in ("done", "error", "stopped", "died")


class ModelProcess:
    """A process that holds models.

    Args:
        device: As in `Pipeline.load`.
        offline: Whether it may not download.
        workshop: See `worker.main`.
    """

    def __init__(
        self, device: str = "auto", offline: bool = False, workshop: Callable[[str], Any] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=worker.main, args=(theirs, device, offline, workshop), name="undiffuse-model", daemon=True
        )
        self._process.start()
        theirs.close()
        self._number = 0
        self.model: str | None = None  # of its last job

    @property
    def pid(self) -> int:
        """The process's number."""
        return int(self._process.pid or 0)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def run(self, job: Job, folder: str | None, stop: threading.Event) -> Iterator[Event]:
        """Does a job and yields its events, the last of which says how it ended.

        Args:
            job: The job.
            folder: See `Workshop.do`.
            stop: Set by the caller to stop the job.
        """
        self._number += 1
        number, asked, self.model = self._number, None, job.settings.model
        try:
            self._pipe.send(("do", number, job, folder))
            while True:
                if stop.is_set() and asked is None:
                    asked = time.monotonic()
                    self._pipe.send(("stop", number))
                if asked is not None and time.monotonic() - asked > GRACE:
                    self.close()
                    yield Event("stopped", {"killed": True})
                    return
                if not self._pipe.poll(_LOOK):
                    continue
                whose, kind, values = self._pipe.recv()
                if whose != number:
                    continue
                event = Event(kind, values)
                yield event
                if event.last:
                    return
        except (EOFError, OSError):
            self._process.join(5.0)
            yield Event("died", {"why": self._why()})

    def _why(self) -> str:
        code = self._process.exitcode
        if code is None:
            return "its pipe is closed"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"

    def close(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.join(5.0)
        self._pipe.close()


class ModelProcesses:
    """Up to `most` model processes that share the jobs of all pages, first come, first served.

    Args:
        most: How many; each holds models of its own.
        **how: The arguments of `ModelProcess`.
    """

    def __init__(self, most: int = 1, **how: Any) -> None:
        self.most, self._how = most, how
        self._free: list[ModelProcess] = []
        self._all: list[ModelProcess] = []
        self._queue: list[object] = []
        self._changed = threading.Condition()
        self._closed = False

    def warm(self) -> None:
        """Starts the first process, so that the first job does not wait for it."""
        with self._changed:
            if not self._all:
                self._free.append(self._start())

    def pids(self) -> list[int]:
        """Returns the numbers of the processes that run."""
        return [one.pid for one in self._all if one.alive]

    def run(self, job: Job, folder: str | None, stop: threading.Event) -> Iterator[Event]:
        """Waits for a process and does a job; yields its events. A process that dies is replaced at the next job."""
        ticket, announced = object(), -1
        with self._changed:
            self._queue.append(ticket)
        process = None
        try:
            while process is None:
                with self._changed:
                    ahead = self._queue.index(ticket)
                    process = self._take(job) if ahead == 0 else None
                    if process is None and not stop.is_set():
                        self._changed.wait(0.2)
                        ahead = self._queue.index(ticket)
                if process is None and stop.is_set():
                    yield Event("stopped", {})
                    return
                if process is None and ahead != announced:
                    announced = ahead
                    yield Event("waiting", {"ahead": ahead})
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()
        ended = False
        try:
            yield Event("started", {"pid": process.pid})
            for event in process.run(job, folder, stop):
                ended = event.last
                yield event
        finally:  # also if the caller gives up in the middle of a job
            if not ended:
                process.close()
            self._give(process)

    def _take(self, job: Job) -> ModelProcess | None:
        """A free process, one that has the job's model if possible; None if all are busy."""
        for one in [one for one in self._free if not one.alive]:
            self._free.remove(one)
            self._all.remove(one)
        if not self._free:
            return self._start() if len(self._all) < self.most and not self._closed else None
        chosen = next((one for one in self._free if one.model == job.settings.model), self._free[0])
        self._free.remove(chosen)
        return chosen

    def _start(self) -> ModelProcess:
        made = ModelProcess(**self._how)
        self._all.append(made)
        return made

    def _give(self, process: ModelProcess) -> None:
        with self._changed:
            if process.alive and not self._closed:
                self._free.append(process)
            elif process in self._all:
                self._all.remove(process)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all processes."""
        with self._changed:
            self._closed = True
            everyone, self._all, self._free = self._all, [], []
        for one in everyone:
            one.close()
