"""Claims about training: arms of equal length that differ in one thing, compared on the same images and noise."""

from __future__ import annotations

import math
import time
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.distributed import resolve_device
from undiffuse.grids import grid
from undiffuse.likelihood.bound import bits_per_dim
from undiffuse.models import load_diffusion
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import diffuse
from undiffuse.objectives import mean_flat
from undiffuse.pipelines import Pipeline
from undiffuse.pixels import from_uint8, to_uint8
from undiffuse.reproduce.arms import SCALES, train_arm
from undiffuse.reproduce.methods.judging import TEST, draw, floor, scores, stored_images
from undiffuse.solvers import build_solver

EVALUATION_SEED = 2026
BETTER_IF_SMALLER = ("loss", "fd")


@cache
def loaded(folder: str, weights: str, device: str) -> Pipeline:
    """Returns the pipeline of a run folder with its raw ("net") or averaged weights."""
    model = load_diffusion(folder, weights=weights)
    return Pipeline.from_pretrained(model, device=device, solver="ddim", steps="25", precision="fp32")


def arm_pipeline(run: Any, arm: str, scale: str, seed: int) -> Pipeline:
    """Returns a trained arm; "base@net" is the arm "base" with its raw weights."""
    name, _, weights = arm.partition("@")
    folder = run.trained(name, scale, seed)
    return loaded(str(folder), weights or f"{SCALES[scale].ema:g}", run.device)


