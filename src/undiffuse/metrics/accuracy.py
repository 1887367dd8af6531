"""Measures class-conditional accuracy: whether a classifier sees in a sample the class it was made for."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features, as_labels
from undiffuse.metrics.estimate import Card, Estimate, MetricError, check_same_protocol

__all__ = ["ClassAccuracy"]


class ClassAccuracy:
    """Accumulates the share of samples whose class is the classifier's first (or among its first `top`) choice.

    `extra` of the estimate holds "class_0", ... for every class that occurs, and "balanced", their mean. Ties count as
    failures, so that a classifier without an opinion is never right.
    """

    def __init__(self, top: int = 1, *, card: Card | None = None) -> None:
        if top < 1:
            raise MetricError(f"top must be at least 1, got {top}")
        self.top = top
        self.card = card
        self._seen: Tensor | None = None
        self._right: Tensor | None = None

    def update(self, logits: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> ClassAccuracy:
        """Adds samples.

        Args:
            logits: Class scores, [B, K].
            labels: Numbers of the classes that the samples were made for, [B].
        """
        logits = as_features(logits, None if self._seen is None else len(self._seen)).to("cpu")
        classes = logits.shape[1]
        if self.top >= classes:
            raise MetricError(f"among the first {self.top} of {classes} classes everything is right; choose less")
        labels = as_labels(labels, len(logits), classes).to("cpu")
        own = logits.gather(1, labels[:, None])
        # The class itself is one of those at least as good as it.
        right = (logits >= own).sum(dim=1) <= self.top
        seen = torch.bincount(labels, minlength=classes)
        hits = torch.bincount(labels[right], minlength=classes)
        self._seen = seen if self._seen is None else self._seen + seen
        self._right = hits if self._right is None else self._right + hits
        return self

    def merge(self, other: ClassAccuracy) -> ClassAccuracy:
        """Adds what another accumulator has collected."""
        check_same_protocol(other.card, self.card)
        if other._seen is None or other._right is None:
            return self
        if self._seen is None or self._right is None:
            self._seen, self._right = other._seen.clone(), other._right.clone()
            return self
        if len(self._seen) != len(other._seen):
            raise MetricError(f"accuracies over {len(self._seen)} and {len(other._seen)} classes cannot be merged")
        self._seen, self._right = self._seen + other._seen, self._right + other._right
        return self

    def compute(self) -> Estimate:
        """Returns the accuracy with its binomial standard error."""
        if self._seen is None or self._right is None or int(self._seen.sum()) == 0:
            raise MetricError("the accuracy of no image is not defined")
        n = int(self._seen.sum())
        value = int(self._right.sum()) / n
        present = self._seen.nonzero()[:, 0]
        shares = self._right[present].double() / self._seen[present].double()
        extra = {f"class_{int(c)}": float(share) for c, share in zip(present, shares, strict=True)}
        extra["balanced"] = float(shares.mean())
        warnings = []
        if len(present) < len(self._seen):
            warnings.append(f"only {len(present)} of {len(self._seen)} classes occur")
        elif int(self._seen.max()) > 1.5 * int(self._seen.min()):
            warnings.append(
                f"classes are not equally frequent: {int(self._seen.min())} to {int(self._seen.max())} images"
            )
        return Estimate(
            name="accuracy" if self.top == 1 else f"top-{self.top} accuracy",
            value=value,
            stderr=math.sqrt(value * (1 - value) / n),
            stderr_method="binomial",
            n=n,
            extra=extra,
            settings={"top": self.top, "classes": len(self._seen)},
            warnings=tuple(warnings),
            card=self.card,
        )
