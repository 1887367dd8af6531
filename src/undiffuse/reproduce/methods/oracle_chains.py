"""Claims about chains, their bound and their reverse steps on Gaussian mixtures with exact scores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from undiffuse.likelihood.flow import FlowConfig, flow_density
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import Level, diffuse, named_schedule
from undiffuse.reproduce.methods.oracle_sampling import DATA
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

SMOOTH = Mixture.scalar([0.4, 0.6], [-0.6, 0.5], [0.35, 0.3])


def reverse_conditional(mixture: Mixture, source: Level, target: Level, x_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the exact conditional q(x_s | x_t) of a mixture of numbers on a grid, and its moments.

    Args:
        mixture: The data.
        source: Level of x_t.
        target: Level of x_s, cleaner.
        x_t: Noisy numbers [N].

    Returns:
        Standardised grid [M], log density of (x_s - mean) / deviation [N, M], deviation [N].
    """
    ratio = float(source.alpha / target.alpha)
    kept = float(source.sigma**2) - ratio**2 * float(target.sigma**2)  # variance of x_t given x_s
    back = float(target.sigma**2 / source.sigma**2)
    image = x_t.reshape(-1, 1, 1, 1)
    weight = float(target.alpha) * kept / float(source.sigma**2)  # of x0 in the posterior mean
    mean = (weight * mixture.denoised(image, source.alpha, source.sigma) + ratio * back * image).flatten()
    spread = mixture.variance(image, source.alpha, source.sigma).flatten()
    deviation = (kept * back + weight**2 * spread).sqrt()
    grid = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    x_s = mean[:, None] + deviation[:, None] * grid
    log_p = mixture.log_prob(x_s.reshape(-1, 1, 1, 1), target.alpha, target.sigma).reshape(x_s.shape)
    log_p = log_p - (x_t[:, None] - ratio * x_s) ** 2 / (2 * kept)
    return grid, log_p - (log_p.logsumexp(1, keepdim=True) + math.log(0.01)), deviation


def bound_gap(run: Any, seed: int, lengths: list[int], count: int) -> dict[str, Any]:
    """Measures how far the variational bound is from log p for linear chains of several lengths.

    The reverse steps are the Gaussians with the exact moments. The gap is the sum over the steps of the divergence of
    the exact reverse conditional from its Gaussian, integrated numerically, and of that of x_T from N(0, 1).

    Args:
        run: Not used.
        seed: Of the noisy images over which the divergences are averaged.
        lengths: Lengths T of the chains, shortest first.
        count: Noisy images of each step.
    """
    x0, clean = SMOOTH.sample(count, seed), Level.clean()
    points = []
    for steps in lengths:
        chain = named_schedule("linear", steps)
        noise = Noise64(seed, count)
        gap = 0.0
        for k in range(steps):
            source = chain.level(k)
            x_t = diffuse(x0, source, noise.normal((1, 1, 1), step=k)).flatten()
            grid, log_p, _ = reverse_conditional(SMOOTH, source, chain.level(k - 1) if k else clean, x_t)
            normal = -0.5 * grid**2 - 0.5 * math.log(2 * math.pi)
            gap += float((log_p.exp() * (log_p - normal)).sum(1).mean()) * 0.01
        end = chain.level(steps - 1)
        grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        log_p = SMOOTH.log_prob(grid.reshape(-1, 1, 1, 1), end.alpha, end.sigma)
        gap += float((log_p.exp() * (log_p + 0.5 * grid**2 + 0.5 * math.log(2 * math.pi))).sum() * 0.004)
        points.append([steps, gap])
    gaps = [gap for _, gap in points]
    return {
        "effects": {"bound": gaps[-1], "shrinks": math.log(gaps[0] / gaps[-1])},
        "numbers": {"series": {"gap in nats": points}},
    }


