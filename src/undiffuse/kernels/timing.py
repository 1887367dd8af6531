"""Times implementations of an operation on this machine, in milliseconds.

The clock is the processor time of this thread, and calls run in it alone: what other programs take does not count. What
remains of their influence, on caches for example, is met by the shortest times of short interleaved calls, which count
only if they were nearly reached several times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from undiffuse.kernels.timing_table import Case

Trial = Callable[[str, int, int, int, int], Callable[[], object]]
"""Makes a call: (implementation, batch, channels in and out, height, width) to a function without arguments."""

WORK = {"fp32": 5e7, "bf16": 1e8}
"""Operations of a direct sum in one call, about half a millisecond: shorter than the turns that programs take."""
LIMIT = 0.1
"""Seconds of processor time for a case."""
MARGIN, MARGIN_PART = 1.05, 1.2
"""How many times faster than the assumed implementation another one has to be to take its place, and where the time of
the whole is inferred from a part."""
SURE, TIMES = 1.08, 3
"""A time is the shortest one if so many calls came that near to it."""
_LEAST = 64  # tiles of 2x2 results that are timed at least
_BLOCKS, _CALLS = 6, 3  # blocks of interleaved calls at most, and timed calls of each implementation in a block
_HOPELESS = 2.0  # an implementation that takes that many times the best one's time is not timed again
_FIXED = 0.4  # of the time of a part, what the fixed time is at most
_COARSE = 1e-4  # seconds between ticks of a clock that is of no use


def measure(
    case: Case, assumed: str, ways: Sequence[str], trial: Trial, limit: float = LIMIT
) -> tuple[str, dict[str, float]] | None:
    """Times the implementations of an operation and chooses one.

    A large case is timed on a part of it, at two sizes, and extrapolated: a call takes a fixed time, in which weights
    are laid out, and a time that is proportional to the pixels.

    Args:
        case: What to time.
        assumed: The implementation to use unless another one is faster by a margin.
        ways: The implementations.
        trial: Makes the calls.
        limit: Seconds of processor time after which no further block of calls is begun.

    Returns:
        The choice, and seconds of a call by implementation; None if the times are not certain, because the machine is
        too busy or its clock too coarse.
    """
    if time.get_clock_info("thread_time").resolution > _COARSE:
        return None
    until, sizes = time.thread_time() + limit, _sizes(case)
    left = list(ways)
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _alone():
        calls = [
            {way: trial(way, batch, case.channels, height, case.side) for way in ways} for batch, height, _ in sizes
        ]
        times: list[dict[str, list[float]]] = [{way: [] for way in ways} for _ in sizes]
        for number in range(_BLOCKS):
            if number and time.thread_time() > until:
                break
            for of_size, kept in zip(calls, times, strict=True):
                _add_block({way: of_size[way] for way in left}, kept)
            best = {way: _whole(case, sizes, [min(of_size[way]) for of_size in times]) for way in ways}
            quickest = min(best, key=lambda way: best[way])
            if all(_is_sure(of_size[way]) for way in {assumed, quickest} for of_size in times):
                margin = MARGIN if len(sizes) == 1 else MARGIN_PART
                return quickest if best[assumed] > margin * best[quickest] else assumed, best
            left = [way for way in ways if way == assumed or best[way] < _HOPELESS * best[quickest]]
    return None


def _add_block(calls: Mapping[str, Callable[[], object]], times: Mapping[str, list[float]]) -> None:
    """Adds the seconds of interleaved calls."""
    for call in calls.values():
        call()  # builds what is built once, and fills caches
    for _ in range(_CALLS):
        for way, call in calls.items():
            begin = time.thread_time()
            call()
            times[way].append(max(time.thread_time() - begin, 1e-9))


def _is_sure(times: Sequence[float]) -> bool:
    best = min(times)
    return sum(seconds <= SURE * best for seconds in times) >= TIMES


def _whole(case: Case, sizes: Sequence[tuple[int, int, int]], best: Sequence[float]) -> float:
    """Returns the seconds of a whole case, from those of the sizes that were timed."""
    whole, part = _units(case, case.batch, case.side), sizes[0][2]
    share = best[0] / part  # of a unit, the most it can be
    slope = (best[0] - best[1]) / (part - sizes[1][2]) if len(sizes) > 1 else share
    return best[0] + (whole - part) * min(max(slope, (1 - _FIXED) * share), share)


def _sizes(case: Case) -> list[tuple[int, int, int]]:
    """Returns (batch, height, units) of the calls to time: the whole case, or a part of it and a part of that."""
    side, whole = case.side, _units(case, case.batch, case.side)
    if case.operation.startswith("attention"):
        backward = 4 if case.operation == "attention_grad" else 1
        most = int(max(1, WORK[case.precision] / (4 * case.channels * side**4 * backward)))
        if whole <= most:
            return [(case.batch, side, whole)]
        return [(most, side, most)] if most < 4 else [(most, side, most), (most // 4, side, most // 4)]
    taps = 1 if case.operation.startswith("conv1x1") else 9
    least, of_a_tile = _LEAST if case.channels <= 256 else _LEAST // 2, 8 * taps * case.channels**2
    most = int(max(least, WORK[case.precision] / of_a_tile))
    if whole <= most:
        return [(case.batch, side, whole)]
    batch = max(1, most // _units(case, 1, side))
    height = side if batch > 1 else min(side, 2 * max(2, most // -(-side // 2)))
    fewer, lower = (max(1, batch // 4), height) if batch > 1 else (1, max(2, height // 8 * 2))
    sizes = [(batch, height, _units(case, batch, height)), (fewer, lower, _units(case, fewer, lower))]
    return sizes if sizes[1][2] < sizes[0][2] else sizes[:1]


def _units(case: Case, batch: int, height: int) -> int:
    """The number of tiles, or of sequences."""
    return batch if case.operation.startswith("attention") else batch * -(-height // 2) * -(-case.side // 2)


@contextmanager
def _alone() -> Iterator[None]:
    """Computes in this thread only: others would be waited for, and their time is not on this thread's clock."""
    threads = torch.get_num_threads()
    try:
        if threads != 1:
            torch.set_num_threads(1)
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
