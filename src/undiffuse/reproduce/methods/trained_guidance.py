"""Claims about guidance that need trained classifiers, unconditional models or stacks."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from undiffuse.denoiser import Denoiser
from undiffuse.distributed import resolve_device
from undiffuse.grids import grid
from undiffuse.guidance import ClassifierGuidance
from undiffuse.models import load_classifier
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import diffuse
from undiffuse.pixels import to_uint8
from undiffuse.reproduce.arms import SCALES
from undiffuse.reproduce.methods.judging import draw, scores
from undiffuse.reproduce.methods.trained import EVALUATION_SEED, arm_pipeline, images_to_test
from undiffuse.solvers import build_solver


@cache
def classifier_of(folder: str, device: str) -> Any:
    """Returns the classifier of a run folder."""
    return load_classifier(folder, device=resolve_device(device)).level_classifier()


def classifier_accuracy(run: Any, arm: str, scale: str, seed: int, count: int) -> list[float]:
    """Returns the accuracy of a classifier on test images in five equal parts of the chain, cleanest first."""

    def measure() -> list[float]:
        judged = classifier_of(str(run.trained(arm, scale, seed)), run.device)
        device = resolve_device(run.device)
        x0, y = images_to_test(scale, count, device)
        noise, out = NoiseSource(EVALUATION_SEED, range(count)), []
        for i in range(5):
            level = judged.chain.level(int((i + 0.5) * judged.chain.steps / 5))
            x_t = diffuse(x0, level, noise.normal(tuple(x0.shape[1:]), step=i, device=device))
            with torch.no_grad():
                out.append(float((judged(x_t, level).argmax(1) == y).double().mean()))
        return out

    about = {"arm": arm, "scale": scale, "seed": seed, "count": count}
    return run.measured("classifier", about, lambda: {"accuracy": measure()})["accuracy"]


def guided(
    run: Any, model: str, classifier: str, guidance: float, scale: str, seed: int, count: int, judge: str,
    reference: int, steps: int,
) -> dict[str, Any]:  # fmt: skip
    """Returns the scores of samples of an arm, guided by a classifier with a scale; 0 is not guided."""
    about = {
        "model": model, "classifier": classifier if guidance else "", "guidance": guidance, "scale": scale,
        "seed": seed, "count": count, "judge": judge, "reference": reference, "steps": steps,
    }  # fmt: skip

    def measure() -> dict[str, Any]:
        made = arm_pipeline(run, model, scale, seed)
        denoiser: Denoiser = made.denoiser
        y = torch.arange(count) % 10
        cond = {"y": y} if guidance or "y" in denoiser.conditions else None
        if guidance:
            classify = classifier_of(str(run.trained(classifier, scale, seed)), run.device)
            denoiser = ClassifierGuidance(denoiser, classify, guidance)
        side, path = SCALES[scale].size, grid(made.denoiser.chain, str(steps))
        x = draw(denoiser, path, build_solver("ddpm"), (1, side, side), count, EVALUATION_SEED, cond, None, made.device)
        return scores(to_uint8(x).numpy(), y, judge, reference)

    return run.measured("guided", about, measure)


def conditioning(
    run: Any, seed: int, scale: str, scales: list[float], judge: str, count: int, reference: int, steps: int
) -> dict[str, Any]:
    """Compares conditional and unconditional models with and without guidance.

    Args:
        run: The run.
        seed: Of the trainings.
        scale: Size and length of the trainings.
        scales: Scales of guidance of the conditional and of the unconditional model.
        judge: Name of the extractor; it guides nothing.
        count: Samples of each.
        reference: Test images.
        steps: Steps of ancestral sampling.
    """
    rest = (scale, seed, count, judge, reference, steps)
    plain = {name: guided(run, name, "", 0.0, *rest) for name in ("conditional", "base")}
    steered = {
        name: guided(run, name, "noisy-classifier", s, *rest)
        for name, s in zip(("conditional", "base"), scales, strict=True)
    }
    return {
        "effects": {
            "conditional beats unconditional": math.log(plain["base"]["fd"] / plain["conditional"]["fd"]),
            "guided unconditional: accuracy": steered["base"]["accuracy"] - 0.1,
            "guided conditional: accuracy": steered["conditional"]["accuracy"] - plain["conditional"]["accuracy"],
            "guided conditional: recall": plain["conditional"]["recall"] - steered["conditional"]["recall"],
            "guided conditional: distance": math.log(plain["conditional"]["fd"] / steered["conditional"]["fd"]),
            "guided conditional beats guided unconditional": math.log(
                steered["base"]["fd"] / steered["conditional"]["fd"]
            ),
        },
        "numbers": {
            measure: {
                **{name: found[measure] for name, found in plain.items()},
                **{f"{name}, guided": found[measure] for name, found in steered.items()},
            }
            for measure in ("fd", "precision", "recall", "accuracy")
        },
    }


def noisy_or_clean(
    run: Any, seed: int, scale: str, guidance: float, judge: str, count: int, reference: int, steps: int
) -> dict[str, Any]:
    """Compares guidance by classifiers of noisy and of clean images, on the unconditional base arm."""
    rest = (scale, seed, count, judge, reference, steps)
    noisy, clean = (guided(run, "base", f"{kind}-classifier", guidance, *rest) for kind in ("noisy", "clean"))
    accuracy = {kind: classifier_accuracy(run, f"{kind}-classifier", scale, seed, 500) for kind in ("noisy", "clean")}
    return {
        "effects": {
            "accuracy": noisy["accuracy"] - clean["accuracy"],
            "distance": math.log(clean["fd"] / noisy["fd"]),
        },
        "numbers": {
            "accuracy of the samples: noisy, clean": [noisy["accuracy"], clean["accuracy"]],
            "fd: noisy, clean": [noisy["fd"], clean["fd"]],
            "classifier's accuracy by fifth of the chain": accuracy,
        },
    }


def classifier_crops(run: Any, seed: int, scale: str, count: int) -> dict[str, Any]:
    """Compares classifiers of noisy images that were trained with and without random crops, on test images."""
    with_crops, without = (
        classifier_accuracy(run, arm, scale, seed, count) for arm in ("cropped-classifier", "noisy-classifier")
    )
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {
        "effects": {"accuracy": mean(with_crops) - mean(without)},
        "numbers": {"accuracy by fifth of the chain": {"crops": with_crops, "no crops": without}},
    }


def stacked(
    run: Any, seed: int, scale: str, guidance: float, judge: str, count: int, reference: int, steps: int
) -> dict[str, Any]:
    """Compares a stack of a small model and an upsampler, guided below only, with the single-stage model.

    The classifier sees the small images enlarged to its own size, and its gradient goes back through the enlargement.
    """
    from torch.nn.functional import interpolate

    size = SCALES[scale].size

    def sample_stack(strength: float) -> Any:
        low, up = (arm_pipeline(run, arm, scale, seed) for arm in ("low", "upsampler"))
        y, half = torch.arange(count) % 10, size // 2
        denoiser: Denoiser = low.denoiser
        if strength:
            classify = classifier_of(str(run.trained("noisy-classifier", scale, seed)), run.device)

            def gradient(x: Any, level: Any, labels: Any) -> Any:
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_()
                    large = interpolate(leaf, scale_factor=2, mode="nearest")
                    return torch.autograd.grad(classify.log_prob(large, level, labels).sum(), leaf)[0]

            denoiser = ClassifierGuidance(denoiser, gradient, strength)
        path = grid(low.denoiser.chain, str(steps))
        solver = build_solver("ddpm")
        cond = {"y": y} if strength else None
        small = draw(denoiser, path, solver, (1, half, half), count, EVALUATION_SEED, cond, None, low.device)
        enlarged = {"cond_image": interpolate(small.clamp(-1, 1), scale_factor=2, mode="nearest")}
        x = draw(
            up.denoiser, grid(up.denoiser.chain, str(steps)), solver, (1, size, size), count, EVALUATION_SEED,
            enlarged, None, up.device, "upsampler",
        )  # fmt: skip
        return scores(to_uint8(x).numpy(), y, judge, reference)

    rest = (scale, seed, count, judge, reference, steps)
    single = guided(run, "base", "", 0.0, *rest)
    about = {"scale": scale, "seed": seed, "count": count, "judge": judge, "reference": reference, "steps": steps}
    plain, steered = (
        run.measured("stack", {**about, "guidance": s}, lambda s=s: sample_stack(s)) for s in (0.0, guidance)
    )
    return {
        "effects": {
            "stack beats one stage": math.log(single["fd"] / plain["fd"]),
            "guidance below: accuracy": steered["accuracy"] - plain["accuracy"],
            "guidance below: recall": plain["recall"] - steered["recall"],
        },
        "numbers": {
            name: {"one stage": single[name], "stack": plain[name], "stack, guided below": steered[name]}
            for name in ("fd", "precision", "recall", "accuracy")
        },
    }