def exact_flow(run: Any, seed: int, count: int) -> dict[str, Any]:
    """Compares the likelihood by the probability flow with the truth, and the bound with both."""
    chain = named_schedule("linear", 1000)
    first = chain.level(0)
    y = SMOOTH.sample(count, seed)
    x = first.alpha * y
    found = flow_density(
        OracleDenoiser(SMOOTH, chain), y, Noise64(seed, count), config=FlowConfig(probes=None, tol=1e-6)
    )
    truth = SMOOTH.log_prob(x, first.alpha, first.sigma) + first.alpha.log()
    error = (found.log_p[:, 0] - truth).abs().mean()
    gap = bound_gap(run, seed, [1000], count)["effects"]["bound"]
    return {
        "effects": {"flow is exact": float(error), "bound is lower": gap - float(error)},
        "numbers": {"mean error of the flow in nats": float(error), "gap of the bound in nats": gap},
    }


def gaussian_reverse(run: Any, seed: int, strides: list[int], count: int) -> dict[str, Any]:
    """Compares the exact reverse conditional with the Gaussian of its moments, for steps of several lengths.

    The distance is Wasserstein-1 over the standard deviation of the conditional, averaged over noisy images at the
    middle of the linear chain.

    Args:
        run: Not used.
        seed: Of the noisy images.
        strides: Lengths of the step in steps of the chain.
        count: Noisy images.
    """
    chain = named_schedule("linear", 1000)
    source = chain.level(500)
    x_t = diffuse(DATA.sample(count, seed), source, Noise64(seed, count).normal((1, 1, 1))).flatten()
    points = []
    for stride in strides:
        grid, log_p, _ = reverse_conditional(DATA, source, chain.level(500 - stride), x_t)
        density = log_p.exp()
        below = (density.cumsum(1) - 0.5 * density) * 0.01
        points.append([stride, float((below - torch.special.ndtr(grid)).abs().sum(1).mean() * 0.01)])
    return {
        "effects": {"one step": points[0][1], "long steps": points[-1][1] - points[0][1]},
        "numbers": {"series": {"distance to a Gaussian": points}},
    }


def annealed_weights(run: Any, seed: int, count: int, levels: int, inner: int) -> dict[str, Any]:
    """Samples two far modes of weights 1:4 by plain and by annealed Langevin dynamics with the exact score.

    Args:
        run: Not used.
        seed: Of the noise.
        count: Samples.
        levels: Noise levels of the annealed run, from 10 to the modes' width; the plain run has the last one only.
        inner: Langevin steps at each level; the plain run makes as many in total.
    """
    two = Mixture.scalar([0.2, 0.8], [-5.0, 5.0], [1.0, 1.0])
    one = torch.ones(1, dtype=torch.float64)
    noise = NoiseSource(seed, range(count))
    start = noise.normal((1, 1, 1), step=0, purpose="x_T").double()

    def walk(x: Tensor, sigmas: list[float]) -> Tensor:
        for number, sigma in enumerate(sigmas, 1):
            scale = torch.tensor([sigma], dtype=torch.float64)
            size = 0.1 * (1 + sigma**2)  # of the width that the modes have at this level
            score = two.score(x, one, scale)
            x = x + 0.5 * size * score + math.sqrt(size) * noise.normal((1, 1, 1), step=number).double()
        return x

    ladder = [10.0 * (0.01 / 10.0) ** (i / (levels - 1)) for i in range(levels)]
    annealed = walk(start * 10, [sigma for sigma in ladder for _ in range(inner)])
    begin = torch.where(torch.arange(count).reshape(-1, 1, 1, 1) % 2 == 0, -5.0, 5.0) + start
    plain = walk(begin, [0.01] * (levels * inner))
    share = {"plain": float((plain < 0).double().mean()), "annealed": float((annealed < 0).double().mean())}
    return {
        "effects": {
            "plain is wrong": abs(share["plain"] - 0.2),
            "annealed is right": share["annealed"] - 0.2,
        },
        "numbers": {"share of the mode of weight 0.2": share},
    }
