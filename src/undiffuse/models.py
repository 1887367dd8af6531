"""Models as files: a network with its process, class names and provenance, loaded without any flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from undiffuse import checkpoints
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import LevelClassifier
from undiffuse.nets import ClassifierConfig, NoisyClassifier, UNet, UNetConfig

# How images are prepared for a model: what other images need to be treated like those it was trained on.
_PREPARATION = ("size", "channels", "fit", "pad_value", "background")

SHIPPED = ("fashion-mnist-32", "fashion-mnist-32-classifier")


@dataclass(frozen=True)
class _Model:
    net: Any
    process: ProcessConfig
    labels: tuple[str, ...] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "net"

    @property
    def digest(self) -> str:
        """sha256 of the weights: the model's identity, whatever file they came from."""
        return checkpoints.weights_hash(self.net.state_dict())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) it was trained on."""
        return (self.net.config.in_channels, *self.net.config.size)

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for an unconditional model."""
        return self.net.config.num_classes

    def label_name(self, index: int) -> str:
        """Name of a class, its number if it has none."""
        return self.labels[index] if self.labels is not None else str(index)

    def class_index(self, name: str | int) -> int:
        """Index of a class given by name (case does not matter), an unambiguous part of a name, or number."""
        classes = self.num_classes
        if classes is None:
            raise ValueError(f"the model has no classes, so {name!r} cannot be chosen")
        text = str(name).strip()
        if text.lstrip("-").isdigit() and (self.labels is None or text not in self.labels):
            if not 0 <= int(text) < classes:
                raise ValueError(f"class {text} does not exist; the model has classes 0 to {classes - 1}")
            return int(text)
        labels = self.labels or ()
        if not text:
            raise ValueError("the name of a class is missing")
        wanted = text.casefold()
        exact = [i for i, label in enumerate(labels) if label.casefold() == wanted]
        found = exact or [i for i, label in enumerate(labels) if wanted in label.casefold()]
        if len(found) == 1:
            return found[0]
        options = ", ".join(labels[i] for i in found) if found else ", ".join(labels[:20])
        problem = (
            f"could mean {options}" if found else f"is none of the model's classes: {options or 'they have no names'}"
        )
        raise ValueError(f"class {name!r} {problem}; give a full name or a number from 0 to {classes - 1}")


@dataclass(frozen=True)
class DiffusionModel(_Model):
    """A diffusion model: `net` is a `UNet`, `weights` says which of a checkpoint's weights they are."""

    net: UNet

    def denoiser(self, clip: str = "static") -> ChainDenoiser:
        """The model as a denoiser; `clip` as in `ChainDenoiser`."""
        return ChainDenoiser(self.net, self.process, clip)


@dataclass(frozen=True)
class ClassifierModel(_Model):
    """A classifier of noisy images: `net` is a `NoisyClassifier`."""

    net: NoisyClassifier

    def level_classifier(self) -> LevelClassifier:
        """The classifier asked at noise levels, its weights frozen."""
        return LevelClassifier(self.net, self.process)


def resolve(reference: str | Path) -> Path:
    """The file a reference means: a file, a run folder (its newest checkpoint), or the name of a shipped model."""
    path = Path(reference)
    if path.is_file():
        return path
    if path.is_dir():
        newest = checkpoints.latest(path)
        if newest is None:
            raise ValueError(f"the folder {path} holds no checkpoint ({checkpoints.FOLDER}/*.safetensors)")
        return newest
    if str(reference) in SHIPPED:
        return Path(str(resources.files("undiffuse") / "assets" / f"{reference}.safetensors"))
    raise ValueError(
        f"there is no file or folder {reference}, and no shipped model of that name ({', '.join(SHIPPED)})"
    )


def load_model(
    reference: str | Path, *, weights: str | None = None, device: torch.device | str = "cpu"
) -> DiffusionModel | ClassifierModel:
    """Load a model from a file, a run folder or by its shipped name.

    `weights`: "net" (as trained), the name of an average ("0.999"), or None for the slowest average there is.
    The network is in evaluation mode, its parameters frozen and in channels-last layout on `device`. CheckpointError
    (a ValueError) says what is wrong with a damaged or foreign file.
    """
    path = resolve(reference)
    state, manifest = checkpoints.load_weights(path, weights)
    which = weights or checkpoints.default_weights(manifest)
    kind = manifest.get("kind")
    if kind not in ("diffusion", "classifier"):
        raise checkpoints.CheckpointError(f"{path} holds a {kind!r}; expected a diffusion model or a classifier")
    try:
        config: UNetConfig | ClassifierConfig
        config = UNetConfig(**manifest["net"]) if kind == "diffusion" else ClassifierConfig(**manifest["net"])
        process = ProcessConfig(**manifest["process"])
        labels = tuple(manifest["labels"]) if manifest.get("labels") else None
        net = _build(config, state)
        process.chain()
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise checkpoints.CheckpointError(f"{path} does not describe a model that can be built: {reason}") from error
    if labels is not None and net.config.num_classes not in (None, len(labels)):
        raise checkpoints.CheckpointError(f"{path} names {len(labels)} classes for {net.config.num_classes}")
    net = net.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    if isinstance(net, NoisyClassifier):
        return ClassifierModel(net, process, labels, manifest, which)
    return DiffusionModel(net, process, labels, manifest, which)


