"""Distances between all pairs of features, a tile at a time: neighbours, balls and counts in bounded memory.

Squared Euclidean distances |u|^2 - 2 u.v + |v|^2. Self distances are computed for one half of the tiles and used for
both. At most a few tiles of TILE x TILE numbers exist at once, whatever the number of features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features, same_dimension
from undiffuse.metrics.estimate import MetricError

__all__ = ["Precision", "Squares", "kth_neighbour", "nearest"]

TILE = 4096

Precision = Literal["float32", "float64", "float16-emulated"]
"""How distances are computed. "float16-emulated" rounds as OpenAI's evaluator does: features, norms, products and sums
to half precision, in float32 where something overflows. It merges near distances, which lifts precision and recall;
the original depends on the order of its sums as well, so the last digits differ."""


class Squares:
    """Squared distances between rows of x [N, D] and rows of y [M, D] (y is x for self distances), tile by tile.

    In the exact modes features are centred first, which cuts cancellation, and distances within rounding of zero are
    zero, so that copies are copies.
    """

    def __init__(
        self, x: Tensor, y: Tensor | None = None, *, precision: Precision = "float32", tile: int = TILE
    ) -> None:
        if precision not in ("float32", "float64", "float16-emulated"):
            raise MetricError(f"unknown precision {precision!r}; use 'float32', 'float64' or 'float16-emulated'")
        if tile < 1:
            raise MetricError(f"a tile must have at least 1 row, got {tile}")
        x = as_features(x)
        self.same = y is None
        other = x if y is None else as_features(y)
        same_dimension(x, other)
        self.half = precision == "float16-emulated"
        dtype = torch.float64 if precision == "float64" else torch.float32
        # A centre of few bits keeps what is exact exact: distances between small integers, and so their ties.
        centre = None if self.half else other.mean(dim=0, dtype=torch.float64).bfloat16().double()
        self.x = self._ready(x, centre, dtype)
        self.y = self.x if self.same else self._ready(other, centre, dtype)
        self.x_norms = self.x.square().sum(dim=1)
        self.y_norms = self.x_norms if self.same else self.y.square().sum(dim=1)
        self.tile = tile
        self.slack = 8 * torch.finfo(dtype).eps

    @staticmethod
    def _ready(features: Tensor, centre: Tensor | None, dtype: torch.dtype) -> Tensor:
        if centre is None:
            return features.to(dtype)
        return torch.cat([(part - centre).to(dtype) for part in features.split(TILE)]) if len(features) else features

    def block(self, i: int, j: int) -> Tensor:
        """Distances [<= tile, <= tile] from row i of x and row j of y onwards."""
        rows, columns = slice(i, i + self.tile), slice(j, j + self.tile)
        u, v = self.x[rows], self.y[columns]
        if self.half:
            rounded = _half_distances(u, v)
            if rounded is not None:
                return rounded
        sums = self.x_norms[rows, None] + self.y_norms[None, columns]
        distances = torch.addmm(sums, u, v.T, alpha=-2)
        if self.half:
            return distances.clamp_(min=0)
        distances[distances <= self.slack * sums] = 0
        return distances

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(i, j, distances) of all tiles; of self distances those with i <= j."""
        for i in range(0, len(self.x), self.tile):
            for j in range(i if self.same else 0, len(self.y), self.tile):
                yield i, j, self.block(i, j)


def _half_distances(u: Tensor, v: Tensor) -> Tensor | None:
    """Distances with half-precision rounding after each operation, as float32; None if something overflowed."""
    u, v = u.half(), v.half()
    u_norms, v_norms = (w.square().float().sum(dim=1).half() for w in (u, v))
    products = (u.float() @ v.float().T).half()
    distances = (u_norms[:, None] - 2 * products) + v_norms[None]
    distances = distances.clamp_(min=0)
    return distances.float() if bool(torch.isfinite(distances).all()) else None


def kth_neighbour(x: Tensor, k: int | tuple[int, ...], *, precision: Precision = "float32", tile: int = TILE) -> Tensor:
    """Squared distance [N, len(k)] from each feature to its k-th nearest other one, for each of the given k.

    The feature itself is among its neighbours at distance 0 and is not counted, nor are its copies told from others.
    MetricError unless there are more than k features.
    """
    wanted = (k,) if isinstance(k, int) else tuple(k)
    most = max(wanted)
    if min(wanted) < 1:
        raise MetricError(f"k must be at least 1, got {min(wanted)}")
    if len(x) <= most:
        raise MetricError(f"the {most}-th neighbour needs more than {most} images, got {len(x)}")
    squares = Squares(x, precision=precision, tile=tile)
    best = torch.full((len(x), most + 1), torch.inf, dtype=squares.x.dtype, device=x.device)
    for i, j, distances in squares.blocks():
        if i == j and not squares.half:
            distances.fill_diagonal_(0)
        _keep_smallest(best, i, distances)
        if i != j:
            _keep_smallest(best, j, distances.T.contiguous())
    return best[:, list(wanted)]


def _keep_smallest(best: Tensor, start: int, distances: Tensor) -> None:
    rows = slice(start, start + len(distances))
    keep = best.shape[1]
    found = distances.topk(min(keep, distances.shape[1]), dim=1, largest=False).values
    best[rows] = torch.cat([best[rows], found], dim=1).sort(dim=1).values[:, :keep]


class Nearest(NamedTuple):
    """Squared distance [N] to, and row [N] of, the nearest of other features."""

    squared: Tensor
    row: Tensor


def nearest(x: Tensor, y: Tensor, *, precision: Precision = "float32", tile: int = TILE) -> Nearest:
    """The nearest row of y [M, D] of each row of x [N, D]; the first of equally near ones."""
    if not len(x) or not len(y):
        raise MetricError(f"nearest neighbours need images on both sides, got {len(x)} and {len(y)}")
    squares = Squares(x, y, precision=precision, tile=tile)
    best = torch.full((len(x),), torch.inf, dtype=squares.x.dtype, device=x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for i, j, distances in squares.blocks():
        found, where = distances.min(dim=1)
        rows = slice(i, i + len(found))
        better = found < best[rows]
        best[rows] = torch.where(better, found, best[rows])
        index[rows] = torch.where(better, where + j, index[rows])
    if not squares.half:
        # Once found, the few distances are worth their direct form, which tells near from equal.
        pairs = zip(x.split(TILE), index.split(TILE), strict=True)
        best = torch.cat([(u.double() - y[row].double()).square().sum(dim=1) for u, row in pairs]).to(best.dtype)
    return Nearest(best, index)
