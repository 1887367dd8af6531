"""Computes the Inception Score by chunks in file order, as OpenAI's evaluator does.

    IS = mean over chunks of exp(mean_i KL(p_i || mean p))      natural logarithm, p = softmax of class scores

References:
    Salimans et al. 2016, "Improved Techniques for Training GANs", section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features
from undiffuse.metrics.estimate import Card, Estimate, MetricError, check_same_protocol

__all__ = ["InceptionScore"]

CHUNK = 5000


@dataclass
class _Chunk:
    """Holds sums over the images of one chunk: of p [K], and of sum_k p_k log p_k."""

    n: int
    p: Tensor
    p_log_p: float


class InceptionScore:
    """Accumulates the Inception Score; its memory is one vector for each chunk and one K x K matrix.

    An image belongs to chunk (its position) // `chunk`; the last one may be shorter and counts as much. Positions are
    those of the file, so processes that share the images must say which they have. The scores of the 2015 network are
    those without the bias of its last layer (`InceptionV3.logits`).

    The standard error is that of the delta method: the standard deviation of KL(p_i || mean p) over all images, times
    IS / sqrt(N). Chunks are consecutive, so images sorted by class give a wrong, low score.
    """

    def __init__(self, chunk: int = CHUNK, *, card: Card | None = None, name: str = "IS") -> None:
        if chunk < 1:
            raise MetricError(f"a chunk must hold at least 1 image, got {chunk}")
        self.chunk = chunk
        self.card = card
        self.name = name
        self.n = 0
        self._chunks: dict[int, _Chunk] = {}
        # Joint second moments of (p, sum p log p), from which the variance of KL follows when the mean is known.
        self._second: Tensor | None = None

    def update(self, logits: Tensor | np.ndarray, positions: Tensor | Sequence[int] | None = None) -> InceptionScore:
        """Adds images.

        Args:
            logits: Class scores, [B, K].
            positions: Positions of the images in the file, [B]; by default the next ones in order.
        """
        logits = as_features(logits, None if self._second is None else len(self._second) - 1, self.n)
        where = torch.arange(self.n, self.n + len(logits)) if positions is None else torch.as_tensor(positions).cpu()
        if where.shape != (len(logits),) or where.is_floating_point() or (len(where) and int(where.min()) < 0):
            raise MetricError(f"expected one position of 0 or more for each of {len(logits)} images")
        log_p = torch.log_softmax(logits.to("cpu", torch.float64), dim=1)
        p = log_p.exp()
        # The logarithm of a softmax is finite, so a probability that underflows contributes 0 and not NaN.
        p_log_p = (p * log_p).sum(dim=1)
        joint = torch.cat([p, p_log_p[:, None]], dim=1).float()
        if self._second is None:
            self._second = torch.zeros(joint.shape[1], joint.shape[1], dtype=torch.float64)
        self._second += (joint.T @ joint).double()
        numbers = where // self.chunk
        for number in numbers.unique().tolist():
            mask = numbers == number
            self._add(number, _Chunk(int(mask.sum()), p[mask].sum(dim=0), float(p_log_p[mask].sum())))
        self.n += len(logits)
        return self

    def _add(self, number: int, new: _Chunk) -> None:
        old = self._chunks.get(number)
        merged = new if old is None else _Chunk(old.n + new.n, old.p + new.p, old.p_log_p + new.p_log_p)
        if merged.n > self.chunk:
            raise MetricError(
                f"chunk {number} got {merged.n} images, more than {self.chunk}: some positions were given twice. "
                "Where several processes share the images, each must give update() the positions of its own"
            )
        self._chunks[number] = merged

    def merge(self, other: InceptionScore) -> InceptionScore:
        """Adds what another accumulator has collected at other positions."""
        check_same_protocol(other.card, self.card)
        if other.chunk != self.chunk:
            raise MetricError(f"scores by chunks of {self.chunk} and {other.chunk} images cannot be merged")
        if other._second is None:
            return self
        if self._second is not None and self._second.shape != other._second.shape:
            raise MetricError(
                f"scores of {len(self._second) - 1} and {len(other._second) - 1} classes cannot be merged"
            )
        for number, chunk in other._chunks.items():
            self._add(number, chunk)
        self._second = other._second.clone() if self._second is None else self._second + other._second
        self.n += other.n
        return self

    def compute(self) -> Estimate:
        """Returns the score; `extra["std"]` is the standard deviation over chunks (divisor: their number)."""
        if self._second is None or not self._chunks:
            raise MetricError("the Inception Score of no image is not defined")
        scores = []
        for _, chunk in sorted(self._chunks.items()):
            mean = chunk.p / chunk.n
            scores.append(math.exp(chunk.p_log_p / chunk.n - float(torch.xlogy(mean, mean).sum())))
        value = float(np.mean(scores))
        classes = len(self._second) - 1
        warnings = []
        if self.n < 5 * classes:
            warnings.append(f"{self.n} images for {classes} classes: the score depends on their number")
        whole = [n for n, _ in sorted(self._chunks.items())] == list(range(len(self._chunks)))
        if not whole or any(c.n < self.chunk for _, c in sorted(self._chunks.items())[:-1]):
            warnings.append("some positions are missing, so the chunks are not those of the file")
        stderr = self._error(value) if self.n > 1 else None
        return Estimate(
            name=self.name,
            value=value,
            stderr=stderr,
            stderr_method=None if stderr is None else "delta method",
            n=self.n,
            extra={"std": float(np.std(scores)), "chunks": float(len(scores))},
            settings={"chunk": self.chunk, "classes": classes},
            warnings=tuple(warnings),
            card=self.card,
        )

    def _error(self, value: float) -> float:
        assert self._second is not None
        p = torch.stack([c.p for c in self._chunks.values()]).sum(dim=0) / self.n
        p_log_p = sum(c.p_log_p for c in self._chunks.values()) / self.n
        mean = torch.cat([p, torch.tensor([p_log_p], dtype=torch.float64)])
        # KL_i = (sum p log p)_i - p_i . log mean: a linear form of the joint vector.
        form = torch.cat([-p.clamp(min=1e-300).log(), torch.ones(1, dtype=torch.float64)])
        second = float(form @ self._second @ form) / self.n
        variance = max(0.0, second - float(form @ mean) ** 2) * self.n / (self.n - 1)
        return value * math.sqrt(variance / self.n)
