"""SIGTERM, SIGUSR1 and Ctrl-C: finish the step, save, leave. A second one: leave at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor

from undiffuse.distributed.stopping import Interrupted
from undiffuse.nets.runner import NetworkRunner

STOPPING = b"stopping after this update and saving; press Ctrl-C again to quit without saving\n"
GRACE_SECONDS = 0.5  # launchers may send one signal twice; a person who insists takes longer


class StoppableRunner(NetworkRunner):
    """A runner whose calls raise `Interrupted` once the run is to stop: between two calls nothing is half done.

    Attributes:
        stopping: Returns whether the run is to stop.
    """

    stopping: Callable[[], bool] = staticmethod(lambda: False)

    def check(self) -> None:
        """Raises `Interrupted` if the run is to stop."""
        if self.stopping():
            raise Interrupted

    def __call__(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """See `NetworkRunner`."""
        self.check()
        return super().__call__(x, t, **conditions)


class StopSignals:
    """A context in which SIGTERM, SIGINT and SIGUSR1 (sent by Slurm before its time limit) only set `received`.

    A second signal (half a second or more later) ends the process with status 128 + number, without saving; after
    SIGUSR1, the next one still counts as the first. Outside the main thread, where Python allows no handlers, nothing
    is installed.

    announce   returns whether the first signal is answered at once with a line on stderr: an update may take a minute
    """

    def __init__(self, announce: Callable[[], bool] = lambda: False) -> None:
        self.announce = announce
        self.received: str | None = None
        self._time = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received in (None, "SIGUSR1") and not (self.received and number == signal.SIGUSR1):
            self.received, self._time = signal.Signals(number).name, now
            if self.announce():
                _announce()
        elif now - self._time >= GRACE_SECONDS:
            os._exit(128 + number)  # not sys.exit: that would run the very code the user is tired of waiting for

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _announce() -> None:
    # Not print: the signal may have come in the middle of a write to sys.stderr, whose buffer cannot be re-entered.
    with contextlib.suppress(OSError):  # a closed terminal is no reason not to save
        os.write(2, b"\n" + STOPPING if os.isatty(2) else STOPPING)  # a progress line may stand on a terminal's line
