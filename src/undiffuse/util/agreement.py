"""Decisions that the processes of a job make once for all of them.

Each process could decide from measurements of its own, and differently. What a job is does not matter here: whoever
joins its processes says how they agree (`deciding`), and a process alone decides for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_decide: Callable[[str, str], str] | None = None


def agreed(name: str, choose: Callable[[], str]) -> str:
    """Returns the choice of the process of the job that is the first to decide.

    Args:
        name: What is decided, the same in all processes.
        choose: Makes this process's choice.
    """
    return choose() if _decide is None else _decide(name, choose())


@contextmanager
def deciding(first: Callable[[str, str], str]) -> Iterator[None]:
    """Lets processes agree inside the block.

    Args:
        first: Takes a name and this process's choice, and returns the choice of whoever was the first.
    """
    global _decide
    before, _decide = _decide, first
    try:
        yield
    finally:
        _decide = before
