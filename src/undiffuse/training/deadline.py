"""The time that a job has: a run ends in time to save, so that the next job resumes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from undiffuse.util.launch import STARTED

__all__ = ["OUT_OF_TIME", "REQUEUE", "Deadline"]

OUT_OF_TIME = "the time limit"
"""What a run that ended in time was stopped by."""
REQUEUE = 75
"""Exit status of a run that should be started again: EX_TEMPFAIL of sysexits.h."""
_MARGIN, _SHARE = 30.0, 0.05  # seconds kept free, and at most this share of the limit
_BYTES_PER_SECOND = 50e6  # of the first checkpoint, until one was written


class Deadline:
    """Says when a run has to save and end.

    It keeps free one and a half times the longest turn of the loop so far (updates, pictures and checkpoints), the time
    of a checkpoint, and half a minute, but of a short limit at most a twentieth.

    Args:
        limit: Seconds after the start of this process; None for the end of the Slurm job (SLURM_JOB_END_TIME), if any.
        size: About the bytes of a checkpoint.
        environ: The environment; by default that of the process.
        clock: A clock that never jumps.
        started: Time of the start of this process on that clock.
        now: The time of day, on which the end of the Slurm job is given, at this moment; by default that of the clock.
    """

    def __init__(
        self,
        limit: float | None,
        size: float = 0.0,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        started: float = STARTED,
        now: float | None = None,
    ) -> None:
        self._clock = clock
        self._end: float | None = None
        self._last = clock()
        if limit is not None:
            self._end = started + limit
        else:
            end = (os.environ if environ is None else environ).get("SLURM_JOB_END_TIME", "")
            # One that has passed already was extended meanwhile, of which the environment does not know.
            left = float(end) - (time.time() if now is None else now) if end.isdecimal() else 0.0
            self._end = self._last + left if left > 0 else None
        whole = 0.0 if self._end is None else self._end - started
        self._margin = min(_MARGIN, _SHARE * whole) + size / _BYTES_PER_SECOND
        self._longest = 0.0

    def reached(self) -> bool:
        """Returns whether the run has to end now; called once in every turn of the loop."""
        now = self._clock()
        self._longest, self._last = max(self._longest, now - self._last), now
        return self._end is not None and now + 1.5 * self._longest + self._margin >= self._end
