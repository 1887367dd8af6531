"""Likelihood of images in bits per dimension by the variational bound (DDPM section 3, Improved DDPM section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.noise import Noise, NoiseSource
from undiffuse.noise_levels import DiscreteSchedule, diffuse, expand
from undiffuse.objectives import bound_term, mean_flat, normal_kl


@dataclass(frozen=True)
class Bound:
    """The variational bound of B images in bits per dimension, all float64 on the CPU.

    `total` [B] = sum of `vb` [B, K] + `prior` [B]. Entry k of `vb` is the reverse step from level k; entry 0 the
    discretised decoder. `xstart_mse`, `mse` [B, K]: error of the denoised image and of the noise at each level.
    `steps` are the step numbers in the trained chain. Terms that were not evaluated are NaN (see `terms`).
    """

    total: Tensor
    vb: Tensor
    prior: Tensor
    xstart_mse: Tensor
    mse: Tensor
    steps: Sequence[int]


def prior_bits(x0: Tensor, chain: DiscreteSchedule) -> Tensor:
    """KL(q(x_T | x0) || N(0, I)) in bits per dimension [B]: what the chain's end still knows of the image."""
    end = chain.level(chain.steps - 1)
    zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
    log_variance = torch.as_tensor(float(2 * end.sigma.log()), dtype=x0.dtype, device=x0.device)
    return mean_flat(normal_kl(expand(end.alpha, x0) * x0, log_variance, zero, zero)) / math.log(2)


def bits_per_dim(
    denoiser: Denoiser,
    chain: DiscreteSchedule,
    x0: Tensor,
    noise: NoiseSource | Noise,
    *,
    cond: Condition | None = None,
    decoder: str = "exact",
    terms: int | None = None,
) -> Bound:
    """The bound at images x0 [B, C, H, W] in [-1, 1] (8-bit pixels), one noise draw for each level.

    `decoder`  "exact" or "tanh", see `discretized_log_likelihood`
    `terms`    None evaluates all K levels, K network calls. A number estimates the sum without bias from that many
               calls: level 0 always, and one level drawn uniformly from each of terms - 1 strata of the others, whose
               widths grow geometrically as the terms of the bound shrink; for every image by itself, so that the
               standard error over images covers the estimate.

    Guides of the denoiser are ignored: guidance is no change of the model.
    """
    shape = (len(x0), chain.steps)
    vb, xstart_mse, mse = (torch.full(shape, math.nan, dtype=torch.float64) for _ in range(3))
    total = torch.zeros(len(x0), dtype=torch.float64)
    rows = torch.arange(len(x0))
    for call, (levels, weight) in enumerate(_levels(chain.steps, terms, noise)):
        transition = chain.transition(levels)
        eps = noise.normal(tuple(x0.shape[1:]), step=call, purpose="step", device=x0.device).to(x0.dtype)
        x_t = diffuse(x0, transition.source, eps)
        with torch.no_grad():
            prediction = denoiser(x_t, transition.source, cond)
            term = bound_term(prediction, x0, transition, decoder).cpu().double()
            vb[rows, levels] = term
            xstart_mse[rows, levels] = mean_flat((prediction.x0 - x0) ** 2).cpu().double()
            mse[rows, levels] = mean_flat((prediction.eps - eps) ** 2).cpu().double()
        total += weight * term
    prior = prior_bits(x0, chain).cpu().double()
    return Bound(total + prior, vb, prior, xstart_mse, mse, chain.indices.tolist())


def _levels(steps: int, terms: int | None, noise: NoiseSource | Noise) -> Iterator[tuple[int | Tensor, float]]:
    """(level or levels [B], weight) of each network call, noisiest first."""
    if terms is None or terms >= steps:
        yield from ((k, 1.0) for k in range(steps - 1, -1, -1))
        return
    if terms < 2:
        raise ValueError(f"an estimate of the bound needs at least 2 terms (the decoder and one more), got {terms}")
    if not isinstance(noise, NoiseSource):
        raise ValueError("an estimate from some of the terms needs a NoiseSource, to draw the levels from")
    edges = _geometric_edges(steps, terms)
    for stratum in range(terms - 2, -1, -1):
        low, high = edges[stratum], edges[stratum + 1]
        yield low + (noise.uniform(stratum, "levels") * (high - low)).long(), float(high - low)
    yield 0, 1.0


def _geometric_edges(steps: int, count: int) -> list[int]:
    """`count` distinct whole numbers from 1 to `steps`, as nearly geometric as whole numbers can be."""
    edges = [1]
    for i in range(1, count):  # where the curve rises by less than one, step by one: convexity keeps the end at `steps`
        edges.append(max(edges[-1] + 1, round(steps ** (i / (count - 1)))))
    return edges


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values [N] and its standard error (NaN for fewer than two)."""
    values = values.double()
    error = float(values.std(unbiased=True) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error
