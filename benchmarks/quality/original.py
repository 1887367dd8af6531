"""The arithmetic of OpenAI's evaluator after its network, written from its description.

Means and `np.cov`; `scipy.linalg.sqrtm` of the product of covariances, once more with 1e-6 on both diagonals where it
is not finite; the mean of exp(KL) over chunks of 5,000 softmaxed scores; squared distances in tiles of 10,000 x 10,000,
|u|^2 - 2 u.v + |v|^2, with the k-th neighbour by `np.partition` of whole rows, in as many threads as there are.

The evaluator computes tiles in float16 by TensorFlow, and in float32 where that overflows. NumPy has no fast product of
float16; TensorFlow 2.21's takes as long as its float32 one on a CPU with bfloat16 arithmetic. Here they are float32.
"""

from __future__ import annotations

from multiprocessing.pool import ThreadPool

import numpy as np
import scipy.linalg

K = 3
TILE = 10_000
CHUNK = 5_000
BATCH = 512


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def frechet(x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray], epsilon: float = 1e-6) -> float:
    (x_mean, x_covariance), (y_mean, y_covariance) = x, y
    root = scipy.linalg.sqrtm(x_covariance @ y_covariance)
    if not np.isfinite(root).all():
        more = epsilon * np.eye(len(x_covariance))
        root = scipy.linalg.sqrtm((x_covariance + more) @ (y_covariance + more))
    if np.iscomplexobj(root):
        if np.abs(root.diagonal().imag).max() > 1e-3:
            raise ValueError(f"imaginary part {np.abs(root.imag).max()}")
        root = root.real
    shift = x_mean - y_mean
    return float(shift @ shift + np.trace(x_covariance) + np.trace(y_covariance) - 2 * np.trace(root))


def inception_score(features: np.ndarray, weights: np.ndarray) -> float:
    batches = []
    for start in range(0, len(features), BATCH):
        scores = features[start : start + BATCH] @ weights
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        batches.append(scores / scores.sum(axis=1, keepdims=True))
    p = np.concatenate(batches)
    found = []
    for start in range(0, len(p), CHUNK):
        part = p[start : start + CHUNK]
        divergence = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        found.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(found))


def distances(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    squares = np.square(u).sum(axis=1)[:, None] - 2 * (u @ v.T) + np.square(v).sum(axis=1)[None]
    return np.maximum(squares, 0)


def radii(features: np.ndarray, threads: int) -> np.ndarray:
    """Squared distance [N] to the K-th neighbour, the image itself being the first of its neighbours."""
    found = np.empty(len(features), dtype=np.float32)
    rows_at_once = np.zeros((min(TILE, len(features)), len(features)), dtype=np.float32)
    for start in range(0, len(features), TILE):
        rows = features[start : start + TILE]
        for column in range(0, len(features), TILE):
            rows_at_once[: len(rows), column : column + TILE] = distances(rows, features[column : column + TILE])
        with ThreadPool(threads) as pool:
            parts = np.array_split(rows_at_once[: len(rows)], threads)
            ordered = pool.map(lambda part: np.partition(part, np.arange(K + 1), axis=1), parts)
        found[start : start + TILE] = np.concatenate([part[:, K] for part in ordered])
    return found


def precision_recall(x: np.ndarray, y: np.ndarray, threads: int) -> tuple[float, float]:
    x_radii, y_radii = radii(x, threads), radii(y, threads)
    inside, found = np.zeros(len(x), dtype=bool), np.zeros(len(y), dtype=bool)
    for start in range(0, len(x), TILE):
        for column in range(0, len(y), TILE):
            squares = distances(x[start : start + TILE], y[column : column + TILE])
            inside[start : start + TILE] |= (squares <= y_radii[None, column : column + TILE]).any(axis=1)
            found[column : column + TILE] |= (squares <= x_radii[start : start + TILE, None]).any(axis=0)
    return float(inside.mean()), float(found.mean())
