"""Loads the models that guide a sampler, checks that they fit, and wraps the denoiser with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from undiffuse import checkpoints
from undiffuse.conditions import NumberCondition, target_key
from undiffuse.config import GuidanceConfig
from undiffuse.config.kinds import interval
from undiffuse.denoiser import ChainDenoiser, Denoiser
from undiffuse.grids import NoisePath as Levels
from undiffuse.guidance import (
    GUIDANCE_SCHEDULES,
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Interval,
    LevelClassifier,
    LevelRegressor,
    Schedule,
    product,
)
from undiffuse.models import ClassifierModel, DiffusionModel, check_pair, load_classifier, load_diffusion
from undiffuse.nets.memory import Footprint
from undiffuse.nets.runner import prepare_for_inference
from undiffuse.runtime_specs import DEFAULT
from undiffuse.runtimes import load_runner
from undiffuse.util.errors import ConfigError

__all__ = ["Guides", "check_identity", "guide", "guidance_schedule", "reference"]


@dataclass
class Guides:
    """A denoiser together with what guides it.

    Attributes:
        denoiser: The guided denoiser.
        classifier: The first classifier; None without one.
        others: All other models that guide.
        footprints: Memory of the guiding networks.
        record: What a picture's record says of the guiding models (digests).
        notes: Where their files are.
        targets: The numbers that each regressor guides towards, in their order.
    """

    denoiser: Denoiser
    classifier: ClassifierModel | None = None
    others: list[ClassifierModel | DiffusionModel] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    targets: list[NumberCondition] = field(default_factory=list)


def guide(
    config: GuidanceConfig,
    model: DiffusionModel,
    denoiser: Denoiser,
    path: Levels,
    *,
    clip: str,
    precision: str,
    device: torch.device,
    gradient: bool,
    runtime: str = DEFAULT,
) -> Guides:
    """Wraps a denoiser: classifier-free guidance innermost, then autoguidance, then the classifiers in their order.

    Args:
        config: A resolved config, see `GuidanceConfig.resolved`.
        model: The model that is guided.
        denoiser: Its denoiser.
        path: The noise levels that are going to be visited.
        clip: Clipping of the guiding model's denoised image.
        precision: Precision of the guiding networks.
        device: Where they run.
        gradient: Whether the result is differentiated with respect to the image.
        runtime: Runtime of a guiding model; classifiers, whose gradients are needed, run in PyTorch.

    Raises:
        ConfigError: For a setting that the model does not allow.
        ValueError: For a guiding model that does not fit.
    """
    out = Guides(denoiser)
    shared: dict[str, Any] = {"schedule": guidance_schedule(config, path), "every": config.every}
    if config.cfg not in (None, 1):
        if not model.null_conditions:
            raise ConfigError(
                "cfg",
                f"{config.cfg:g} requires a model trained with label dropout, which this one was not: train one with "
                "`undiffuse train DATA --label-dropout 0.1`, or guide by an unconditional model (`autoguide`)",
            )
        # Batches of two sizes in turns: a CPU's network would lay out its weights anew at every call.
        in_turns = config.every > 1 and device.type == "cpu"
        together = not (config.cfg_two_passes or in_turns)
        null, rescale = model.null_conditions, config.cfg_rescale
        out.denoiser = ClassifierFree(out.denoiser, config.cfg, null, rescale=rescale, together=together, **shared)
    if config.autoguide is not None:
        _autoguide(out, config, model, clip, precision, runtime, device, gradient, shared)
    _classifiers(out, config, model, precision, device, shared)
    return out


def _autoguide(
    out: Guides,
    config: GuidanceConfig,
    model: DiffusionModel,
    clip: str,
    precision: str,
    runtime: str,
    device: torch.device,
    gradient: bool,
    shared: Mapping[str, Any],
) -> None:
    assert config.autoguide is not None
    weak = load_diffusion(config.autoguide, weights=config.autoguide_weights)
    _check_weak(model, weak)
    _ = weak.digest  # of the weights as they are in the file, before they are made ready
    network = load_runner(weak, runtime, precision, device, gradient=gradient, consume=True)
    guiding = ChainDenoiser(network, weak.process, clip)
    out.footprints.append(network.footprint)
    out.denoiser = Autoguidance(out.denoiser, guiding, config.autoguide_scale, rescale=config.cfg_rescale, **shared)
    out.others.append(weak)
    out.record |= {"autoguide": weak.digest, "autoguide_weights": weak.weights}
    out.notes["autoguide_file"] = reference(config.autoguide)


def _classifiers(
    out: Guides,
    config: GuidanceConfig,
    model: DiffusionModel,
    precision: str,
    device: torch.device,
    shared: Mapping[str, Any],
) -> None:
    loaded: list[ClassifierModel] = []
    for file, scale in config.judges:
        classifier = load_classifier(file)
        check_pair(model, classifier, config.at)
        _check_noise(model, classifier)
        first = next((one for one in loaded if one.numbers is None), classifier)
        if classifier.numbers is None and classifier.num_classes != first.num_classes:
            raise ValueError(
                f"classifiers that guide together must have the same classes; they have {first.num_classes} and "
                f"{classifier.num_classes}"
            )
        _ = classifier.digest  # of the weights as they are in the file, before they are made ready
        network = prepare_for_inference(classifier.net, precision, device, gradient=True, consume=True)
        out.footprints.append(network.footprint)
        kind, condition = LevelClassifier, "y"
        if classifier.numbers is not None:
            kind, condition = LevelRegressor, target_key(len(out.targets))
            out.targets.append(classifier.numbers)
        judge = kind(network, classifier.process, config.temperature)
        out.denoiser = ClassifierGuidance(
            out.denoiser, judge, scale, config.at, condition=condition, normalize=config.normalize, **shared
        )
        loaded.append(classifier)
    if loaded:
        out.classifier = loaded[0]
        out.others += loaded[1:]
        out.notes["classifier_file"] = reference(config.judges[0][0])
    if loaded[1:]:
        pairs = zip(loaded[1:], config.judges[1:], strict=True)
        out.record["more_classifiers"] = [[found.digest, scale] for found, (_, scale) in pairs]
        out.notes["more_classifier_files"] = [reference(file) for file, _ in config.judges[1:]]


def guidance_schedule(config: GuidanceConfig, path: Levels) -> Schedule | None:
    """The share of the guidance that acts at each level of a path; None if all of it acts everywhere.

    Raises:
        ConfigError: If no step of the path begins within the interval.
    """
    parts: list[Schedule] = []
    if config.schedule != "constant":
        parts.append(GUIDANCE_SCHEDULES[config.schedule])
    if config.interval is not None:
        unit, low, high = interval(config.interval)
        levels = [path.level(k) for k in reversed(range(path.steps))]
        if unit == "steps":
            parts.append(Interval.of_steps(levels, low, high))
        else:
            inside = Interval.of_sigma(low, high) if unit == "sigma" else Interval(low, high)
            if not any(bool(inside(level)) for level in levels):
                raise ConfigError(
                    "guidance_interval",
                    f"{config.interval} contains none of the {path.steps} steps; they begin at log-SNR "
                    f"{float(levels[0].logsnr):.3g} to {float(levels[-1].logsnr):.3g}",
                )
            parts.append(inside)
    return product(*parts) if parts else None


def check_identity(ours: Mapping[str, Any], record: Mapping[str, Any], where: str) -> None:
    """Checks that the models that guide, after the first classifier, are those of a record.

    Raises:
        ValueError: If they are others; the message calls the record `where`.
    """
    digests = [
        ([d for d, _ in r.get("more_classifiers") or []], r.get("autoguide"), r.get("autoguide_weights"))
        for r in (ours, record)
    ]
    if digests[0][0] != digests[1][0]:
        raise ValueError(f"the classifiers after the first are not those of {where}: give all classifiers, in order")
    if digests[0][1:] != digests[1][1:]:
        raise ValueError(
            f"the autoguidance model is not the one of {where}: give the file it was made with as autoguide"
        )


def reference(given: str) -> str:
    """Returns the path or name by which a record knows a model; for a run folder its newest checkpoint."""
    path = Path(given)
    return ((checkpoints.latest(path) if os.path.isdir(path) else None) or path).as_posix()


def _check_noise(model: DiffusionModel, classifier: ClassifierModel) -> None:
    """A classifier sees the model's noise levels, so it must have been trained on the same kind of process."""
    ours, theirs = model.process.chain().alphas_cumprod, classifier.process.chain().alphas_cumprod
    if theirs[-1] > 4 * ours[-1] + 1e-4:
        raise ValueError(
            f"this classifier does not fit the model: its noisiest images keep alpha_bar = {theirs[-1]:.2g}, the "
            f"model's {ours[-1]:.2g}. Train one by `undiffuse train-classifier DATA --for MODEL`"
        )


def _check_weak(model: DiffusionModel, weak: DiffusionModel) -> None:
    """A model can guide another if it makes the same images of the same classes, or of none."""
    problem = None
    if weak.image_shape != model.image_shape:
        shapes = ["x".join(map(str, m.image_shape)) for m in (weak, model)]
        problem = f"it makes images of {shapes[0]} (channels x height x width), the model {shapes[1]}"
    elif weak.num_classes is not None and weak.num_classes != model.num_classes:
        problem = f"it has {weak.num_classes} classes, the model {model.num_classes or 'none'}"
    elif weak.num_classes is not None and None not in (weak.labels, model.labels) and weak.labels != model.labels:
        problem = "its classes have other names than the model's"
    elif weak.conditions and weak.conditions != model.conditions:
        problem = "its conditions are not the model's"
    elif weak.spec.super_resolution != model.spec.super_resolution:
        problem = "one of the two enlarges images, the other does not"
    if problem:
        raise ConfigError("autoguide", f"needs a weaker version of the model: {problem}")
