"""Computes improved precision and recall, density and coverage.

A set of features spans the union of balls around its members, each reaching to the member's k-th nearest neighbour.

    precision   share of samples inside at least one ball of the reference         (distance <= radius)
    recall      share of reference images inside at least one ball of the samples  (distance <= radius)
    density     mean number of reference balls a sample is in, over k              (distance < radius)
    coverage    share of reference balls with at least one sample in it            (distance < radius)

References:
    Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", section 2.
    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", section 3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features, same_dimension
from undiffuse.metrics.estimate import Card, Estimate, Influence, MetricError, check_same_protocol
from undiffuse.metrics.moments import FeatureStore
from undiffuse.metrics.neighbours import TILE, Precision, kth_neighbour, squares

__all__ = ["PrecisionRecall", "manifold_metrics"]


def manifold_metrics(
    samples: Tensor,
    reference: Tensor,
    *,
    k: int = 3,
    k_density: int = 5,
    precision: Precision = "exact",
    tile: int = TILE,
    card: Card | None = None,
) -> dict[str, Estimate]:
    """Returns the estimates "precision", "recall", "density" and "coverage".

    Recall grows with the number of samples: compare equal numbers. The standard errors are those of a share (or mean)
    over images with the balls taken as given.

    Args:
        samples: Features of the samples, [N, D].
        reference: Features of the reference, [M, D].
        k: Neighbours of precision and recall (3: OpenAI, on all images of both sides).
        k_density: Neighbours of density and coverage (5: their authors).
        precision: Arithmetic of the distances.
        tile: Rows and columns of distances in memory at once.
        card: How the features were made.

    Raises:
        MetricError: A side does not have more than k images.
    """
    samples, reference = as_features(samples), as_features(reference)
    same_dimension(samples, reference)
    if min(k, k_density) < 1:
        raise MetricError(f"k must be at least 1, got {min(k, k_density)}")
    for features, whose, need in ((reference, "reference", max(k, k_density)), (samples, "samples", k)):
        if len(features) <= need:
            raise MetricError(
                f"balls to the {need}-th neighbour need more than {need} images, the {whose} has {len(features)}"
            )
    reference_radii = kth_neighbour(reference, (k, k_density), precision=precision, tile=tile)
    sample_radii = kth_neighbour(samples, k, precision=precision, tile=tile)[:, 0]
    inside = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=samples.device)
    covered = torch.zeros(len(reference), dtype=torch.bool, device=samples.device)
    balls = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
    tiles = squares(samples, reference, precision=precision, tile=tile)
    widest = reference_radii.amax(dim=1)
    for i, j in tiles.starts():
        rows, columns, distances = tiles.within(i, j, sample_radii, widest)
        inside[rows[distances <= reference_radii[columns, 0]]] = True
        recalled[columns[distances <= sample_radii[rows]]] = True
        dense = distances < reference_radii[columns, 1]
        balls += rows[dense].bincount(minlength=len(balls))
        covered[columns[dense]] = True
    warnings = []
    if min(len(samples), len(reference)) < 1000:
        warnings.append(f"{len(samples)} samples and {len(reference)} reference images: small sets give coarse balls")
    if len(samples) != len(reference):
        warnings.append("recall and coverage depend on the number of samples: compare runs of equal counts")

    def estimate(name: str, values: Tensor, per: int, neighbours: int, of: str) -> Estimate:
        values = values.to(torch.float64)
        spread = float(values.std()) if len(values) > 1 else 0.0
        return Estimate(
            name=name,
            value=float(values.mean()) / per,
            stderr=spread / per / math.sqrt(len(values)),
            stderr_method="over images, balls given",
            n=len(samples),
            n_reference=len(reference),
            settings={"k": neighbours, "distances": precision},
            warnings=tuple(warnings),
            card=card,
            influence=Influence(**{of: values / per}),
        )

    return {
        "precision": estimate("precision", inside, 1, k, "samples"),
        "recall": estimate("recall", recalled, 1, k, "reference"),
        "density": estimate("density", balls, k_density, k_density, "samples"),
        "coverage": estimate("coverage", covered, 1, k_density, "reference"),
    }


class PrecisionRecall:
    """Accumulates samples for `manifold_metrics` against reference features [M, D]; options as there."""

    def __init__(
        self,
        reference: Tensor,
        *,
        k: int = 3,
        k_density: int = 5,
        precision: Precision = "exact",
        card: Card | None = None,
    ) -> None:
        self.reference = as_features(reference)
        self.options = {"k": k, "k_density": k_density, "precision": precision}
        self.store = FeatureStore(self.reference.shape[1], card)

    def update(self, features: Tensor | np.ndarray) -> PrecisionRecall:
        """Adds samples.

        Args:
            features: Features of the samples, [B, D].
        """
        self.store.update(features)
        return self

    def merge(self, other: PrecisionRecall) -> PrecisionRecall:
        """Adds what another accumulator with the same reference has collected."""
        check_same_protocol(other.store.card, self.store.card)
        self.store.merge(other.store)
        return self

    def compute(self) -> dict[str, Estimate]:
        """Returns all four estimates by name."""
        options: dict[str, object] = dict(self.options)
        return manifold_metrics(self.store.features(), self.reference, card=self.store.card, **options)  # type: ignore[arg-type]
