"""The classifier two-sample test: how often a classifier tells samples from reference images.

A classifier is trained on a random half of both sets and answers for the other half. If both sets follow one
distribution, it is right half of the time; 100 % means that every sample gives itself away.

The classifier is linear in the standardised features and their absolute values, so that it sees differences of means
and of spreads. It is fitted in closed form by least squares with an L2 penalty, which is chosen by leave-one-out on the
training part. Both sets count the same, whatever their sizes.

References:
    Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests", section 3. Cross-validation would answer for all
        images, but its answers depend on each other: without a difference p falls below 0.05 in 13 % of cases.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.checks import as_features, same_dimension
from undiffuse.metrics.estimate import Card, Estimate, Influence, MetricError

__all__ = ["c2st"]

LEAST = 8
"""Fewest images on each side."""
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of the penalty, in units of the mean eigenvalue of the inputs' covariance."""


def c2st(samples: Tensor, reference: Tensor, *, seed: int = 0, card: Card | None = None) -> Estimate:
    """Returns the accuracy of a classifier that tells samples from reference images; 0.5 is best.

    Its standard error is that of a share over the images of both sets that it answered for. `extra` has the 95 %
    interval ("low", "high") and "p", the probability of at least this accuracy if both sets follow one distribution (by
    the normal approximation).

    Args:
        samples: Features of the samples, [N, D].
        reference: Features of the reference, [M, D].
        seed: Seed of the division into halves.
        card: How the features were made.

    Raises:
        MetricError: A side has fewer than 8 images.
    """
    x, y = as_features(samples), as_features(reference)
    same_dimension(x, y)
    if min(len(x), len(y)) < LEAST:
        raise MetricError(
            f"at least {LEAST} images are needed on each side, got {len(x)} samples and {len(y)} reference images"
        )
    inputs = _inputs(torch.cat([x, y.to(x.device, x.dtype)]).double())
    is_sample = torch.arange(len(inputs), device=inputs.device) < len(x)
    trained = torch.cat([_half(len(side), seed, n) for n, side in enumerate((x, y))]).to(inputs.device)
    scores = _fit(inputs[trained], is_sample[trained], inputs[~trained])
    found = (scores > 0).double()
    ours, theirs = found[is_sample[~trained]], 1 - found[~is_sample[~trained]]
    value = float(ours.mean() + theirs.mean()) / 2
    error = math.sqrt(float(ours.var()) / len(ours) + float(theirs.var()) / len(theirs)) / 2
    by_chance = math.sqrt(1 / len(ours) + 1 / len(theirs)) / 4
    return Estimate(
        name="C2ST" if card is None else f"C2ST-{card.distance.removeprefix('FD-')}",
        value=value,
        stderr=error,
        stderr_method="over images, classifier given",
        n=len(x),
        n_reference=len(y),
        extra={
            "low": max(0.0, value - 1.96 * error),
            "high": min(1.0, value + 1.96 * error),
            "p": math.erfc((value - 0.5) / by_chance / math.sqrt(2)) / 2,
        },
        settings={"seed": seed, "classifier": "ridge on z and |z|", "trained on": "half"},
        card=card,
        influence=Influence(samples=ours / 2, reference=theirs / 2),
    )


def _half(count: int, seed: int, side: int) -> Tensor:
    """Returns which images the classifier is trained on [count] bool: a random half."""
    generator = np.random.Generator(np.random.Philox(key=[seed, side]))
    return torch.from_numpy(generator.permutation(count) % 2 == 0)


def _inputs(features: Tensor) -> Tensor:
    """Returns standardised features z and |z| [N, 2 D], all with mean 0 and variance 1; constant ones are 0."""
    z = _standardised(features)
    return torch.cat([z, _standardised(z.abs())], dim=1)


def _standardised(x: Tensor) -> Tensor:
    spread, mean = torch.std_mean(x, dim=0, correction=0)
    constant = spread <= 1e-9 * mean.abs().clamp(min=1e-30)
    return torch.where(constant, 0.0, (x - mean) / torch.where(constant, 1.0, spread))


def _fit(x: Tensor, is_sample: Tensor, asked: Tensor) -> Tensor:
    """Fits the classifier and answers for other images.

    Args:
        x: Inputs [n, d].
        is_sample: Which of them are samples [n] bool.
        asked: Inputs of the images to answer for [m, d].

    Returns:
        Scores [m], positive for samples.
    """
    share = is_sample.double().mean()
    weight = torch.where(is_sample, 0.5 / share, 0.5 / (1 - share)) / len(x)  # each side 1/2 in all
    target = torch.where(is_sample, 1.0, -1.0).double()  # whose weighted mean is 0
    center = weight @ x
    rows = (x - center) * weight.sqrt()[:, None]
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    values = values.clamp(min=0)
    turned = rows @ vectors
    along = turned.T @ (weight.sqrt() * target)
    best, chosen = math.inf, None
    for penalty in _PENALTIES:
        damped = values + penalty * values.mean() + 1e-12
        # Leave-one-out by the diagonal of the hat matrix; the mean takes the weight of the image off as well.
        leverage = (turned.square() / damped).sum(1) + weight
        left_out = (target - (turned / weight.sqrt()[:, None]) @ (along / damped)) / (1 - leverage).clamp(min=1e-6)
        loss = float(weight @ left_out.square())
        if loss < best:
            best, chosen = loss, along / damped
    assert chosen is not None
    return (asked - center) @ (vectors @ chosen)
