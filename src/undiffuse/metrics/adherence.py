"""Metrics that show whether a conditional model obeys: what was given against what is measured in its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undiffuse.metrics.estimate import Estimate

__all__ = [
    "MEASURES", "NumberAdherence", "brightness", "contrast", "edge_agreement", "edge_maps", "number_adherence",
]  # fmt: skip

_BLOCKS = 20


def brightness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns the mean of all pixels of each image uint8 [N, H, W, C], 0 to 255."""
    return _flat(images).mean(axis=1)


def contrast(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns the standard deviation of the pixels of each image uint8 [N, H, W, C]."""
    return _flat(images).std(axis=1)


MEASURES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float64]]] = {
    "brightness": brightness,
    "contrast": contrast,
}
"""Numbers that can be measured in images, by the names that conditions have."""


@dataclass(frozen=True)
class NumberAdherence:
    """How well numbers that are measured in images follow the numbers that were given.

    Attributes:
        count: Number of images.
        error: Mean absolute error in the units of the number.
        stderr: Standard error of `error`.
        correlation: Pearson's correlation.
        slope: Slope of the measured numbers over the given ones; 1 is exact.
        spread: Mean absolute error of guessing: of the given numbers, each against one drawn from the others.
    """

    count: int
    error: float
    stderr: float
    correlation: float
    slope: float
    spread: float

    def estimates(self, name: str) -> list[Estimate]:
        """Returns the values as estimates for a report; `name` is the number's."""
        made = Estimate(name=f"{name} error", value=self.error, stderr=self.stderr, n=self.count)
        return [made, Estimate(name=f"{name} correlation", value=self.correlation, n=self.count)]


def number_adherence(given: NDArray[np.floating], measured: NDArray[np.floating]) -> NumberAdherence:
    """Compares numbers that were given with those measured in the images.

    Args:
        given: [N], what each image was to have.
        measured: [N], what it has, in the same units.

    Raises:
        ValueError: Other shapes, fewer than two images, or numbers that are not finite.
    """
    x, y = np.asarray(given, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"expected two lists of at least 2 numbers each, got {list(x.shape)} and {list(y.shape)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the numbers must be finite")
    wrong = np.abs(y - x)
    varies = x.std() > 0 and y.std() > 0
    order = np.sort(x)  # the mean of |x_i - x_j| over all pairs, by their ranks
    others = 2 * (order * (2 * np.arange(len(x)) - len(x) + 1)).sum() / (len(x) * (len(x) - 1))
    return NumberAdherence(
        count=len(x),
        error=float(wrong.mean()),
        stderr=float(wrong.std(ddof=1) / len(x) ** 0.5),
        correlation=float(np.corrcoef(x, y)[0, 1]) if varies else float("nan"),
        slope=float(((x - x.mean()) * (y - y.mean())).mean() / x.var()) if varies else float("nan"),
        spread=float(others),
    )


def edge_maps(images: NDArray[np.uint8], threshold: float = 0.25) -> NDArray[np.bool_]:
    """Finds edges by Sobel's gradient.

    Args:
        images: uint8 [N, H, W] or [N, H, W, C]; colours are averaged.
        threshold: Smallest length of the gradient, where 1 is a step from black to white along an axis.

    Returns:
        bool [N, H, W].
    """
    grey = np.asarray(images, dtype=np.float64) / 255
    grey = grey.mean(axis=-1) if grey.ndim == 4 else grey
    p = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows, columns = p[:, 2:] - p[:, :-2], p[:, :, 2:] - p[:, :, :-2]
    down = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    across = (columns[:, :-2] + 2 * columns[:, 1:-1] + columns[:, 2:]) / 4
    return np.hypot(down, across) > threshold


def edge_agreement(given: NDArray[np.bool_], found: NDArray[np.bool_], tolerance: int = 1) -> NDArray[np.float64]:
    """Returns the F1 score of the edges of each image against those that were given.

    An edge pixel is right if the other map has one within `tolerance` pixels, along each axis. F1 is the harmonic mean
    of the share of found pixels that are right (precision) and of given pixels that are found (recall).

    Args:
        given: bool [N, H, W].
        found: bool [N, H, W].
        tolerance: Pixels, 0 or more.

    Returns:
        [N], from 0 to 1; 1 where neither map has edges.
    """
    if given.shape != found.shape or given.ndim != 3:
        raise ValueError(f"expected two maps [N, H, W] of one shape, got {list(given.shape)} and {list(found.shape)}")
    right = (found & _grown(given, tolerance)).sum(axis=(1, 2)).astype(np.float64)
    seen = (given & _grown(found, tolerance)).sum(axis=(1, 2)).astype(np.float64)
    here, there = found.sum(axis=(1, 2)), given.sum(axis=(1, 2))
    precision = np.where(here > 0, right / np.maximum(here, 1), (there == 0).astype(np.float64))
    recall = np.where(there > 0, seen / np.maximum(there, 1), (here == 0).astype(np.float64))
    total = precision + recall
    return np.where(total > 0, 2 * precision * recall / np.maximum(total, 1e-300), 0.0)


def _grown(maps: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    height, width = maps.shape[1:]
    p = np.pad(maps, ((0, 0), (by, by), (by, by)))
    out = np.zeros_like(maps)
    for down in range(2 * by + 1):
        for across in range(2 * by + 1):
            out |= p[:, down : down + height, across : across + width]
    return out


def _flat(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(images).reshape(len(images), -1).astype(np.float64)
