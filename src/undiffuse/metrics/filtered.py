"""Computes exact distances at the cost of rough ones: a fast product rules out nearly all pairs, the rest are measured.

Metrics of neighbourhoods need only a few distances per image. A matrix product of rounded features
gives for every pair a number that provably does not exceed half its squared distance. Pairs for which it does not
exceed the limit either, a few in a thousand, are measured by sum (u - v)^2 in float64. So every decision is the one
that float64 throughout would take, ties included, in the time of the fast product.

The bound. Features are centred and scaled by a power of two. With u = r + d, r being u rounded to bfloat16 and d the
rest, and m = |u| + |d|,

    |u - v|^2 / 2  >=  |u|^2 / 2 + |v|^2 / 2 - r_u.r_v - |d_u| m_v - m_u |d_v|              (Cauchy-Schwarz)

A sum of K products in float32, in whatever order, is off by at most K 2^-24 times the sum of their magnitudes (Higham
2002, section 3.1), here less than 1.1 (m_u^2 + m_v^2). The halves are reduced by that and by the rounding of norms;
|d| and m are rounded up. All terms are columns of the factors, whose product then is the bound:

    [-r_u, a_u, 1, -|d_u|, -m_u] . [r_v, 1, a_v, m_v, |d_v|]          a: the reduced half, in three rounded parts

Rounding the result, too, keeps the order: limits are rounded in the same way.
"""

from __future__ import annotations

import functools
import math
import time

import torch
from torch import Tensor

from undiffuse.metrics.pairs import Tiles

__all__ = ["FilteredSquares"]

