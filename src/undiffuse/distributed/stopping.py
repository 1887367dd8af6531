"""Stopping what several processes make together: when one of them is to stop, all stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from undiffuse.distributed.collectives import DistContext

__all__ = ["CommonStop", "Interrupted", "together"]

_EVERY = 0.1
"""Seconds between two looks at the store, so that asking costs nothing between short calls of a network."""


class Interrupted(Exception):
    """A signal to stop came, and the work was ended between two calls of the network."""


class CommonStop:
    """Whether any of the processes is to stop. All of them make it, in the same order; asking is not collective.

    Args:
        ranks: The processes.
        own: Returns whether this process is to stop.
    """

    def __init__(self, ranks: DistContext, own: Callable[[], bool]) -> None:
        self._job = ranks.job if ranks.job is not None and ranks.job.store is not None else None
        self._own, self._found, self._looked = own, False, 0.0
        self._key = self._job.new_key() if self._job is not None else ""

    def __call__(self) -> bool:
        """Returns whether any process is to stop, and tells the others if this one is."""
        if self._job is None:
            return self._own()
        if not self._found and self._own():
            self._found = True
            self._job.store.set(self._key, "1")
        now = time.monotonic()
        if not self._found and now - self._looked >= _EVERY:
            self._looked, self._found = now, bool(self._job.store.check([self._key]))
        return self._found

    @contextmanager
    def told_while_waiting(self) -> Iterator[None]:
        """A block in which a process that waits for the others still tells them if it is to stop."""
        if self._job is None:
            yield
            return
        self._job.meanwhile = self
        try:
            yield
        finally:
            self._job.meanwhile = None


@contextmanager
def together(ranks: DistContext) -> Iterator[None]:
    """A block of work in which processes do not wait for each other; if it is cut short in one, it is in all.

    Args:
        ranks: The processes.

    Raises:
        Interrupted: The block raised it here or in another process.
    """
    cut = False
    try:
        yield
    except Interrupted:
        cut = True
    if ranks.job is not None:
        ranks.job.barrier()  # not that of the process group, in which a process does not notice signals
    if ranks.any(cut):
        raise Interrupted
