"""Reader of the golden numbers of OpenAI's evaluator: images, features, statistics and metrics (see golden/README.md).

Everything comes from the two files: layout, seed, sets of images, numbers of chunks.
"""

from __future__ import annotations

import json
import re
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from support.golden_files import directory

FEATURES = 2e-5  # of the largest magnitude: float32 sums in another order, through 94 convolutions (2e-6 is seen)
STATISTICS = 2e-5
FULL_RANK = 1e-6  # Frechet distances of more images than dimensions
SINGULAR = 2e-2  # of fewer: the original's own square root is only so good
HALF_PRECISION = 0.05
SCORE = 1e-5


def folder() -> Path:
    """Where the evaluator's files are."""
    return directory() / "evaluation"


class EvaluatorFiles:
    """The two files. Arrays by their full names; what they are is told by the suffix."""

    def __init__(self) -> None:
        about = json.loads((folder() / "evaluator.json").read_text())
        self.seed: int = about["seed"]
        self.metrics: dict[str, float] = about["metrics"]
        self.layout: dict[str, list[int]] = about["layout"]
        with np.load(folder() / "evaluator.npz", allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}

    def names(self, suffix: str) -> list[str]:
        """Names of what has this suffix: names("images") are the sets of images."""
        return sorted(name.rpartition(".")[0] for name in self.arrays if name.rpartition(".")[2] == suffix)

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The network's weights, drawn by the recipe."""
        return {name: torch.from_numpy(self._draw(name, shape)) for name, shape in self.layout.items()}

    def _draw(self, name: str, shape: list[int]) -> np.ndarray:
        r = np.random.RandomState((self.seed + zlib.crc32(name.encode())) % 2**32).standard_normal(shape)
        if name == "fc.weight":
            r = 0.15 * r
        elif len(shape) == 4:
            r = r * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            r = np.exp(0.25 * r)
        elif name.endswith("bn.weight"):
            r = 1 + 0.1 * r
        else:
            r = 0.1 * r
        return r.astype("float32")

    @cached_property
    def synthetic(self) -> torch.Tensor:
        """The features of the synthetic Inception Score, [300, 2048]."""
        drawn = np.random.RandomState(self.seed + 5).standard_normal((300, 2048)).clip(0)
        return torch.from_numpy(drawn.astype("float32"))

    def with_chunk(self, prefix: str, default: int) -> dict[str, tuple[int, float]]:
        """Scores whose name is `prefix`, with or without a number of images a chunk: name -> (chunk, score)."""
        pattern = re.compile(rf"{prefix}(?:_chunks_of_(\d+))?")
        found = {name: pattern.fullmatch(name) for name in self.metrics}
        return {name: (int(m[1] or default), self.metrics[name]) for name, m in found.items() if m}


def difference(value: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest magnitude expected."""
    got = np.asarray(value, dtype=np.float64)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.abs(got - expected).max() / np.abs(expected).max())
