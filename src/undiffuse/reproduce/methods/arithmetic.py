"""Claims that schedules alone decide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from undiffuse.noise_levels import named_schedule
from undiffuse.objectives import discretized_log_likelihood

LN2 = math.log(2)


def prior_term(run: Any, seed: int, square: float, limit: float) -> dict[str, Any]:
    """Computes L_T, the part of the bound at the end of the linear and the cosine chain of 1,000 steps.

    Args:
        run: Not used.
        seed: Not used.
        square: Mean square of a pixel.
        limit: Bits per dimension that count as negligible.
    """
    bits = {}
    for name in ("linear", "cosine"):
        abar = named_schedule(name, 1000).alphas_cumprod[-1]
        bits[name] = 0.5 * (abar * square - abar - math.log1p(-abar)) / LN2
    return {"effects": {"decades": math.log10(limit / bits["linear"])}, "numbers": bits}


def variance_bounds(run: Any, seed: int, steps: int, variance: float) -> dict[str, Any]:
    """Compares beta with the posterior variance, and the terms of the bound of Gaussian data under the exact mean.

    With data of variance c the exact reverse variance is beta~ + coef_x0^2 Var(x0 | x_t); with the variance beta~ the
    term of step t has KL = (coef_x0^2 Var(x0 | x_t)) / (2 beta~) nats.

    Args:
        run: Not used.
        seed: Not used.
        steps: Length of the linear chain.
        variance: Variance c of the data.
    """
    chain = named_schedule("linear", steps)
    ratio = chain.posterior_variance / chain.betas
    abar = chain.alphas_cumprod

    def spread(c: float) -> np.ndarray:
        return c * (1 - abar) / (c * abar + 1 - abar)

    def fraction(c: float) -> np.ndarray:
        best = chain.posterior_variance + chain.posterior_mean_coef1**2 * spread(c)
        low, high = chain.posterior_log_variance_clipped, np.log(chain.betas)
        return ((np.log(best) - low) / (high - low))[1:]

    terms = (chain.posterior_mean_coef1**2 * spread(variance) / (2 * chain.posterior_variance.clip(1e-300)))[1:]
    cumulated = np.cumsum(terms) / terms.sum()
    first = max(1, steps // 100) - 1
    margins = [float(min(v.min(), (1 - v).min())) for c in (1.0, 0.25, 0.01, 1e-4) for v in [fraction(c)]]
    v = fraction(variance)
    return {
        "effects": {
            "gap closes": float(ratio[99] - ratio[1]),
            "share of first steps": float(cumulated[first - 1]),
            "outside the bounds": -min(min(margins), 0.0),
            "fraction falls": float(v[8] - v[498]),
        },
        "numbers": {
            "ratio at 2, 10, 100": [float(ratio[k]) for k in (1, 9, 99)],
            "share of the first 1 %": float(cumulated[first - 1]),
            "v at 2, 10, 100, 500": [float(v[k]) for k in (0, 8, 98, 498)],
            "series": {"beta~ / beta": [[k + 1, float(ratio[k])] for k in (1, 2, 4, 9, 19, 49, 99, 199, 499, 999)]},
        },
    }


def decoder_floor(run: Any, seed: int) -> dict[str, Any]:
    """Computes the bits of the decoder under a perfect mean for chains of 1,000 and 4,000 steps."""
    found = {}
    for name in ("linear", "cosine"):
        for steps in (1000, 4000):
            log_std = torch.tensor([[0.5 * named_schedule(name, steps).posterior_log_variance_clipped[0]]])
            for place, x in (("inner", 0.0), ("edge", -1.0)):
                pixel = torch.tensor([[round((x + 1) * 127.5) / 127.5 - 1]], dtype=torch.float64)
                found[f"{name}-{steps} {place}"] = -float(discretized_log_likelihood(pixel, pixel, log_std)) / LN2
    return {
        "effects": {
            "linear": found["linear-1000 inner"] - found["linear-4000 inner"],
            "cosine": found["cosine-1000 inner"] - found["cosine-4000 inner"],
        },
        "numbers": found,
    }


def posthoc_average(run: Any, seed: int, updates: int, weights: int) -> dict[str, Any]:
    """Reconstructs an average of another width from snapshots of two, and compares with one that was tracked.

    Args:
        run: Not used.
        seed: Of the random walk that stands for a training.
        updates: Updates of the walk.
        weights: Numbers in it.
    """
    from undiffuse.ema import exponent_of, power_combination

    g = np.random.default_rng(seed)
    walk = np.cumsum(g.standard_normal((updates, weights)), axis=0)

    def tracked(width: float) -> np.ndarray:
        gamma, average, kept = exponent_of(width), np.zeros(weights), []
        for t, now in enumerate(walk, 1):
            beta = (1 - 1 / t) ** (gamma + 1)
            average = beta * average + (1 - beta) * now
            kept.append(average)
        return np.stack(kept)

    widths, target = (0.05, 0.1), 0.15
    every = max(1, updates // 32)
    moments = list(range(every, updates + 1, every))
    stored = {width: tracked(width) for width in widths}
    pairs = [(t, width) for width in widths for t in moments]
    factors, _ = power_combination([(t, exponent_of(w)) for t, w in pairs], moments[-1], exponent_of(target))
    made = sum(float(f) * stored[w][t - 1] for f, (t, w) in zip(factors.tolist(), pairs, strict=True))
    truth = tracked(target)[moments[-1] - 1]
    error = float(np.linalg.norm(made - truth) / np.linalg.norm(truth))
    return {"effects": {"error": error}, "numbers": {"relative error": error, "snapshots": len(pairs)}}
