"""Timing on a GPU: blocks of calls in turns, each ended by waiting for the device; and the memory that calls take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]


def wait(device: torch.device) -> None:
    """Waits until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm(call: Call, device: torch.device, calls: int = 3) -> dict[str, float]:
    """Makes the first calls: seconds of the first one, and the most memory beyond what was held before, in bytes.

    The second call of ours is recorded as a CUDA graph, so that there are three.
    """
    wait(device)
    held = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    began = time.perf_counter()
    call()
    wait(device)
    first = time.perf_counter() - began
    for _ in range(calls - 1):
        call()
    wait(device)
    peak = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else 0
    return {"first": first, "beyond": float(peak)}


def in_turns(
    calls: Mapping[str, Call], device: torch.device, rounds: int, seconds: float, until: float
) -> dict[str, dict[str, Any]]:
    """Times calls in turns.

    Args:
        calls: The calls, by name; each was made before.
        device: Where they run.
        rounds: Blocks of each.
        seconds: Length of a block; one call at least.
        until: The monotonic clock's time after which no round begins, but for the first one.

    Returns:
        By name: "seconds" of a call (median of blocks), "spread" (half the distance of the quartiles relative to
        that), "blocks" (seconds of a call in each).
    """
    order = list(calls)
    found: dict[str, list[float]] = {name: [] for name in order}
    for number in range(rounds):
        if number and time.monotonic() > until:
            break
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            found[name].append(_block(calls[name], device, seconds))
    return {name: _summary(blocks) for name, blocks in found.items()}


def _block(call: Call, device: torch.device, seconds: float) -> float:
    wait(device)
    began, count = time.perf_counter(), 0
    while True:
        call()
        wait(device)  # a caller who looks at the result waits, too
        count += 1
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return elapsed / count


def _summary(blocks: list[float]) -> dict[str, Any]:
    middle = statistics.median(blocks)
    quartiles = statistics.quantiles(blocks, n=4) if len(blocks) > 1 else [middle] * 3
    spread = (quartiles[2] - quartiles[0]) / 2 / middle
    return {"seconds": middle, "spread": spread, "blocks": [round(block, 7) for block in blocks]}
