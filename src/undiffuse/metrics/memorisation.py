"""Does the model repeat its training images? Nearest neighbours of samples among training and held-out images.

A Frechet distance is best for a model that copies the training set; these two shares are not.
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
    """Shares of samples [N, D] that are suspiciously near to training images [T, D].

    "authentic"       share of samples farther from their nearest training image than that one is from its own nearest
                      training neighbour (Alaa et al. 2022). 0 for copies; near 1/2 for fresh data.
    "closer_to_train" with `held_out` images [H, D]: share of samples whose nearest training image is nearer than their
                      nearest held-out one, ties half. 1/2 is the aim, 1 means copying. The larger set is cut to the
                      size of the smaller (its first images), since more images are nearer by chance.
    "copies"          share of samples whose features equal a training image's.

    MetricError for fewer than 2 training images.
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
            near = nearest(samples, training[:count], precision=precision, tile=tile).squared
        other = nearest(samples, held_out[:count], precision=precision, tile=tile).squared
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