STRIP = 128  # features rounded, and pairs measured, at once: in the cache
PARTS = 3  # rounded numbers that together make one
ALIGNED = 32  # factors have a multiple of so many columns
SLACK = 6  # times K 2^-24 of the halves: 2.3 are needed for the product's rounding and 1 for that of the norms
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class FilteredSquares(Tiles):
    """Measures squared distances in float64 with rough bounds; see `Tiles`.

    `product` is the type in which bounds are computed, by default the faster one here. Results do not depend on it. The
    finer bounds are computed in float64.
    """

    levels = 2

    def __init__(self, x: Tensor, y: Tensor | None, tile: int, product: torch.dtype | None = None) -> None:
        self.x, self.same, self.tile = x, y is None, tile
        self.y = x if y is None else y
        self.dtype = torch.float64
        self.centre = self.y.mean(dim=0)
        if not bool(self.centre.isfinite().all()):
            self.centre = self.y[:1].mean(dim=0)  # any centre will do
        sides = [self.x] if self.same else [self.x, self.y]
        largest = max((_largest(features, self.centre) for features in sides), default=0.0)
        self.scale = 2.0 ** min(500, max(-500, -math.frexp(largest)[1]))
        self._work = torch.float64 if largest > 1e30 else torch.float32  # at least
        product = product or _fast_type(x.device.type)
        factors = [self._factor(features, torch.bfloat16).to(product) for features in sides]
        self._x, self._y = factors[0], factors[-1]
        self._left = (-1, self._x)  # the rows of a tile, turned to be the left factor

    def bounds(self, i: int, j: int, level: int = 0) -> Tensor:
        if level:
            x = self._factor(self.x[i : i + self.tile], torch.float64)
            y = self._factor(self.y[j : j + self.tile], torch.float64)
            return _product(_turned(x, self.x.shape[1]), y)
        if self._left[0] != i:
            self._left = (i, _turned(self._x[i : i + self.tile], self.x.shape[1]))
        return _product(self._left[1], self._y[j : j + self.tile])

    def limits(self, squared: Tensor, bounds: Tensor) -> Tensor:
        halves = (squared.double() * (self.scale**2 / 2)).to(bounds.dtype)
        return torch.where(squared < 0, -0.0, halves).to(bounds.dtype)

    def measure(self, bounds: Tensor, i: int, j: int, rows: Tensor, columns: Tensor) -> Tensor:
        out = torch.empty(len(rows), dtype=torch.float64, device=self.x.device)
        u, v = (features.new_empty(STRIP, features.shape[1]) for features in (self.x, self.y))
        difference = u.to(torch.float64, copy=True)
        for start in range(0, len(rows), STRIP):
            at = slice(start, min(start + STRIP, len(rows)))
            n = at.stop - start
            torch.index_select(self.x, 0, rows[at] + i, out=u[:n])
            torch.index_select(self.y, 0, columns[at] + j, out=v[:n])
            difference[:n].copy_(u[:n]).sub_(v[:n])
            torch.sum(difference[:n].square_(), dim=1, out=out[at])
        return out

    def near(self, bounds: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
        # As integers of their bits, floats from 0 on keep their order, and negative ones (and -0) are below them,
        # which is all that is needed of limits from 0 on. Integers are compared in half the time.
        whole = INTEGERS[bounds.dtype]
        near = bounds.view(whole) <= self.limits(rows, bounds).view(whole)[:, None]
        if columns is not None:
            near |= bounds.view(whole) <= self.limits(columns, bounds).view(whole)[None]
        return near

    def _factor(self, features: Tensor, rounded: torch.dtype) -> Tensor:
        """Returns the right factor [N, K] of features [N, D]: [r, 1, 1, 1, a1, a2, a3, m, |d|, 0...]."""
        dimension = features.shape[1]
        work = torch.promote_types(features.dtype, torch.float64 if rounded == torch.float64 else self._work)
        width = -(-(dimension + 2 * PARTS + 2) // ALIGNED) * ALIGNED
        unit = UNIT[torch.float64 if rounded == torch.float64 else torch.float32]
        slack = SLACK * (width + 32) * unit
        factor = torch.zeros(len(features), width, dtype=rounded, device=features.device)
        factor[:, dimension : dimension + PARTS] = 1
        for start in range(0, len(features), STRIP):
            at = slice(start, start + STRIP)
            u = (features[at].to(work) - self.centre) * self.scale
            factor[at, :dimension] = u
            squares = u.square().sum(dim=1).double()
            rest = (u - factor[at, :dimension]).square_().sum(dim=1).double().sqrt() * (1 + slack)
            norm = squares.sqrt() * (1 + slack)
            rest += 4 * UNIT[work] * norm  # of the subtraction of the centre
            # Where numbers are so small that products are lost, they differ by less than the last term.
            remaining = squares / 2 * (1 - slack) - 2.0**-100
            for part in range(PARTS):
                factor[at, dimension + PARTS + part] = remaining
                remaining -= factor[at, dimension + PARTS + part]
            factor[at, dimension + 2 * PARTS] = _rounded_up(norm + rest, rounded)
            factor[at, dimension + 2 * PARTS + 1] = _rounded_up(rest, rounded)
        return factor


def _product(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.T


def _turned(factor: Tensor, dimension: int) -> Tensor:
    """Returns the left factor of rows of right ones."""
    turned = torch.zeros_like(factor)
    turned[:, :dimension] = -factor[:, :dimension]
    one, half, norm = dimension, dimension + PARTS, dimension + 2 * PARTS
    turned[:, one:half] = factor[:, half:norm]
    turned[:, half:norm] = 1
    turned[:, norm] = -factor[:, norm + 1]
    turned[:, norm + 1] = -factor[:, norm]
    return turned


def _rounded_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    return torch.where(rounded < values, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded)


def _largest(features: Tensor, centre: Tensor) -> float:
    """Returns a number that is at least the largest norm of centred features."""
    if not len(features):
        return 0.0
    ends = torch.stack([features.amax(dim=0), features.amin(dim=0)]).double() - centre
    return float(ends.abs().max()) * math.sqrt(features.shape[1])


@functools.cache
def _fast_type(device: str) -> torch.dtype:
    """Returns bfloat16 if this processor multiplies it faster than float32.

    GPUs may round sums of bfloat16 on the way, so there it is float32 (of rounded numbers, which TF32 does not change).
    """
    if device != "cpu":
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        factor = torch.ones(256, 1024, dtype=dtype)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            factor @ factor.T
            times.append(time.perf_counter() - begin)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])
