"""Claims about classifier guidance where data, classifier and denoiser are exact."""

from __future__ import annotations

import math
from typing import Any

import torch

from undiffuse.guidance import ClassifierFree, ClassifierGuidance
from undiffuse.noise_levels import named_schedule
from undiffuse.reproduce.methods.oracle_sampling import by_x, even_noise
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

CLASSES = Mixture.scalar([0.5, 0.5], [-0.5, 0.5], [0.3, 0.3], labels=(0, 1))
"""Two overlapping classes; class 0 has mean -0.5 and standard deviation 0.3."""


def guided_moments(
    solver: str, steps: int, scale: float, seed: int, count: int, at: str = "x_t", variance: str = "fixed_small"
) -> tuple[float, float]:
    """Returns mean and standard deviation of samples guided towards class 0."""
    chain = named_schedule("linear", 1000)
    denoiser = ClassifierGuidance(OracleDenoiser(CLASSES, chain, variance), CLASSES.class_gradients, scale, at)
    y = torch.zeros(count, dtype=torch.int64)
    x = generate(
        denoiser, chain.respaced(str(steps)), build_solver(solver), Noise64(seed, count), (1, 1, 1), cond={"y": y},
        x_T=even_noise(count),
    )  # fmt: skip
    return float(x.mean()), float(x.std())


def scale_one(run: Any, seed: int, steps: int, count: int) -> dict[str, Any]:
    """Samples with guidance of scale 1, which is Bayes' rule for an unconditional model, and of larger scales."""
    lines: dict[str, list[list[float]]] = {}
    for scale in (0.0, 1.0, 3.0):
        mean, deviation = guided_moments("ddpm", steps, scale, seed, count, variance="optimal")
        lines.setdefault("mean", []).append([scale, mean])
        lines.setdefault("standard deviation", []).append([scale, deviation])
    means, deviations = (by_x(points) for points in lines.values())
    return {
        "effects": {
            "scale 1 is exact": abs(means[1.0] + 0.5),
            "overshoot": -0.5 - means[3.0],
            "narrower": math.log(deviations[1.0] / deviations[3.0]),
        },
        "numbers": {"series": lines},
    }


def gradient_place(run: Any, seed: int, many: int, few: int, scale: float, count: int) -> dict[str, Any]:
    """Compares gradients at the noisy image with gradients at the mean of the reverse step, for many and few steps."""
    found = {}
    for steps in (many, few):
        for at in ("x_t", "mean"):
            found[f"{steps} steps, {at}"] = guided_moments("ddpm", steps, scale, seed, count, at)[0]
    gap = {steps: (found[f"{steps} steps, mean"] - found[f"{steps} steps, x_t"]) / 0.3 for steps in (many, few)}
    return {"effects": {"many": gap[many], "few": abs(gap[few])}, "numbers": found}


def needed_scale(run: Any, seed: int, many: int, few: int, scale: float, count: int) -> dict[str, Any]:
    """Finds the scale at which few steps of DDIM shift samples as far as many ancestral steps do at a given scale."""
    target = guided_moments("ddpm", many, scale, seed, count)[0]
    low, high = 0.0, 4.0 * scale
    for _ in range(12):
        middle = (low + high) / 2
        if guided_moments("ddim", few, middle, seed, count)[0] > target:  # guidance moves the mean down
            low = middle
        else:
            high = middle
    found = (low + high) / 2
    return {
        "effects": {"scale": math.log(found / scale)},
        "numbers": {"ancestral scale": scale, "equal DDIM scale": found, "mean": target},
    }


def classifier_free(run: Any, seed: int, scale: float, steps: int, count: int) -> dict[str, Any]:
    """Samples with classifier-free guidance, and compares one level's guided score with its closed form.

    With classes N(m, s^2) whose means are N(0, tau^2), S2 = alpha^2 s^2 + sigma^2, U2 = S2 + alpha^2 tau^2 and
    r = S2 / U2, the guided score is that of N(alpha m (1 + w) / (1 + w - w r), S2 / (1 + w - w r)), scale = 1 + w.

    Args:
        run: Not used.
        seed: Of the sampler's noise.
        scale: Scale of guidance; 1 is the conditional model.
        steps: Steps of ancestral sampling.
        count: Samples.
    """
    chain = named_schedule("linear", 1000)
    y = torch.zeros(count, dtype=torch.int64)

    def moments(strength: float) -> tuple[float, float]:
        both = OracleDenoiser(CLASSES, chain, "optimal", conditional=True)
        x = generate(
            ClassifierFree(both, strength, {"y": 2}), chain.respaced(str(steps)), build_solver("ddpm"),
            Noise64(seed, count), (1, 1, 1), cond={"y": y}, x_T=even_noise(count),
        )  # fmt: skip
        return float(x.mean()), float(x.std())

    (mean, deviation), (guided_mean, guided_deviation) = moments(1.0), moments(scale)
    w, m, s2, tau2 = scale - 1, 0.7, 0.09, 0.3
    alpha, sigma = 0.6, 0.8
    own, all_ = alpha**2 * s2 + sigma**2, alpha**2 * (s2 + tau2) + sigma**2
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    guided = scale * (alpha * m - x) / own - w * (-x) / all_
    k = 1 + w - w * own / all_
    closed = (alpha * m * scale / k - x) / (own / k)
    return {
        "effects": {
            "overshoot": mean - guided_mean,
            "narrower": math.log(deviation / guided_deviation),
            "formula": float((guided - closed).abs().max()),
        },
        "numbers": {
            "mean and deviation": {"conditional": [mean, deviation], "guided": [guided_mean, guided_deviation]}
        },
    }
