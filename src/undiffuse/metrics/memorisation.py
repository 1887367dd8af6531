"""Measures whether a model repeats its training images, by nearest neighbours among training and held-out images.

A Frechet distance is best for a model that copies the training set; these shares are not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features
from undiffuse.metrics.estimate import Card, Estimate, MetricError
from undiffuse.metrics.neighbours import TILE, Precision, kth_neighbour, nearest

__all__ = ["memorisation"]


def memorisation(
    samples: Tensor,
    training: Tensor,
    held_out: Tensor | None = None,
    *,
    precision: Precision = "exact",
    tile: int = TILE,
    card: Card | None = None,
) -> dict[str, Estimate]:
    """Returns shares of samples that are suspiciously close to training images.

    - "authentic": share of samples farther from their nearest training image than that one is from its own nearest
      training neighbour. 0 for copies, near 1/2 for fresh data.
    - "closer_to_train": share of samples whose nearest training image is nearer than their nearest held-out image, ties
      half. 1/2 is the aim, 1 means copying. Of the larger set as many images as the smaller has are taken, evenly
      spaced (folders are sorted by class, so the first images would be of a few classes only), since among more images
      one is nearer by chance.
    - "copies": share of samples whose features equal those of a training image.

    Args:
        samples: Features of the samples, [N, D].
        training: Features of the training images, [T, D].
        held_out: Features of held-out images, [H, D]; without them there is no "closer_to_train".
        precision: Arithmetic of the distances.
        tile: Rows and columns of distances in memory at once.
        card: How the features were made.

    Raises:
        MetricError: Fewer than 2 training images.

    References:
        Alaa et al. 2022, "How Faithful is your Synthetic Data?".
    """
    samples, training = as_features(samples), as_features(training)
    if not len(samples):
        raise MetricError("there are no samples to look for among the training images")
    found = nearest(samples, training, precision=precision, tile=tile)
    spacing = kth_neighbour(training, 1, precision=precision, tile=tile)[:, 0]
    shares = {"authentic": found.squared > spacing[found.row], "copies": found.squared == 0}
    counts = {"authentic": len(training), "copies": len(training)}
    if held_out is not None:
        held_out = as_features(held_out)
        count = min(len(training), len(held_out))
        near = found.squared
        if count < len(training):
            near = nearest(samples, _spaced(training, count), precision=precision, tile=tile).squared
        other = nearest(samples, _spaced(held_out, count), precision=precision, tile=tile).squared
        # Two values: nearer and tied; a share of halves is the mean of (nearer + not farther) / 2.
        shares["closer_to_train"] = ((near < other).double() + (near <= other).double()) / 2
        counts["closer_to_train"] = count

    def estimate(name: str, values: Tensor) -> Estimate:
        values = values.to(torch.float64)
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
        return Estimate(
            name=name,
            value=float(values.mean()),
            stderr=error,
            stderr_method=None if error is None else "over samples",
            n=len(samples),
            n_reference=counts[name],
            settings={"distances": precision},
            card=card,
        )

    return {name: estimate(name, values) for name, values in shares.items()}


def _spaced(features: Tensor, count: int) -> Tensor:
    """Returns `count` rows, evenly spaced from the first to the last; all of them if there are no more."""
    if count >= len(features):
        return features
    return features[torch.linspace(0, len(features) - 1, count, dtype=torch.float64).round().long()]
