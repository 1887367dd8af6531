"""Axes of a plot: a range of numbers, a range of pixels, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "nice_step", "tick_labels"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps numbers low..high to pixels first..last, linearly or by logarithm; for y, ``first`` is the lower end."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def position(self, value: float) -> float:
        """The pixel (a fraction) where ``value`` lies."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.first + (value - low) / (high - low) * (self.last - self.first)

    def ticks(self, wanted: int) -> list[float]:
        """About ``wanted`` round numbers within the range, ascending."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        step = nice_step(self.high - self.low, wanted)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    @staticmethod
    def around(
        values: Sequence[float], *, log: bool = False, wanted: int = 6, tight: bool = False
    ) -> tuple[float, float]:
        """A range (low, high) that holds all values: ending at ticks, or at the values themselves when ``tight``."""
        low, high = min(values), max(values)
        if log:
            if high / low < 1.25:  # about constant: give it some air
                low, high = low / 1.5, high * 1.5
            return (low, high) if tight else (low / (high / low) ** 0.03, high * (high / low) ** 0.03)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            pad = abs(low) * 0.1 or 1.0
            low, high = low - pad, high + pad
        if tight:
            return low, high
        step = nice_step(high - low, wanted)
        return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def nice_step(span: float, wanted: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that cuts ``span`` into at most ``wanted`` parts."""
    rough = span / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1.0, 2.0, 2.5, 5.0) if m * power >= rough * (1 - 1e-9)), 10 * power)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Short texts for ticks that are read together: as many decimals as needed; 20k, 1.5M for large numbers."""
    largest = max((abs(t) for t in ticks), default=0.0)
    if largest and (largest < 1e-3 or largest >= 1e12):
        return [f"{t:.3g}".replace("e-0", "e-").replace("e+", "e") for t in ticks]
    unit, suffix = next(
        ((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * u or largest >= u >= 1e6), (1.0, "")
    )
    scaled = [t / unit for t in ticks]
    # Rounding to the last decimal that any tick needs; sums of floating-point steps end in ...0001.
    decimals = next((d for d in range(7) if all(abs(round(t, d) - t) < 1e-6 * (largest / unit) for t in scaled)), 7)
    return ["0" if t == 0 else f"{t:.{decimals}f}{suffix}" for t in scaled]


def log_tick_label(tick: float) -> str:
    """A text for one tick of a logarithmic axis, where neighbours differ too much to share decimals."""
    if 1e-4 <= tick < 1e4:
        return f"{tick:.10f}".rstrip("0").rstrip(".")
    return tick_labels([tick])[0] if 1e4 <= tick < 1e12 else f"{tick:.0e}".replace("e-0", "e-").replace("e+", "e")


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    start, stop = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    every = max(1, math.ceil(decades / wanted))
    fine = (1, 2, 3, 4, 5, 6, 7, 8, 9) if decades < 0.7 else (1, 2, 5) if decades < 2.5 else (1,)
    ticks = [m * 10.0**k for k in range(start, stop + 1, every) for m in fine]
    inside = [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
    if len(inside) >= 2:
        return inside
    return Axis(low=low, high=high, first=0, last=1).ticks(wanted)  # less than one step of a decade: round numbers
