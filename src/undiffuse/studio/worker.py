"""The main loop of a model process: takes jobs from a pipe, does them, and stops at once when it has to."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Stopped", "main"]


class Stopped(BaseException):
    """Ends a job from within; not an Exception, so that nothing on the way takes it for an error."""


class _Control:
    """Receives messages in a thread of its own, so that a stop arrives while a job runs."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._jobs: list[tuple[int, Any, str | None]] = []
        self._ready = threading.Semaphore(0)
        self._stopped: set[int] = set()
        self.current: int | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self) -> tuple[int, Any, str | None]:
        """Waits for the next job: (number, job, folder)."""
        while not self._ready.acquire(timeout=1.0):
            pass
        with self._lock:
            return self._jobs.pop(0)

    def send(self, number: int, kind: str, values: Any) -> None:
        """Sends an event of a job."""
        try:
            self._pipe.send((number, kind, values))
        except OSError:  # the page's process has ended
            os._exit(0)

    def wanted(self) -> bool:
        """Whether the current job has to stop."""
        return self.current is not None and self.current in self._stopped

    def _listen(self) -> None:
        while True:
            try:
                kind, number, *rest = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            with self._lock:
                if kind == "stop":
                    self._stopped.add(number)
                else:
                    self._jobs.append((number, *rest))
                    self._ready.release()
            if kind == "stop" and self.current == number:
                _thread.interrupt_main()


def main(pipe: Connection, device: str, offline: bool, workshop: Callable[[str], Any] | None = None) -> None:
    """Does jobs until the other end of the pipe closes.

    Args:
        pipe: Takes ("do", number, job, folder) and ("stop", number); gives (number, kind, values) with the kinds
            "progress", "step" and at the end "done", "error" or "stopped".
        device: As in `Pipeline.load`.
        offline: Whether nothing may be downloaded.
        workshop: Makes what does the jobs, from the device; by default `work.Workshop`.
    """
    control = _Control(pipe)

    def interrupted(signum: int, frame: Any) -> None:
        if control.wanted():  # Ctrl-C in the terminal is for the page's process
            raise Stopped

    signal.signal(signal.SIGINT, interrupted)
    if offline:
        os.environ["UNDIFFUSE_OFFLINE"] = "1"
    if workshop is None:
        from undiffuse.studio.work import Workshop

        workshop = Workshop
    shop = workshop(device)
    while True:
        try:
            number, job, folder = control.next()
            _do(control, shop, number, job, folder)
        except Stopped:  # the job ended as the stop arrived
            continue


def _do(control: _Control, shop: Any, number: int, job: Any, folder: str | None) -> None:
    """Does one job and sends how it ended."""
    from undiffuse.downloads import reporting
    from undiffuse.util.errors import ConfigError

    def emit(kind: str, values: dict[str, Any]) -> None:
        if control.wanted():
            raise Stopped
        control.send(number, kind, values)

    def downloaded(what: str, done: int, total: int | None) -> None:
        emit("progress", {"done": done / total if total else None, "what": what})

    control.current = number
    ended: tuple[str, Any] = ("stopped", {})
    try:
        if not control.wanted():
            with reporting(downloaded):
                ended = ("done", shop.do(job, folder, emit))
    except Stopped:
        pass
    except (Exception, KeyboardInterrupt) as error:
        field = error.field if isinstance(error, ConfigError) else None
        text = error.text if isinstance(error, ConfigError) else _text(error)
        ended = ("error", {"field": field, "text": text, "bug": _is_bug(error)})
    finally:
        control.current = None
    control.send(number, *ended)


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__


def _is_bug(error: BaseException) -> bool:
    """Whether an error is one of this program, not of its input."""
    out_of_memory = type(error).__name__ == "OutOfMemoryError"
    return not isinstance(error, (ValueError, OSError, MemoryError)) and not out_of_memory
