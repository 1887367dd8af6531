"""Whether the main thread of this process moves, and where it stands. Looking costs microseconds and stops nothing."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType
from typing import Any

_BUSY = 0.2
"""Share of a core from which on a thread counts as working although its stack stays the same."""


class Motion:
    """Looks at the main thread from another one.

    The thread moves if its stack of calls changes or if it uses the processor. One that waits for a file, a lock or
    another process does neither.
    """

    def __init__(self) -> None:
        self._thread = threading.main_thread().ident or 0
        self._stack: Any = None
        self._looked = self._moved = time.monotonic()
        self._used = self._processor_time()
        self.where = ""
        """The innermost call in this package, or else the innermost at all, for example "read (files.py, line 12)"."""

    def look(self) -> float:
        """Returns the seconds for which the main thread has stood still."""
        now, used = time.monotonic(), self._processor_time()
        frame = sys._current_frames().get(self._thread)
        stack = []
        place = _text(frame) if frame is not None else ""
        while frame is not None:
            stack.append((id(frame.f_code), frame.f_lasti))
            if "undiffuse" in frame.f_code.co_filename.replace("\\", "/").split("/")[:-1]:
                place = _text(frame)
                break
            frame = frame.f_back
        while frame is not None:
            stack.append((id(frame.f_code), frame.f_lasti))
            frame = frame.f_back
        if stack != self._stack or used - self._used > _BUSY * (now - self._looked):
            self._moved = now
        self._stack, self._used, self._looked, self.where = stack, used, now, place
        return now - self._moved

    def _processor_time(self) -> float:
        """Seconds of processor time of the main thread; 0 where the system does not say."""
        try:
            return time.clock_gettime(time.pthread_getcpuclockid(self._thread))
        except (AttributeError, OSError):
            return 0.0


def _text(frame: FrameType) -> str:
    """A call as messages name it."""
    parts = frame.f_code.co_filename.replace("\\", "/").split("/")
    file = "/".join(parts[parts.index("undiffuse") + 1 :]) if "undiffuse" in parts[:-1] else parts[-1]
    return f"{frame.f_code.co_name} ({file}, line {frame.f_lineno})"
