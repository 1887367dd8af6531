"""Why a curve is not straight: what a cost would be if it grew with the work alone, and the reason where it does not.

A cost is fitted as  fixed + slope * work  with both at least 0, relative errors weighing alike. Where a point lies more
than `NEAR` off the line, a reason is looked for among the measured facts; if none applies, that is said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.blocks import FOREIGN

NEAR = 0.10


@dataclass(frozen=True)
class Line:
    """fixed + slope * work."""

    fixed: float
    slope: float

    def at(self, work: float) -> float:
        return self.fixed + self.slope * work


def fitted(work: Sequence[float], cost: Sequence[float]) -> Line:
    """The line of least squared relative error."""
    weights = [1 / c**2 for c in cost]
    total = sum(weights)
    mean_work = sum(w * x for w, x in zip(weights, work, strict=True)) / total
    mean_cost = sum(w * y for w, y in zip(weights, cost, strict=True)) / total
    spread = sum(w * (x - mean_work) ** 2 for w, x in zip(weights, work, strict=True))
    joint = sum(w * (x - mean_work) * (y - mean_cost) for w, x, y in zip(weights, work, cost, strict=True))
    slope = joint / spread if spread else 0.0
    fixed = mean_cost - slope * mean_work
    if fixed < 0:  # through the origin then
        slope = sum(w * x * y for w, x, y in zip(weights, work, cost, strict=True))
        return Line(0.0, slope / sum(w * x * x for w, x in zip(weights, work, strict=True)))
    if slope < 0:
        return Line(mean_cost, 0.0)
    return Line(fixed, slope)


def caches() -> dict[str, float]:
    """Bytes of this processor's caches by level, all that the first core sees."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = (folder / "level").read_text().strip(), (folder / "size").read_text().strip()
        except OSError:
            continue
        found[f"L{level}"] = float(size.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1], 1)
    return dict(sorted(found.items()))


def reasons(
    costs: Sequence[float], line: Line, work: Sequence[float], largest: Sequence[float], trusted: Sequence[bool]
) -> list[str]:
    """A note for each point: how far it is off the line and probably why, or nothing.

    `largest` are the bytes of the largest feature map at each point: what does not fit into a cache has to be fetched.
    A point that is not `trusted` was measured on a busy machine, and has that for a reason.
    """
    levels, out = caches(), []
    for i, cost in enumerate(costs):
        off = cost / line.at(work[i]) - 1
        if abs(off) <= NEAR:
            share = line.fixed / line.at(work[i])
            out.append(f"{share:.0%} of it is the fixed cost of a call" if share > NEAR else "")
            continue
        if not trusted[i]:
            out.append(f"{off:+.0%} off the line: measured while the machine was busy")
            continue
        within = [name for name, size in levels.items() if largest[i] <= size]
        said = f"{off:+.0%} off the line, probably because "
        fits = f"the largest feature map, {largest[i] / 2**20:.1f} MiB, "
        if off > 0 and not within:
            said += fits + "fits into no cache"
        elif off > 0 and i and within[0] not in [n for n, size in levels.items() if largest[i - 1] <= size][:1]:
            said += fits + f"no longer fits into a smaller cache than {within[0]}"
        elif off < 0 and within:
            said += fits + f"still fits into {within[0]} ({levels[within[0]] / 2**20:.1f} MiB)"
        else:
            said = f"{off:+.0%} off the line: **unexplained**"
        out.append(said)
    return out


def processes(found: Mapping[int, Mapping[str, float]]) -> dict[int, str]:
    """A note for each number of processes: against one with all threads, where the time went."""
    cores, out = len(os.sched_getaffinity(0)), {}
    first = found[min(found)]["seconds"]
    for count, step in found.items():
        threads = int(step["threads"])
        parts = [f"{step['seconds'] / first:.2f} of one process's time", f"{threads} thread{'s' * (threads > 1)} each"]
        if count > 1:
            parts.append(f"{step['exchange'] / step['seconds']:.0%} is spent to exchange gradients or wait for others")
        if count * threads > cores:
            parts.append(f"{count} processes share {cores} cores")
        if step["foreign"] > FOREIGN:
            parts.append(f"the machine was busy with {step['foreign']:.1f} of a core")
        out[count] = "; ".join(parts)
    return out
