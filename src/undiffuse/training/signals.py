"""SIGTERM and Ctrl-C: finish the step, save, leave. A second one: leave at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

GRACE_SECONDS = 0.5  # launchers may send one signal twice; a person who insists takes longer


class StopSignals:
    """A context in which SIGTERM and SIGINT only set `received` to the signal's name.

    A second signal (half a second or more later) ends the process with status 128 + number, without saving. Outside
    the main thread, where Python allows no handlers, nothing is installed.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._time = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._time = signal.Signals(number).name, now
        elif now - self._time >= GRACE_SECONDS:
            os._exit(128 + number)  # not sys.exit: that would run the very code the user is tired of waiting for

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
