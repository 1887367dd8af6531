"""Claims about the terms of the bound, measured on the shipped model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from undiffuse.likelihood.bound import bits_per_dim
from undiffuse.noise import NoiseSource
from undiffuse.pixels import from_uint8
from undiffuse.reproduce.methods.judging import TEST, stored_images
from undiffuse.reproduce.methods.shipped import pipeline, sampler


def _terms(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Returns terms of the bound at chosen steps of the whole chain, with means of squares and errors of x0."""
    about = {"seed": seed, "steps": steps, "count": count}

    def measure() -> dict[str, Any]:
        made = pipeline(run.device, **sampler("learned", 1000))
        images, labels = stored_images(TEST, 32, 10 * count)
        x0, y = from_uint8(images[seed::10][:count]), torch.as_tensor(labels[seed::10][:count], dtype=torch.int64)
        noise = NoiseSource(seed, range(count))
        from undiffuse.noise_levels import diffuse
        from undiffuse.objectives import bound_term, mean_flat

        chain, out = made.denoiser.chain, []
        for k in steps:
            step = chain.transition(k)
            x_t = diffuse(x0, step.source, noise.normal((1, 32, 32), step=k))
            with torch.no_grad():
                prediction = made.denoiser(x_t, step.source, {"y": y})
                term = bound_term(prediction, x0, step).double()
            error = mean_flat((prediction.x0 - x0) ** 2).double()
            out.append([float(term.mean()), float((term**2).mean()), float(error.mean().sqrt()) * 127.5])
        return {"rows": out}

    return run.measured("terms", about, measure)


def _whole(steps: list[int], values: list[float]) -> np.ndarray:
    """Returns all 1,000 terms from those at some steps, interpolated linearly between logarithms."""
    return np.exp(np.interp(np.log1p(np.arange(1000)), np.log1p(steps), np.log(values)))


def rate_distortion(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Divides the codelength into rate and distortion, and finds which steps carry it.

    Args:
        run: The run.
        seed: Which test images, and their noise.
        steps: Steps at which terms are measured; others are interpolated.
        count: Images.
    """
    rows = _terms(run, seed, steps, count)["rows"]
    terms = _whole(steps, [max(row[0], 1e-12) for row in rows])
    total, rate = float(terms.sum()), float(terms[1:].sum())
    share = float(terms[0]) / total
    return {
        "effects": {
            "distortion": share - 0.25,
            "first tenth": float(terms[:100].sum()) / total - 0.5,
            "first hundredth": float(terms[1:10].sum()) / rate - 0.15,
        },
        "numbers": {
            "rate and distortion in bits/dim": [rate, float(terms[0])],
            "share of the first tenth": float(terms[:100].sum()) / total,
            "share of steps 1 to 9 of the rate": float(terms[1:10].sum()) / rate,
            "series": {
                "L_t in bits/dim": [[k + 1, row[0]] for k, row in zip(steps, rows, strict=True)],
                "RMSE of x0 in grey levels": [[k + 1, row[2]] for k, row in zip(steps, rows, strict=True)],
            },
        },
    }


def importance_ratio(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Predicts by how much importance sampling reduces the variance of the bound's estimate.

    With uniform t the second moment of an estimate is T sum E[L_t^2]; with p_t ~ sqrt(E[L_t^2]) it is
    (sum sqrt(E[L_t^2]))^2 (Improved DDPM, eq. 18).
    """
    rows = _terms(run, seed, steps, count)["rows"]
    squares = _whole(steps, [max(row[1], 1e-24) for row in rows])
    total = float(_whole(steps, [max(row[0], 1e-12) for row in rows]).sum())
    uniform, weighted = 1000 * float(squares.sum()), float(np.sqrt(squares).sum()) ** 2
    return {
        "effects": {"log ratio": math.log10((uniform - total**2) / max(weighted - total**2, 1e-3 * weighted))},
        "numbers": {"variance, uniform": uniform - total**2, "variance, importance": weighted - total**2},
    }


def strided_bound(run: Any, seed: int, steps: int, terms: int, count: int) -> dict[str, Any]:
    """Compares the bound by a strided chain, with and without all of the first steps, with that of the whole chain.

    Args:
        run: The run.
        seed: Which test images, and their noise.
        steps: Strided steps K; the first 1000 / K steps are added in the second measurement.
        terms: Terms by which the whole chain's bound is estimated.
        count: Images.
    """
    about = {"seed": seed, "steps": steps, "terms": terms, "count": count}

    def measure() -> dict[str, float]:
        made = pipeline(run.device, **sampler("learned", 1000))
        images, labels = stored_images(TEST, 32, 10 * count)
        x0, y = from_uint8(images[seed::10][:count]), torch.as_tensor(labels[seed::10][:count], dtype=torch.int64)
        chain = made.denoiser.chain
        kept = set(chain.respaced(str(steps)).indices.tolist())

        def bits(indices: set[int] | None, some: int | None) -> float:
            path = chain if indices is None else chain.respaced(sorted(indices))
            noise = NoiseSource(seed, range(count))
            return float(bits_per_dim(made.denoiser, path, x0, noise, cond={"y": y}, terms=some).total.mean())

        return {
            "whole chain": bits(None, terms),
            "strided": bits(kept, None),
            "with the first steps": bits(kept | set(range(1000 // steps)), None),
        }

    found = run.measured("strided", about, measure)
    return {
        "effects": {
            "inflation": found["strided"] - found["whole chain"],
            "cured": found["strided"] - found["with the first steps"],
        },
        "numbers": {"bits/dim": found},
    }
