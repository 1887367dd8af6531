"""Computes the Vendi score: the effective number of different images, without a reference.

References:
    Friedman & Dieng 2023, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning".
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features
from undiffuse.metrics.estimate import Card, Estimate, MetricError, check_same_protocol

__all__ = ["VendiScore"]


class VendiScore:
    """Accumulates exp(-sum_i l_i log l_i) over the eigenvalues l of the cosine similarities of N images over N.

    It is 1 for identical images, N for N images without any similarity. The eigenvalues are those of the D x D matrix
    of second moments of the normalised features, so features stream and memory is bounded.

    Args:
        order: Order q of the score. Other than 1 it is the exponential of Renyi's entropy, (sum l^q)^(1 / (1 - q));
            infinity gives 1 / max l.
        card: How the features are made.
    """

    def __init__(self, order: float = 1.0, *, card: Card | None = None) -> None:
        if not order > 0:
            raise MetricError(f"the order must be positive, got {order}")
        self.order = order
        self.card = card
        self.n = 0
        self._second: Tensor | None = None

    def update(self, features: Tensor | np.ndarray) -> VendiScore:
        """Adds images.

        Args:
            features: [B, D].

        Raises:
            MetricError: A feature of length zero, which has no direction.
        """
        features = as_features(features, None if self._second is None else len(self._second), self.n).to("cpu")
        norms = features.double().norm(dim=1, keepdim=True)
        if bool((norms == 0).any()):
            raise MetricError(f"the features of image {self.n + int((norms[:, 0] == 0).nonzero()[0])} are all zero")
        directions = features.double() / norms
        second = directions.T @ directions
        self._second = second if self._second is None else self._second + second
        self.n += len(features)
        return self

    def merge(self, other: VendiScore) -> VendiScore:
        """Adds what another accumulator has collected."""
        check_same_protocol(other.card, self.card)
        if other._second is not None:
            if self._second is not None and self._second.shape != other._second.shape:
                raise MetricError(
                    f"features of dimension {len(self._second)} and {len(other._second)} cannot be merged"
                )
            self._second = other._second.clone() if self._second is None else self._second + other._second
            self.n += other.n
        return self

    def compute(self) -> Estimate:
        """Returns the score. It has no bias or error estimate: it grows with the number of images."""
        if self._second is None or self.n == 0:
            raise MetricError("the Vendi score of no image is not defined")
        values = torch.linalg.eigvalsh(self._second / self.n).clamp(min=0)
        if self.order == 1:
            score = math.exp(-float(torch.xlogy(values, values).sum()))
        elif math.isinf(self.order):
            score = 1 / float(values[-1])
        else:
            score = float(values.pow(self.order).sum()) ** (1 / (1 - self.order))
        warnings = (f"at most {len(values)} for features of this dimension",) if self.n > len(values) else ()
        return Estimate(
            name="Vendi", value=score, n=self.n, settings={"order": self.order}, warnings=warnings, card=self.card
        )
