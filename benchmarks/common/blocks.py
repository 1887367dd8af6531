"""Timing several ways of doing the same thing in one process: interleaved blocks, medians, no disturbed blocks.

Two runs a minute apart may differ by more than what is to be shown, for reasons outside of the program. So everything
that is compared runs in turns: a round gives each side one block, of about `seconds`, and rounds begin with another
side each. A block during which other processes used more than `FOREIGN` of a core is set aside.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

FOREIGN = 0.06  # of a core
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to measure: `rounds` undisturbed blocks a side, `most` at all, of `seconds` each (a call at least).

    `patience` bounds a whole comparison, in seconds; every side has one block even so.
    """

    rounds: int = 7
    most: int = 21
    seconds: float = 0.6
    patience: float = 600.0


QUICK = Pace(rounds=1, most=1, seconds=0.0)


@dataclass
class Timing:
    """Seconds a call: of undisturbed blocks, and of those set aside."""

    clean: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the undisturbed blocks; of all if there is none."""
        return statistics.median(self.clean or self.disturbed)

    def result(self) -> dict[str, Any]:
        """For JSON. `spread` is half the distance of the quartiles, relative to the median."""
        known = self.clean or self.disturbed
        quartiles = statistics.quantiles(known, n=4) if len(known) > 1 else [self.median] * 3
        return {
            "seconds": self.median,
            "spread": (quartiles[2] - quartiles[0]) / 2 / self.median,
            "clean": [round(s, 6) for s in self.clean],
            "set_aside": [round(s, 6) for s in self.disturbed],
        }


def interleaved(
    sides: Mapping[str, Callable[[], Any]], pace: Pace, synchronize: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Times every side's function, in turns. Each is called once before, so that nothing is counted that is done once.

    `synchronize` waits for a device that works on its own.
    """
    for function in sides.values():
        function()
        synchronize()
    return in_turns({name: partial(block, call, pace.seconds, synchronize) for name, call in sides.items()}, pace)


def in_turns(blocks: Mapping[str, Callable[[], tuple[float, float]]], pace: Pace) -> dict[str, Timing]:
    """Has every side run blocks, in turns; each returns what `block` does, from here or from a process of its own."""
    order, found = list(blocks), {name: Timing() for name in blocks}
    began = time.perf_counter()
    for number in range(pace.most):
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            seconds, foreign = blocks[name]()
            (found[name].clean if foreign <= FOREIGN else found[name].disturbed).append(seconds)
        enough = all(len(timing.clean) >= pace.rounds for timing in found.values())
        if enough or time.perf_counter() - began > pace.patience:
            break
    return found


def whole(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs whole processes in turns until each side has `rounds` undisturbed results, or three times as many at all.

    Each function starts a process, waits for its end and returns what is to be kept. By side: "runs", the undisturbed
    ones, or all if there is none; "set_aside", how many others there were; "calm", whether `runs` are undisturbed.
    """
    order = list(sides)
    clean: dict[str, list[Any]] = {name: [] for name in order}
    disturbed: dict[str, list[Any]] = {name: [] for name in order}
    for number in range(3 * rounds):
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            before, began = others(), time.perf_counter()
            result = sides[name]()
            foreign = (others() - before) / (time.perf_counter() - began)
            (clean if foreign <= FOREIGN else disturbed)[name].append(result)
        if all(len(runs) >= rounds for runs in clean.values()):
            break
    return {
        name: {"runs": clean[name] or disturbed[name], "set_aside": len(disturbed[name]), "calm": bool(clean[name])}
        for name in order
    }


def block(function: Callable[[], Any], seconds: float, synchronize: Callable[[], None]) -> tuple[float, float]:
    """Calls for so many seconds, once at least: (seconds a call, cores used by others meanwhile)."""
    before, began, calls = others(), time.perf_counter(), 0
    while True:
        function()
        synchronize()
        calls += 1
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return elapsed / calls, (others() - before) / elapsed


def others() -> float:
    """Seconds of work that other processes have done on the processors this one may use, since the machine started.

    This process's children count as its own once they have ended.
    """
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in ours:
            user, nice, system, _, _, interrupts, soft, stolen = map(int, ticks[:8])
            busy += user + nice + system + interrupts + soft + stolen
    times = os.times()
    return busy / _TICK - sum(times[:4])
