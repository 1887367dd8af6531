"""The data of the examples: images of two classes."""

from __future__ import annotations

import numpy as np

from undiffuse.data import ArraySource, DataConfig, ImageDataset

NAMES = ["square", "stripe"]


def squares_and_stripes(count: int, side: int = 16) -> ImageDataset:
    """Images of two classes: filled squares (0) and horizontal stripes (1) at random places."""
    rng = np.random.default_rng(0)
    images, labels = np.zeros((count, side, side), np.uint8), rng.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        row, column = rng.integers(1, side - 6, 2)
        image[row : row + (5 if label == 0 else 2), 0 if label else column : side if label else column + 5] = 255
    source = ArraySource(images, labels, NAMES)
    return ImageDataset(source, DataConfig(path="memory", size=side, channels=1))
