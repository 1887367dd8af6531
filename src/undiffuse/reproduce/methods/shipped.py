"""Claims about sampling and guidance, measured on the shipped model; nothing is trained."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import Level, Transition
from undiffuse.pipelines import Pipeline
from undiffuse.pixels import from_uint8, to_uint8
from undiffuse.prediction import FixedVariance, Prediction, ReverseVariance
from undiffuse.reproduce.methods.judging import (
    TEST,
    draw,
    features_of,
    floor,
    reference_features,
    scores,
    stored_images,
)
from undiffuse.sampling import encode, slerp

MODEL = "fashion-mnist-32"
SHAPE = (1, 32, 32)


class WithVariance:
    """A denoiser with a fixed reverse variance in place of its learned one, or with one that is scaled.

    Args:
        denoiser: The denoiser.
        kind: "fixed_small" or "fixed_large"; None keeps the learned one.
        temperature: Factor of the standard deviation.
    """

    def __init__(self, denoiser: Denoiser, kind: str | None, temperature: float) -> None:
        self.denoiser, self.chain, self.conditions = denoiser, denoiser.chain, denoiser.conditions
        self.kind, self.temperature = kind, temperature

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        found = self.denoiser(x, level, cond)
        variance = found.variance if self.kind is None else FixedVariance(self.kind)
        assert variance is not None
        return replace(found, variance=variance if self.temperature == 1 else Cooled(variance, self.temperature))


@dataclass(frozen=True)
class Cooled:
    """A reverse variance times the square of a temperature.

    Attributes:
        base: The variance.
        temperature: Factor of the standard deviation.
    """

    base: ReverseVariance
    temperature: float

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.log_variance`."""
        return self.base.log_variance(transition, like) + 2 * math.log(self.temperature)

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.variance`."""
        return self.base.variance(transition, like) * self.temperature**2


@cache
def pipeline(device: str, **settings: Any) -> Pipeline:
    """Returns the shipped model with settings of a sampler; "variance" is none of them."""
    return Pipeline.from_pretrained(MODEL, device=device, precision="bf16", **settings)


def images_of(
    run: Any, seed: int, count: int, variance: str | None = None, temperature: float = 1.0, **settings: Any
) -> Tensor:
    """Returns samples of the shipped model, float [count, 1, 32, 32], classes in turn."""
    made = pipeline(run.device, **settings)
    changed = variance is not None or temperature != 1
    denoiser: Denoiser = WithVariance(made.denoiser, variance, temperature) if changed else made.denoiser
    y = torch.arange(count) % 10
    return draw(denoiser, made.path, made.solver, SHAPE, count, seed, {"y": y})


def measured(run: Any, seed: int, count: int, judge: str, reference: int, **settings: Any) -> dict[str, Any]:
    """Returns the scores of samples of the shipped model, measured once for the same arguments."""
    about = {"model": MODEL, "seed": seed, "count": count, "judge": judge, "reference": reference, **settings}

    def measure() -> dict[str, Any]:
        images = to_uint8(images_of(run, seed, count, **settings)).numpy()
        return scores(images, torch.arange(count) % 10, judge, reference)

    return run.measured("shipped", about, measure)


def sampler(name: str, steps: int) -> dict[str, Any]:
    """Returns the settings of a sampler: "learned", "fixed_small" and "fixed_large" are ancestral, or "ddim"."""
    if name == "ddim":
        return {"solver": "ddim", "steps": str(steps), "grid": "chain"}
    chosen = {"solver": "ddpm", "steps": str(steps), "grid": "chain"}
    return chosen if name == "learned" else {**chosen, "variance": name}


def sampler_sweep(
    run: Any, seed: int, effects: dict[str, list[Any]], count: int, judge: str, reference: int
) -> dict[str, Any]:
    """Compares samplers at several numbers of steps.

    Args:
        run: The run.
        seed: Of the samples' noise, which all samplers share.
        effects: For each effect [worse, its steps, better, its steps], with names for `sampler`: the logarithm of the
            ratio of their distances.
        count: Samples of each.
        judge: Name of the extractor.
        reference: Number of test images.
    """
    points = sorted({pair for a, i, b, j in effects.values() for pair in ((a, i), (b, j))})
    at = {(name, k): measured(run, seed, count, judge, reference, **sampler(name, k))["fd"] for name, k in points}
    lines: dict[str, list[list[float]]] = {}
    for (name, k), found in at.items():
        lines.setdefault(name, []).append([k, found])
    return {
        "effects": {name: math.log(at[a, i] / at[b, j]) for name, (a, i, b, j) in effects.items()},
        "numbers": {"FD of real images": floor(32, count, judge, reference)["fd"], "series": lines},
    }


def settings_pair(
    run: Any, seed: int, first: dict[str, Any], second: dict[str, Any], count: int, judge: str, reference: int
) -> dict[str, Any]:
    """Compares two settings of the sampler; positive effects favour the second one.

    Args:
        run: The run.
        seed: Of the samples' noise, which both share.
        first: Settings of `Pipeline.from_pretrained`.
        second: The others.
        count: Samples of each.
        judge: Name of the extractor.
        reference: Number of test images.
    """
    a, b = (measured(run, seed, count, judge, reference, **settings) for settings in (first, second))
    return {
        "effects": {
            "fd": math.log(a["fd"] / b["fd"]),
            **{name: b[name] - a[name] for name in ("precision", "recall", "accuracy")},
        },
        "numbers": {name: [a[name], b[name]] for name in ("fd", "precision", "recall", "accuracy")},
    }


def guidance_scales(
    run: Any, seed: int, scales: list[float], steps: int, count: int, judge: str, reference: int
) -> dict[str, Any]:
    """Measures the trade-off of the scale of classifier guidance on the class-conditional model.

    Args:
        run: The run.
        seed: Of the samples' noise, which all scales share.
        scales: Scales, from 0 to the largest.
        steps: Steps of ancestral sampling.
        count: Samples of each scale.
        judge: Name of the extractor; it guides nothing.
        reference: Number of test images.
    """
    lines: dict[str, list[list[float]]] = {}
    for scale in scales:
        guided = {"guidance": scale} if scale else {}
        found = measured(run, seed, count, judge, reference, **sampler("learned", steps), **guided)
        for name in ("fd", "precision", "recall", "accuracy"):
            lines.setdefault(name, []).append([scale, found[name]])
    first, last = ({name: points[i][1] for name, points in lines.items()} for i in (0, -1))
    middle = min(value for _, value in lines["fd"][1:-1]) if len(scales) > 2 else math.nan
    return {
        "effects": {
            "accuracy": last["accuracy"] - first["accuracy"],
            "precision": last["precision"] - first["precision"],
            "recall": first["recall"] - last["recall"],
            "distance, optimum": math.log(first["fd"] / middle),
            "distance, largest": math.log(last["fd"] / middle),
        },
        "numbers": {"series": lines},
    }


def latent_space(
    run: Any,
    seed: int,
    few: int,
    many: int,
    count: int,
    steps: int,
    pairs: int,
    points: int,
    judge: str,
    reference: int,
) -> dict[str, Any]:
    """Compares images from equal x_T at few and many steps, and interpolates between latents.

    The share of equal classes says little of a class-conditional model, so the correlation of the pixels is measured,
    less the mean image of each class. Images between two of the same class should be of that class.

    Args:
        run: The run.
        seed: Of the latents.
        few: Few steps.
        many: Many steps.
        count: Images for the correlation, a multiple of 10.
        steps: Steps of the interpolated images.
        pairs: Pairs of latents that are interpolated.
        points: Images of a way from one to the other, an odd number.
        judge: Name of the extractor.
        reference: Not used.
    """
    about = {"seed": seed, "few": few, "many": many, "count": count, "steps": steps, "pairs": pairs, "points": points}
    made = pipeline(run.device, **sampler("ddim", steps))
    noise, y = NoiseSource(seed, range(pairs)), torch.arange(pairs) % 10

    def correlation(name: str) -> float:
        a, b = (images_of(run, seed, count, **sampler(name, k)).flatten(1) for k in (few, many))
        mean = torch.cat([a, b]).reshape(-1, 10, a.shape[1]).mean(0)  # of each class
        a, b = (v - mean.repeat(count // 10, 1) for v in (a, b))
        return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean())

    def images_at(x_T: Tensor) -> Tensor:
        return draw(made.denoiser, made.path, made.solver, SHAPE, pairs, seed, {"y": y}, x_T)

    def accuracy(x: Tensor) -> float:
        return float((features_of(to_uint8(x).numpy(), judge)[1].argmax(1) == y).double().mean())

    def measure() -> dict[str, Any]:
        a, b = (noise.normal(SHAPE, purpose=purpose) for purpose in ("x_T", "other end"))
        way = [images_at(slerp(a, b, i / (points - 1))) for i in range(points)]
        moved = torch.stack([(q - p).flatten(1).norm(dim=1) for p, q in zip(way, way[1:], strict=False)])
        return {
            "ddim": correlation("ddim"),
            "ancestral": correlation("fixed_small"),
            "ends": (accuracy(way[0]) + accuracy(way[-1])) / 2,
            "slerp": accuracy(way[points // 2]),
            "lerp": accuracy(images_at(0.5 * (a + b))),
            "largest step": float((moved.max(0).values / moved.sum(0)).mean()),
        }

    found = run.measured("latents", {**about, "judge": judge}, measure)
    return {
        "effects": {
            "ddim": found["ddim"] - 0.5,
            "difference": found["ddim"] - found["ancestral"],
            "as good as the ends": found["slerp"] - found["ends"],
            "slerp over lerp": found["slerp"] - found["lerp"],
        },
        "numbers": found,
    }


def reconstruction(run: Any, seed: int, steps: list[int], scale: float, count: int) -> dict[str, Any]:
    """Encodes test images to latents by DDIM and decodes them; the error is in units where pixels are in [0, 1].

    Args:
        run: The run.
        seed: First test image.
        steps: Numbers of steps, smallest first.
        scale: Scale of guidance for decoding at the largest number of steps.
        count: Images.
    """
    images, labels = stored_images(TEST, 32, 10 * count)
    x0 = from_uint8(images[seed::10][:count])
    y = torch.as_tensor(labels[seed::10][:count], dtype=torch.int64)

    def error(k: int, guided: float, to_noise: bool = False) -> float:
        about = {"seed": seed, "steps": k, "guidance": guided, "count": count, "to_noise": to_noise}

        def measure() -> float:
            made = pipeline(run.device, **sampler("ddim", k), **({"guidance": guided} if guided else {}))
            plain = pipeline(run.device, **sampler("ddim", k))
            latent = encode(plain.denoiser, plain.path, x0, cond={"y": y}, to_noise=to_noise)
            back = draw(made.denoiser, made.path, made.solver, SHAPE, count, seed, {"y": y}, latent)
            return float(((back - x0) ** 2).mean()) / 4

        return run.measured("reconstruction", about, measure)

    points = [[k, error(k, 0.0)] for k in steps]
    guided, whole = error(steps[-1], scale), error(steps[-1], 0.0, True)
    return {
        "effects": {
            "falls": math.log(points[0][1] / points[-1][1]),
            "guided is worse": math.log(guided / points[-1][1]),
            "last step": math.log(whole / points[-1][1]),
        },
        "numbers": {"guided": guided, "with the last step": whole, "series": {"mean square error": points}},
    }


def run_time(run: Any, seed: int, steps: list[int], count: int) -> dict[str, Any]:
    """Measures processor time over numbers of steps; the effect is how far the time per step is from constant."""
    points = []
    for k in steps:
        images_of(run, seed, 2, **sampler("ddim", k))
        begin = time.process_time()
        images_of(run, seed, count, **sampler("ddim", k))
        points.append([k, (time.process_time() - begin) / count])
    x, y = zip(*points, strict=True)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mean_x) * (b - mean_y) for a, b in points)
    square = cov**2 / (sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    return {"effects": {"unexplained": 1 - square}, "numbers": {"series": {"seconds per image": points}}}


def copies(run: Any, seed: int, training: int, count: int, judge: str, reference: int) -> dict[str, Any]:
    """Compares how near training images are to samples and to test images, in the judge's features.

    Args:
        run: The run.
        seed: Of the samples.
        training: Training images, evenly spaced.
        count: Samples, and test images.
        judge: Name of the extractor.
        reference: Not used.
    """
    about = {"seed": seed, "training": training, "count": count, "judge": judge}

    def measure() -> dict[str, float]:
        real = reference_features("fashion-mnist", 32, training, judge)[0]
        made = features_of(to_uint8(images_of(run, seed, count, **sampler("learned", 25))).numpy(), judge)[0]
        held = reference_features(TEST, 32, 10 * count, judge)[0][seed::10][:count]
        near = lambda x: float(torch.cdist(x.double(), real.double()).min(1).values.median())  # noqa: E731
        return {"samples": near(made), "test images": near(held)}

    found = run.measured("copies", about, measure)
    return {
        "effects": {"not copies": math.log(found["samples"] / found["test images"])},
        "numbers": {"median distance to the nearest training image": found},
    }
