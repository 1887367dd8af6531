"""Computes distances between all pairs of features, a tile at a time: neighbours, balls and counts in bounded memory.

Distances are squared Euclidean ones. Self distances are computed for one half of the tiles and used for both. At most a
few tiles of TILE x TILE numbers exist at once, whatever the number of features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features, same_dimension
from undiffuse.metrics.estimate import MetricError
from undiffuse.metrics.filtered import FilteredSquares
from undiffuse.metrics.pairs import Tiles, best_of_rows, keep_smallest

__all__ = ["Precision", "Squares", "kth_neighbour", "nearest", "squares"]

TILE = 4096

Precision = Literal["exact", "float32", "float64", "float16-emulated"]
"""How distances are computed. "exact" measures every distance that decides something by differences in float64, and
finds which those are by a fast product (`FilteredSquares`): the answers of float64 in less time than float32's.
"float32" and "float64" use |u|^2 - 2 u.v + |v|^2 throughout. "float16-emulated" rounds as OpenAI's evaluator does:
features, norms, products and sums to half precision, in float32 where something overflows. It merges near distances,
which lifts precision and recall; the original depends on the order of its sums as well, so the last digits differ."""


def squares(x: Tensor, y: Tensor | None = None, *, precision: Precision = "exact", tile: int = TILE) -> Tiles:
    """Returns the pairs of rows of x [N, D] and y [M, D] (by default of x itself) by their squared distances."""
    if precision not in get_args(Precision):
        raise MetricError(f"unknown precision {precision!r}; use one of {', '.join(map(repr, get_args(Precision)))}")
    if tile < 1:
        raise MetricError(f"a tile must have at least 1 row, got {tile}")
    x = as_features(x)
    if y is not None:
        y = as_features(y)
        same_dimension(x, y)
    return FilteredSquares(x, y, tile) if precision == "exact" else Squares(x, y, precision=precision, tile=tile)


class Squares(Tiles):
    """Computes all squared distances of a tile, |u|^2 - 2 u.v + |v|^2, which are their own bounds.

    In the exact modes features are centred first, which reduces cancellation, and distances within rounding of zero are
    zero, so that copies are copies.
    """

    def __init__(
        self, x: Tensor, y: Tensor | None = None, *, precision: Precision = "float32", tile: int = TILE
    ) -> None:
        self.same = y is None
        other = x if y is None else y
        self.half = precision == "float16-emulated"
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        # A centre of few bits keeps what is exact exact: distances between small integers, and so their ties.
        centre = None if self.half else other.mean(dim=0, dtype=torch.float64).bfloat16().double()
        self.x = self._ready(x, centre)
        self.y = self.x if self.same else self._ready(other, centre)
        self.x_norms = self.x.square().sum(dim=1)
        self.y_norms = self.x_norms if self.same else self.y.square().sum(dim=1)
        self.tile = tile
        self.slack = 8 * torch.finfo(self.dtype).eps

    def _ready(self, features: Tensor, centre: Tensor | None) -> Tensor:
        if centre is None:
            return features.to(self.dtype)
        return torch.cat([(part - centre).to(self.dtype) for part in features.split(TILE)])

    def bounds(self, i: int, j: int, level: int = 0) -> Tensor:
        rows, columns = slice(i, i + self.tile), slice(j, j + self.tile)
        u, v = self.x[rows], self.y[columns]
        if self.half:
            rounded = _half_distances(u, v)
            if rounded is not None:
                return rounded
        sums = self.x_norms[rows, None] + self.y_norms[None, columns]
        largest = float(sums.max())
        distances = sums.addmm_(u, v.T, alpha=-2)
        if self.half:
            return distances.clamp_(min=0)
        if not float(distances.min()) > self.slack * largest:  # which is rare, and costs as much as the rest
            distances[distances <= self.slack * (self.x_norms[rows, None] + self.y_norms[None, columns])] = 0
        return distances.fill_diagonal_(0) if self.same and i == j else distances

    def limits(self, squared: Tensor, bounds: Tensor) -> Tensor:
        return squared

    def measure(self, bounds: Tensor, i: int, j: int, rows: Tensor, columns: Tensor) -> Tensor:
        return bounds[rows, columns]


def _half_distances(u: Tensor, v: Tensor) -> Tensor | None:
    """Returns distances with half-precision rounding after each operation, as float32; None if something overflowed."""
    u, v = u.half(), v.half()
    u_norms, v_norms = (w.square().float().sum(dim=1).half() for w in (u, v))
    products = (u.float() @ v.float().T).half()
    distances = (u_norms[:, None] - 2 * products) + v_norms[None]
    distances = distances.clamp_(min=0)
    return distances.float() if bool(torch.isfinite(distances).all()) else None


def kth_neighbour(x: Tensor, k: int | tuple[int, ...], *, precision: Precision = "exact", tile: int = TILE) -> Tensor:
    """Returns the squared distance from each feature to its k-th nearest other one.

    The feature itself, at distance 0, is not counted. Its copies are other features.

    Args:
        x: [N, D].
        k: One number or several.
        precision: Arithmetic of the distances.
        tile: Rows and columns of distances in memory at once.

    Returns:
        [N, len(k)].

    Raises:
        MetricError: Not more than k features.
    """
    wanted = (k,) if isinstance(k, int) else tuple(k)
    most = max(wanted)
    if min(wanted) < 1:
        raise MetricError(f"k must be at least 1, got {min(wanted)}")
    if len(x) <= most:
        raise MetricError(f"the {most}-th neighbour needs more than {most} images, got {len(x)}")
    tiles = squares(x, precision=precision, tile=tile)
    best = torch.full((len(x), most + 1), torch.inf, dtype=tiles.dtype, device=tiles.x.device)
    starts = list(tiles.starts())
    for i, j in starts:
        if i == j:
            pairs = tiles.smallest(i, i, most + 1)
            keep_smallest(best, pairs.rows, pairs.squared)
    for i, j in starts:
        if i != j:
            last = torch.where(best[:, -1] > 0, best[:, -1], -1)  # nothing is nearer than 0
            pairs = tiles.within(i, j, last, last)
            keep_smallest(best, torch.cat([pairs.rows, pairs.columns]), pairs.squared.repeat(2))
    return best[:, list(wanted)]


class Nearest(NamedTuple):
    """Holds the squared distance [N] to, and the row [N] of, the nearest of other features."""

    squared: Tensor
    row: Tensor


def nearest(x: Tensor, y: Tensor, *, precision: Precision = "exact", tile: int = TILE) -> Nearest:
    """Returns the nearest row of y [M, D] of each row of x [N, D]; the first of equally near ones."""
    if not len(x) or not len(y):
        raise MetricError(f"nearest neighbours need images on both sides, got {len(x)} and {len(y)}")
    tiles = squares(x, y, precision=precision, tile=tile)
    best = torch.full((len(x),), torch.inf, dtype=tiles.dtype, device=tiles.x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=tiles.x.device)
    for i, j in tiles.starts():
        found = best_of_rows(tiles.smallest(i, j, 1) if j == 0 else tiles.within(i, j, best))
        better = found.squared < best[found.rows]
        rows = found.rows[better]
        best[rows], index[rows] = found.squared[better], found.columns[better]
    if precision in ("float32", "float64"):
        # Once found, the few distances are worth their direct form, which separates near from equal.
        pairs = zip(x.split(TILE), index.split(TILE), strict=True)
        best = torch.cat([(u.double() - y[row].double()).square().sum(dim=1) for u, row in pairs]).to(best.dtype)
    return Nearest(best, index)
