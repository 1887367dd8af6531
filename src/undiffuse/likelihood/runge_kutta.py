"""An ordinary differential equation with integrals along its way, steps by error tolerance for every row by itself.

Dormand & Prince's pair of orders 5 and 4 (1980): seven slopes a step, the last of which is the first of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_AT = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_FROM = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""The last row gives the new value too."""
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_FIRST, _LEAST = 1 / 30, 1 / 1000  # of the whole way: the first trial, and what is taken whatever its error

Slope = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x [n, ...], u [n] float64, which rows these are [n]) -> (dx/du of x's shape, dq/du [n, P] float64)."""


@dataclass(frozen=True)
class Arrival:
    """Where B rows ended: x [B, ...], the integrals q [B, P] (float64), and what it took.

    `nfe` [B] slopes, `forced` [B] steps at the least length that were taken although they missed the tolerance.
    """

    x: Tensor
    q: Tensor
    nfe: Tensor
    forced: Tensor


def integrate(slope: Slope, x: Tensor, begin: float, end: float, tol: float, weight: float = 1.0) -> Arrival:
    """Go from u = `begin` to `end` > `begin`, from x [B, ...] and integrals that begin at 0.

    A step is taken when the pair's difference is at most `tol` both ways: of x as root mean square over its elements,
    relative to 1 + |x|; of every integral times `weight`. That is the error of one step; those of all steps add up.
    The length of a row's steps depends on nothing but the row. Rows that have arrived are not computed any further.

    ValueError where the way or an integral leaves the finite numbers.
    """
    whole = end - begin
    u = torch.full((len(x),), begin, dtype=torch.float64)
    length = torch.full_like(u, whole * _FIRST)
    rows = torch.arange(len(x))
    x = x.clone()
    first, first_q = slope(x, u, rows)
    q = torch.zeros_like(first_q)
    nfe, forced = torch.ones_like(rows), torch.zeros_like(rows)
    while len(rows):
        here = rows.to(x.device)
        step = length[rows].minimum(end - u[rows])
        new, gain, last, last_q, error = _trial(
            slope, x[here], u[rows], step, (first[here], first_q[rows]), rows, tol, weight
        )
        short = step <= 1.000001 * whole * _LEAST
        accepted = (error <= 1) | short
        taken = rows[accepted]
        there = taken.to(x.device)
        if not bool(torch.isfinite(new[accepted.to(x.device)]).all() and torch.isfinite(gain[accepted]).all()):
            raise ValueError(
                "the flow left the finite numbers: the network's output or its gradient is not finite, or it was never "
                "trained at these levels. Check the weights, or use --precision fp32"
            )
        x[there], first[there] = new[accepted.to(x.device)], last[accepted.to(x.device)]
        q[taken] += gain[accepted]
        first_q[taken] = last_q[accepted]
        arrived = step >= end - u[rows]
        u[taken] = torch.where(arrived, end, u[rows] + step)[accepted]
        nfe[rows] += len(_AT)
        forced[rows] += (short & (error > 1)).long()
        factor = (_SAFETY * error.clamp(min=1e-12) ** (-1 / 5)).clamp(_SHRINK, _GROW)
        length[rows] = (step * factor).clamp(min=whole * _LEAST)
        rows = rows[u[rows] < end]
    return Arrival(x, q, nfe, forced)


def _trial(
    slope: Slope,
    x: Tensor,
    u: Tensor,
    step: Tensor,
    first: tuple[Tensor, Tensor],
    rows: Tensor,
    tol: float,
    weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(new x, what the integrals gain, both slopes there, the error [n] in units of the tolerance)."""
    h = step.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    slopes, rates = [first[0]], [first[1]]
    new = x
    for at, weights in zip(_AT, _FROM, strict=True):
        new = x + h * _sum(weights, slopes)
        dx, dq = slope(new, u + at * step, rows)
        slopes.append(dx)
        rates.append(dq)
    scale = tol * (1 + x.abs().maximum(new.abs()))
    wrong = (h * _sum(_ERROR, slopes) / scale).cpu().double().flatten(1).square().mean(1).sqrt()
    wrong_q = (step[:, None] * _sum(_ERROR, rates)).abs().amax(1) * weight / tol
    gain = step[:, None] * _sum(_FROM[-1], rates[:-1])
    error = torch.nan_to_num(wrong.maximum(wrong_q), nan=torch.inf, posinf=torch.inf)
    return new, gain, slopes[-1], rates[-1], error


def _sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    terms = [w * v for w, v in zip(weights, values, strict=True) if w]
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
