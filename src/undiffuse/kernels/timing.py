"""Times implementations of an operation on this machine, in milliseconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from undiffuse.kernels.timing_table import Case
from undiffuse.util.load import running

Trial = Callable[[str, int, int, int, int], Callable[[], object]]
"""Makes a call: (implementation, batch, channels in and out, height, width) to a function without arguments."""

WORK = {"fp32": 2e8, "bf16": 4e8}  # operations of a direct sum that a thread is given to measure
LIMIT = 0.1
"""Seconds for a case, of which an undisturbed one needs less."""
_TILES = 32  # tiles of 2x2 results that a thread is given at least
_ROUNDS, _ENOUGH = 6, 2  # at most, and undisturbed ones
_HOPELESS = 1.5  # an implementation that takes that many times the best one's time is not timed again
_HOPELESS_PART = 5.0  # of a part of a case, where the fixed time counts for more


def measure(case: Case, ways: tuple[str, ...], trial: Trial, limit: float = LIMIT) -> dict[str, float] | None:
    """Times the implementations of an operation.

    A large case is timed on a part of it, at two sizes, and extrapolated: a call takes a fixed time, in which weights
    are laid out, and a time that is proportional to the pixels.

    Args:
        case: What to time.
        ways: The implementations.
        trial: Makes the calls.
        limit: Seconds after which it is given up.

    Returns:
        Seconds of a call, by implementation; None if other programs disturbed the measurement.
    """
    until = time.monotonic() + limit
    side, threads = case.side, torch.get_num_threads()
    whole = case.batch * _tiles(side, side)
    most = int(max(_TILES * threads, WORK[case.precision] * threads / (72 * case.channels**2)))
    batch, height = case.batch, side
    if whole > most:
        batch = max(1, most // _tiles(side, side))
        height = min(side, 2 * max(2, most // -(-side // 2)))
    part = batch * _tiles(height, side)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        found = best_times(
            {way: trial(way, batch, case.channels, height, side) for way in ways},
            _HOPELESS if part == whole else _HOPELESS_PART,
            until,
        )
        if found is None or part == whole:
            return found
        fewer, lower = (batch // 2, height) if batch > 1 else (1, max(2, height // 4 * 2))
        small = fewer * _tiles(lower, side)
        near = {way: seconds for way, seconds in found.items() if seconds < _HOPELESS_PART * min(found.values())}
        half = best_times({way: trial(way, fewer, case.channels, lower, side) for way in near}, _HOPELESS_PART, until)
    if half is None:
        return None
    for way, seconds in found.items():
        slope = (seconds - half[way]) / (part - small) if way in half and small < part else 0.0
        share = seconds / part  # of a tile, the most it can be
        found[way] = seconds + (whole - part) * (slope if 0 < slope < share else share)
    return found


def best_times(calls: dict[str, Callable[[], object]], hopeless: float, until: float) -> dict[str, float] | None:
    """Returns the shortest time of each call in seconds, the calls made by turns; None if they were disturbed.

    Args:
        calls: The calls, by name.
        hopeless: How many times the shortest time a call may take to be made again.
        until: When to stop, by the monotonic clock.
    """
    for call in calls.values():
        call()  # builds what is built once
    best: dict[str, float] = {}
    undisturbed = dict.fromkeys(calls, 0)
    for _ in range(_ROUNDS):
        shortest = min(best.values(), default=float("inf"))
        left = [name for name in calls if undisturbed[name] < _ENOUGH and best.get(name, 0.0) <= hopeless * shortest]
        if not left:
            break
        for name in left:
            if time.monotonic() > until:
                return best if len(best) == len(calls) else None
            before, begin = _interruptions(), time.perf_counter()
            calls[name]()
            seconds = time.perf_counter() - begin
            if _interruptions() == before and running() <= (os.cpu_count() or 1):
                undisturbed[name] += 1
                best[name] = min(seconds, best.get(name, seconds))
    return best if len(best) == len(calls) else None


def _tiles(height: int, width: int) -> int:
    return -(-height // 2) * -(-width // 2)


def _interruptions() -> int:
    """How often other programs took a core from this process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
