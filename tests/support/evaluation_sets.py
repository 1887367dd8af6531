"""Small sets of images, and an extractor that needs no weights, for the tests of the evaluation room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undiffuse.metrics import Card
from undiffuse.metrics.extractors import Extracted

DIMENSION = 8
SPATIAL = 6


def images(count: int, seed: int = 0, size: int = 8, channels: int = 3) -> np.ndarray:
    """uint8 [count, size, size, channels], each with a brightness and gradient of its own."""
    generator = np.random.default_rng(seed)
    level = generator.uniform(40, 200, (count, 1, 1, channels))
    return np.clip(level + generator.normal(0, 25, (count, size, size, channels)), 0, 255).astype(np.uint8)


class Toy:
    """Features that are fixed random projections of the pixels; class scores of three classes; spatial features.

    `calls` counts the images it has seen, `name` makes cards differ.
    """

    def __init__(self, name: str = "toy", size: int = 8, channels: int = 3) -> None:
        generator = torch.Generator().manual_seed(5)
        pixels = size * size * channels
        self.to_features = torch.randn(pixels, DIMENSION, generator=generator) / pixels**0.5
        self.to_spatial = torch.randn(pixels, SPATIAL, generator=generator) / pixels**0.5
        self.to_scores = torch.randn(DIMENSION, 3, generator=generator)
        shared = {"protocol": name, "extractor": name, "weights_sha256": "0" * 64}
        self.card = Card(distance=f"FD-{name}", layer="all", dimension=DIMENSION, **shared)
        self.spatial_card: Card | None = Card(distance=f"sFD-{name}", layer="map", dimension=SPATIAL, **shared)
        self.calls = 0

    def __call__(self, pixels: Tensor | np.ndarray) -> Extracted:
        ready = torch.as_tensor(pixels).flatten(1).float() / 255
        self.calls += len(ready)
        features = ready @ self.to_features
        return Extracted(features, ready @ self.to_spatial, self.scores(features))

    def scores(self, features: Tensor) -> Tensor:
        return features @ self.to_scores


def save_folder(folder: Path, pictures: np.ndarray, suffix: str = ".png", labels: list[str] | None = None) -> Path:
    """The pictures as files, in sub-folders by label where there are labels."""
    for i, picture in enumerate(pictures):
        place = folder / labels[i] if labels else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(place / f"{i:04d}{suffix}")
    return folder


def save_npz(path: Path, pictures: np.ndarray, **arrays: np.ndarray) -> Path:
    """An npz in OpenAI's layout."""
    np.savez(path, arr_0=pictures, **arrays)
    return path
