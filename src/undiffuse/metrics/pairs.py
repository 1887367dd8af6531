"""Finds pairs of features that are near each other, a tile at a time in bounded memory.

Metrics of neighbourhoods need few of N x M distances: the nearest, and those within given limits. `Tiles` checks all
pairs of a tile at once by numbers that say which may be among them, and measures only those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pairs", "Tiles", "best_of_rows", "keep_smallest", "where_true"]


MANY = 64  # where more than one pair in so many is near, finer bounds are worth their time


class Pairs(NamedTuple):
    """Holds rows of x [P] and rows of y [P], in rising order of row, then column, and their squared distances [P]."""

    rows: Tensor
    columns: Tensor
    squared: Tensor


class Tiles:
    """Goes through pairs of rows of x [N, D] and of y [M, D] (y is x for self distances), `tile` x `tile` at a time.

    A subclass computes the `bounds` of a tile, which for a pair are at most what `limits` makes of its squared
    distance. Where they are `near` a limit the pair is measured. Its `levels` of bounds are increasingly fine ones, for
    tiles of which the ones before rule out too little. `dtype` is that of squared distances.
    """

    x: Tensor
    y: Tensor
    same: bool
    tile: int
    dtype: torch.dtype
    levels: int = 1

    def bounds(self, i: int, j: int, level: int = 0) -> Tensor:
        """Returns bounds [<= tile, <= tile] from row i of x and row j of y onwards."""
        raise NotImplementedError

    def limits(self, squared: Tensor, bounds: Tensor) -> Tensor:
        """Returns squared distances as numbers that these bounds can be compared with; negative ones are below all."""
        raise NotImplementedError

    def measure(self, bounds: Tensor, i: int, j: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Returns squared distances [P] of the pairs at `rows` and `columns` of a tile."""
        raise NotImplementedError

    def starts(self) -> Iterator[tuple[int, int]]:
        """Returns (i, j) of all tiles; of self distances those with i <= j."""
        for i in range(0, len(self.x), self.tile):
            for j in range(i if self.same else 0, len(self.y), self.tile):
                yield i, j

    def within(self, i: int, j: int, rows: Tensor, columns: Tensor | None = None) -> Pairs:
        """Returns all pairs of a tile up to the limit of their row or of their column, and some more.

        `rows` [N] and `columns` [M] are the limits of all rows and columns; negative where nothing is wanted.
        """
        return self._search(i, j, lambda bounds: rows[i : i + self.tile], columns)

    def smallest(self, i: int, j: int, count: int) -> Pairs:
        """Returns all pairs of a tile that are among the `count` nearest of their row, and some more."""

        def farthest(bounds: Tensor) -> Tensor:
            # So many pairs are no farther than the farthest of these, whether these are the nearest ones or not.
            found = bounds.topk(min(count, bounds.shape[1]), dim=1, largest=False).indices
            rows = torch.arange(len(found), device=found.device)[:, None].expand_as(found).flatten()
            return self.measure(bounds, i, j, rows, found.flatten()).view(found.shape).amax(dim=1)

        return self._search(i, j, farthest, None)

    def _search(self, i: int, j: int, rows: Callable[[Tensor], Tensor], columns: Tensor | None) -> Pairs:
        for level in range(self.levels):
            bounds = self.bounds(i, j, level)
            near = self.near(bounds, rows(bounds), None if columns is None else columns[j : j + self.tile])
            found, where = where_true(near)
            if len(found) * MANY <= bounds.numel():
                break
        return Pairs(found + i, where + j, self.measure(bounds, i, j, found, where))

    def near(self, bounds: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
        """Returns where bounds are up to the limits of their row or of their column."""
        near = bounds <= self.limits(rows, bounds)[:, None]
        if columns is not None:
            near |= bounds <= self.limits(columns, bounds)[None]
        return near


def where_true(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows and columns where `mask` is true: few are, so eight places at once are checked first."""
    if mask.shape[1] % 8:
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    rows, words = mask.view(torch.int64).nonzero(as_tuple=True)
    which, byte = mask.view(len(mask), -1, 8)[rows, words].nonzero(as_tuple=True)
    return rows[which], words[which] * 8 + byte


def _by_row(rows: Tensor, squared: Tensor) -> tuple[Tensor, Tensor]:
    """Returns an order of pairs by row, then by distance, then as they were; and the place of each within its row."""
    order = squared.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    ordered = rows[order]
    return order, torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)


def keep_smallest(best: Tensor, rows: Tensor, squared: Tensor) -> None:
    """Puts distances [P] of `rows` [P] among the smallest of each row, `best` [N, K], which rise."""
    order, place = _by_row(rows, squared)
    kept = place < best.shape[1]
    order, place = order[kept], place[kept]
    changed, index = rows[order].unique_consecutive(return_inverse=True)
    found = best.new_full((len(changed), best.shape[1]), torch.inf)
    found[index, place] = squared[order]
    best[changed] = torch.cat([best[changed], found], dim=1).sort(dim=1).values[:, : best.shape[1]]


def best_of_rows(pairs: Pairs) -> Pairs:
    """Returns the nearest pair of each row that has one; of equally near ones the first."""
    order, place = _by_row(pairs.rows, pairs.squared)
    first = order[place == 0]
    return Pairs(pairs.rows[first], pairs.columns[first], pairs.squared[first])
