"""Mistakes that tests plant in solvers, and that benchmarks measure."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from undiffuse.solvers import DPMpp


def half_bend(correction: Any) -> Any:
    """3M as it is published: the parabola's weight 1/2 - phi / H in place of 1 - 2 phi / H."""

    def published(self: DPMpp, past: Any, h: float) -> Tensor:
        if len(past.where) < 3:
            return correction(self, past, h)
        r0, r1 = (past.where[0] - past.where[1]) / h, (past.where[1] - past.where[2]) / h
        slope = (past.values[0] - past.values[1]) / r0
        bend = (slope - (past.values[1] - past.values[2]) / r1) / (r0 + r1)
        phi = 1 + math.expm1(-h) / h
        return phi * (slope + r0 * bend) - (phi / h - 0.5) * bend

    return published