def images_to_test(scale: str, count: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Returns test images [count, 1, H, W] in [-1, 1] and their classes."""
    images, labels = stored_images(TEST, SCALES[scale].size, count)
    return from_uint8(images, device), torch.as_tensor(labels, dtype=torch.int64, device=device)


def _condition(made: Pipeline, y: Tensor) -> dict[str, Tensor] | None:
    return {"y": y} if "y" in made.denoiser.conditions else None


def noise_error(run: Any, arm: str, scale: str, seed: int, count: int, times: int) -> float:
    """Returns the mean squared error of the predicted noise on test images at evenly spaced steps.

    It is the simple loss whatever the network predicts. Images, steps and noise are the same for all arms.
    """
    about = {"arm": arm, "scale": scale, "seed": seed, "count": count, "times": times, "what": "noise"}

    def measure() -> float:
        made = arm_pipeline(run, arm, scale, seed)
        x0, y = images_to_test(scale, count, made.device)
        chain, total = made.denoiser.chain, 0.0
        noise = NoiseSource(EVALUATION_SEED, range(count))
        for i in range(times):
            level = chain.level(int((i + 0.5) * chain.steps / times))
            eps = noise.normal(tuple(x0.shape[1:]), step=i, device=made.device)
            with torch.no_grad():
                predicted = made.denoiser(diffuse(x0, level, eps), level, _condition(made, y)).eps
            total += float(mean_flat((predicted - eps) ** 2).mean())
        return total / times

    return run.measured("loss", about, measure)


def bits(run: Any, arm: str, scale: str, seed: int, count: int, terms: int) -> float:
    """Returns bits per dimension of test images by an unbiased estimate of the bound."""
    about = {"arm": arm, "scale": scale, "seed": seed, "count": count, "terms": terms, "what": "bits"}

    def measure() -> float:
        made = arm_pipeline(run, arm, scale, seed)
        x0, y = images_to_test(scale, count, made.device)
        noise = NoiseSource(EVALUATION_SEED, range(count))
        found = bits_per_dim(
            made.denoiser,
            made.denoiser.chain,
            x0,
            noise,
            cond=_condition(made, y),
            terms=terms,  # type: ignore[arg-type]
        )
        return float(found.total.mean())

    return run.measured("bits", about, measure)


def quality(
    run: Any, arm: str, scale: str, seed: int, count: int, judge: str, reference: int, solver: str, steps: str
) -> dict[str, Any]:
    """Returns the scores of an arm's samples, see `judging.scores`; "gan" has no sampler."""
    about = {
        "arm": arm, "scale": scale, "seed": seed, "count": count, "judge": judge, "reference": reference,
        "solver": solver, "steps": steps,
    }  # fmt: skip

    def measure() -> dict[str, Any]:
        if arm == "gan":
            from undiffuse.reproduce.gan import gan_samples

            images = gan_samples(run.trained(arm, scale, seed), SCALES[scale], count, EVALUATION_SEED).numpy()
            return scores(images, None, judge, reference)
        made = arm_pipeline(run, arm, scale, seed)
        y = torch.arange(count) % 10
        cond = _condition(made, y)
        path = grid(made.denoiser.chain, steps)
        side = SCALES[scale].size
        x = draw(
            made.denoiser, path, build_solver(solver), (1, side, side), count, EVALUATION_SEED, cond, None, made.device
        )
        return scores(to_uint8(x).numpy(), None if cond is None else y, judge, reference)

    return run.measured("quality", about, measure)


def contrasts(
    run: Any, seed: int, scale: str, effects: dict[str, list[str]], judge: str, samples: int = 200,
    reference: int = 2000, images: int = 400, times: int = 8, terms: int = 16, solver: str = "ddim", steps: str = "25",
) -> dict[str, Any]:  # fmt: skip
    """Compares trained arms.

    Args:
        run: The run.
        seed: Of the trainings.
        scale: Size and length of the trainings.
        effects: For each effect [measure, better, worse]: how much better the first arm is. Measures are "loss" (error
            of the noise, logarithm of the ratio), "bits" (bits/dim, difference), "fd" (logarithm of the ratio),
            "precision", "recall" and "accuracy" (differences).
        judge: Name of the extractor.
        samples: Samples for distances.
        reference: Test images for distances.
        images: Test images for loss and bits.
        times: Steps for the loss.
        terms: Terms for bits.
        solver: Solver of the samples.
        steps: Steps of the samples.
    """
    found: dict[str, float] = {}
    numbers: dict[str, Any] = {}
    for arm in dict.fromkeys(name.partition("@")[0] for _, *pair in effects.values() for name in pair):
        known = train_arm(arm, SCALES[scale], seed, run.arm_folder(arm, scale, seed), run.data, run.device)
        numbers.setdefault("parameters", {})[arm] = known["parameters"]
        numbers.setdefault("processor seconds of the training", {})[arm] = known["seconds"]

    def value(measure: str, arm: str) -> float:
        if measure == "loss":
            out = noise_error(run, arm, scale, seed, images, times)
        elif measure == "bits":
            out = bits(run, arm, scale, seed, images // 2, terms)
        else:
            out = quality(run, arm, scale, seed, samples, judge, reference, solver, steps)[measure]
        numbers.setdefault(measure, {})[arm] = out
        return math.nan if out is None else out

    for name, (measure, better, worse) in effects.items():
        a, b = value(measure, better), value(measure, worse)
        if measure in BETTER_IF_SMALLER:
            found[name] = math.log(b / a)
        else:
            found[name] = b - a if measure == "bits" else a - b
    if {"fd", "precision", "recall"} & {measure for measure, _, _ in effects.values()}:
        real = floor(SCALES[scale].size, samples, judge, reference)
        numbers["real images"] = {name: real[name] for name in ("fd", "precision", "recall")}
    return {"effects": found, "numbers": numbers}


def gradient_noise(run: Any, seed: int, scale: str, points: int, images: int) -> dict[str, Any]:
    """Measures the noise scale of gradients, tr(Cov) / |mean|^2 of single images, at the base arm's weights.

    Rare steps carry most of the variance, so it is not estimated from random steps: second moments and means of
    single gradients are measured at steps that are evenly spaced in their logarithm, and summed over all steps. With
    g_t the gradient of L_t and p_t the probability of step t, the second moment of the bound's estimate g_t / p_t is
    sum E|g_t|^2 / p_t; importance sampling has p_t ~ sqrt(E[L_t^2]).

    Args:
        run: The run.
        seed: Of the training.
        scale: Size and length of the training.
        points: Steps that are measured.
        images: Images at each of them, an even number.
    """
    from undiffuse.denoiser import ChainDenoiser
    from undiffuse.objectives import Objective, ObjectiveConfig

    folder, device = run.trained("base", scale, seed), resolve_device(run.device)
    model = load_diffusion(str(folder), weights=f"{SCALES[scale].ema:g}", device=device)
    net: Any = model.net.train().requires_grad_(True)
    denoiser = ChainDenoiser(net, model.process, "none")
    x = from_uint8(stored_images("fashion-mnist", SCALES[scale].size, images)[0], device)
    noise = NoiseSource(EVALUATION_SEED + seed, range(images)).normal(tuple(x.shape[1:]), device=device)
    parameters, total = list(net.parameters()), denoiser.chain.steps
    steps = sorted({round(total ** (i / (points - 1))) - 1 for i in range(points)})
    nearest = np.abs(np.log1p(np.arange(total))[:, None] - np.log1p(steps)).argmin(1)
    count = torch.from_numpy(np.bincount(nearest, minlength=len(steps))).double()  # steps that each point stands for

    def measure(loss: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns E|g|^2 and E[L_t^2] at each point, and the sum over all steps of the mean gradient of two halves."""
        objective = Objective(denoiser, ObjectiveConfig(loss=loss))
        square, level, means = [], [], []
        for k in steps:
            single, terms = [], []
            for i in range(images):
                found = objective(x[i : i + 1], torch.tensor([k]), noise[i : i + 1])
                value = found["vb"] if loss == "vlb" else found["loss"]
                grads = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
                flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
                single.append(torch.cat([g.flatten() for g in flat]))
                terms.append(found["vb"].detach().double().cpu())
            rows = torch.stack(single).double()
            square.append(float((rows**2).sum(1).mean()))
            level.append(float((torch.cat(terms) ** 2).mean()))
            means.append(torch.stack([rows[::2].mean(0), rows[1::2].mean(0)]).cpu())
        halves = torch.einsum("k,khp->hp", count, torch.stack(means))
        return torch.tensor(square).double(), torch.tensor(level).double(), halves

    def size_of(halves: Tensor) -> float:
        """Returns |mean|^2 without the bias of noise, or a tenth of the biased value if noise hides it."""
        return max(float(halves[0] @ halves[1]), 0.1 * float((halves.mean(0) ** 2).sum()))

    square, level, halves = measure("vlb")
    p = 0.99 * level.sqrt() / (count * level.sqrt()).sum() + 0.01 / total
    mean = size_of(halves)
    uniform, weighted = total * float((count * square).sum()), float((count * square / p).sum())
    plain, _, plain_halves = measure("hybrid")
    hybrid = total * float((count * plain).sum()) / size_of(plain_halves) - 1
    return {
        "effects": {
            "bound over hybrid": math.log10((uniform / mean - 1) / hybrid),
            "importance helps": math.log10((uniform - mean) / max(weighted - mean, 1e-3 * weighted)),
        },
        "numbers": {
            "noise scale": {"bound": uniform / mean - 1, "bound, importance": weighted / mean - 1, "hybrid": hybrid}
        },
    }


def sampling_time(run: Any, seed: int, scale: str, steps: int, count: int) -> dict[str, Any]:
    """Compares the time of a sampler with that of the GAN's single pass (on a GPU the GAN still runs on the CPU)."""
    from undiffuse.reproduce.gan import gan_samples

    made, folder = arm_pipeline(run, "base", scale, seed), run.trained("gan", scale, seed)
    path, shape = grid(made.denoiser.chain, str(steps)), (1, SCALES[scale].size, SCALES[scale].size)
    clock = time.process_time if made.device.type == "cpu" else time.perf_counter

    def diffusion() -> None:
        draw(made.denoiser, path, build_solver("ddim"), shape, count, seed, None, None, made.device)

    seconds = {}
    for name, sample in (("diffusion", diffusion), ("gan", lambda: gan_samples(folder, SCALES[scale], count, seed))):
        sample()
        begin = clock()
        sample()
        seconds[name] = (clock() - begin) / count
    return {
        "effects": {"25 steps": math.log(seconds["diffusion"] / max(seconds["gan"], 1e-9))},
        "numbers": {"seconds per image": seconds},
    }