def _build(config: UNetConfig | ClassifierConfig, state: Mapping[str, torch.Tensor]) -> Any:
    """The network of `config` with the weights `state`, in float32; ValueError unless they fit exactly."""
    with torch.device("meta"):
        net = config.build()
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        first = f"{odd[0]} is {found.get(odd[0], 'missing')} there, {expected.get(odd[0], 'unknown')} in the network"
        raise ValueError(f"{len(odd)} of its tensors are not those of its network; {first}")
    if not all(value.is_floating_point() for value in state.values()):
        raise ValueError("its weights are not floating-point numbers")
    net.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return net


def load_diffusion(
    reference: str | Path, *, weights: str | None = None, device: torch.device | str = "cpu"
) -> DiffusionModel:
    """`load_model` for a diffusion model; ValueError if the file holds a classifier."""
    model = load_model(reference, weights=weights, device=device)
    if not isinstance(model, DiffusionModel):
        raise ValueError(f"{reference} is a classifier; a diffusion model is needed here")
    return model


def load_classifier(
    reference: str | Path, *, weights: str | None = None, device: torch.device | str = "cpu"
) -> ClassifierModel:
    """`load_model` for a classifier; ValueError if the file holds a diffusion model."""
    model = load_model(reference, weights=weights, device=device)
    if not isinstance(model, ClassifierModel):
        raise ValueError(f"{reference} is a diffusion model; a noisy-image classifier is needed here")
    return model


def save_model(path: str | Path, model: DiffusionModel | ClassifierModel) -> None:
    """Write the weights alone, with everything needed to use them: the slim form of a checkpoint, to share."""
    state = {f"net.{name}": tensor.contiguous() for name, tensor in model.net.state_dict().items()}
    kept = ("objective", "train", "progress", "seed", "recipe")
    manifest = {name: model.manifest[name] for name in kept if name in model.manifest}
    # Of the data what identifies it and how it was prepared, not where it lay on somebody's disk.
    data = model.manifest.get("data") or {}
    manifest["data"] = {name: data[name] for name in ("fingerprint", "count", "size", "channels") if name in data}
    config = data.get("config") or {}
    manifest["data"]["config"] = {name: config[name] for name in _PREPARATION if name in config}
    kind = "diffusion" if isinstance(model, DiffusionModel) else "classifier"
    labels = list(model.labels) if model.labels is not None else None
    about = {"kind": kind, "net": asdict(model.net.config), "process": asdict(model.process), "labels": labels}
    checkpoints.write(path, state, {**manifest, **about, "ema": [], "weights": model.weights, "version": _version()})


def check_pair(model: DiffusionModel, classifier: ClassifierModel) -> None:
    """ValueError if the classifier cannot guide the model: other image shape, other noise levels, or other classes."""
    problems = []
    if model.image_shape[0] != classifier.image_shape[0]:
        ours = model.image_shape[0]
        channels = f"{ours} channel{'s' if ours != 1 else ''}"
        problems.append(f"images of {channels} against {classifier.image_shape[0]}")
    elif model.image_shape != classifier.image_shape and classifier.net.config.pool == "attention":
        shapes = ["x".join(map(str, shape[1:])) for shape in (model.image_shape, classifier.image_shape)]
        problems.append(f"images of {shapes[0]} (height x width) against {shapes[1]}, and its attention pool is fixed")
    if model.labels is not None and classifier.labels is not None and model.labels != classifier.labels:
        problems.append(f"classes {', '.join(model.labels)} against {', '.join(classifier.labels)}")
    elif model.num_classes is not None and model.num_classes != classifier.num_classes:
        problems.append(f"{model.num_classes} classes against {classifier.num_classes}")
    if problems:
        raise ValueError(f"this classifier does not fit the model: {'; '.join(problems)}")


def _version() -> str:
    from undiffuse import __version__

    return __version__
