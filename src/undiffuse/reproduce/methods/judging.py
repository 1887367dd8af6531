"""Samples to numbers: features of the network that judges, distances to test images, and how images are drawn."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from undiffuse.data import prepare
from undiffuse.data.opening import open_data
from undiffuse.denoiser import Condition, Denoiser
from undiffuse.grids import NoisePath
from undiffuse.metrics.extractors import build_extractor
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.metrics.moments import Moments
from undiffuse.metrics.precision_recall import manifold_metrics
from undiffuse.noise import NoiseSource
from undiffuse.pixels import from_uint8, to_uint8
from undiffuse.sampling import generate
from undiffuse.solvers import Solver

TEST = "fashion-mnist:test"
BATCH = 100


@cache
def load_judge(name: str) -> Any:
    """Returns the extractor that judges, by name or file, see `metrics.extractors.build_extractor`."""
    return build_extractor(name, device=torch.device("cpu"))


@cache
def stored_images(data: str, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [count, size, size, 1] and labels, evenly spaced, prepared as the arms' training data are.

    Args:
        data: Data reference.
        size: Side in pixels: 32 pads the 28 pixels, smaller sizes are made by averaging and bicubic resizing.
        count: Number of images.
    """
    source: Any = open_data(data)
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    fit: Any = "pad" if size == 32 else "crop"
    return np.stack([prepare(source.images[i], size, 1, fit=fit) for i in chosen]), np.asarray(source.labels)[chosen]


def for_judge(images: np.ndarray, judge: Any) -> np.ndarray:
    """Returns images at the size that the judge was trained on: smaller ones enlarged to 28 pixels and padded to 32."""
    side = images.shape[1]
    shape = getattr(judge, "shape", None)
    if shape is None or side == shape[1]:
        return images
    large = interpolate(from_uint8(images), size=(28, 28), mode="bicubic", antialias=False).clamp(-1, 1)
    return to_uint8(pad(large, (2, 2, 2, 2), value=-1.0)).numpy()


def features_of(images: np.ndarray, judge: str) -> tuple[Tensor, Tensor]:
    """Returns features [N, D] and class scores [N, K] of images uint8 [N, H, W, 1]."""
    extractor = load_judge(judge)
    ready = for_judge(images, extractor)
    found = [extractor(ready[i : i + BATCH]) for i in range(0, len(ready), BATCH)]
    return torch.cat([f.features for f in found]), torch.cat([f.logits for f in found])


@cache
def reference_features(data: str, size: int, count: int, judge: str) -> tuple[Tensor, Tensor]:
    """Returns features and class scores of stored images, see `stored_images`."""
    return features_of(stored_images(data, size, count)[0], judge)


def scores(images: np.ndarray, labels: Any, judge: str, reference: int) -> dict[str, Any]:
    """Compares samples with test images.

    Args:
        images: Samples uint8 [N, H, W, 1].
        labels: Their classes [N], or None.
        judge: Name of the extractor.
        reference: Number of test images.

    Returns:
        "fd", "precision", "recall" (k = 3), "accuracy" (if there are labels), "seen", the classes that the judge sees,
        and "brightness", mean and deviation of the images' means.
    """
    features, logits = features_of(images, judge)
    real, _ = reference_features(TEST, images.shape[1], reference, judge)
    pr = manifold_metrics(features, real)
    seen = logits.argmax(1)
    means = images.reshape(len(images), -1).mean(1)
    found: dict[str, Any] = {
        "fd": frechet_distance(_statistics(features), _statistics(real)),
        "precision": pr["precision"].value,
        "recall": pr["recall"].value,
        "seen": seen.tolist(),
        "brightness": [float(means.mean()), float(means.std())],
    }
    if labels is not None:
        found["accuracy"] = float((seen == torch.as_tensor(labels)).double().mean())
    return found


def floor(size: int, count: int, judge: str, reference: int) -> dict[str, Any]:
    """Returns the scores of training images in place of samples: what no sampler can be expected to beat."""
    images, labels = stored_images("fashion-mnist", size, count)
    return scores(images, labels, judge, reference)


def _statistics(features: Tensor) -> Any:
    moments = Moments()
    moments.update(features)
    return moments.statistics()


def draw(
    denoiser: Denoiser, path: NoisePath, solver: Solver, shape: tuple[int, ...], count: int, seed: int,
    cond: Condition | None = None, x_T: Tensor | None = None, device: torch.device | str = "cpu", stream: str = "",
) -> Tensor:  # fmt: skip
    """Samples float images [count, C, H, W] on the CPU; image i has the same noise for every sampler and model."""
    made = []
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        given = None if cond is None else {name: value[part].to(device) for name, value in cond.items()}
        noise = NoiseSource(seed, range(part.start, part.stop), stream)
        start_x = None if x_T is None else x_T[part]
        x = generate(denoiser, path, solver, noise, shape, cond=given, x_T=start_x, device=device)
        made.append(x.float().cpu())
    return torch.cat(made)
