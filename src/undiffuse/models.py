"""Models as files: a network with its process, class names and provenance, loaded without any flags."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from undiffuse import checkpoints
from undiffuse.adapters import foreign, hub, imagenet_classes, importing, published
from undiffuse.adapters.published_entry import Sampling
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import LevelClassifier
from undiffuse.nets import DDPMUNet, NoisyClassifier, UNet, config_from_dict
from undiffuse.nets.forward import inference_forward
from undiffuse.nets.skeleton import skeleton

# How images are prepared for a model: what other images need to be treated like those it was trained on.
_PREPARATION = ("size", "channels", "fit", "pad_value", "background")

SHIPPED = ("fashion-mnist-32", "fashion-mnist-32-classifier", "fashion-mnist-32-judge")


@dataclass(frozen=True)
class _Model:
    net: Any
    process: ProcessConfig
    labels: tuple[str, ...] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "net"

    @cached_property
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

    @property
    def published(self) -> published.Published | None:
        """The published model it is, or was taken for when it was loaded; None for any other."""
        name = (self.manifest.get("source") or {}).get("published")
        return published.ENTRIES.get(name) if isinstance(name, str) else None

    @property
    def advice(self) -> Sampling | None:
        """How its authors sample it, where that is known: of a published model, or one that came with its scheduler."""
        told = self.manifest.get("sampling")
        if isinstance(told, Mapping):
            known = {item.name for item in fields(Sampling)}
            return Sampling(**{name: value for name, value in told.items() if name in known})
        return self.published.sampling if self.published is not None else None

    @property
    def differences(self) -> tuple[str, ...]:
        """What is done otherwise than by the scheduler that the model came with, a sentence each."""
        facts = (self.manifest.get("source") or {}).get("facts")
        named = facts.items() if isinstance(facts, Mapping) else ()
        return tuple(str(what) for who, what in named if str(who).startswith("otherwise than"))

    @property
    def null_class(self) -> int | None:
        """The class that means "no class", of a model for classifier-free guidance; None for any other."""
        return self.net.config.num_classes if getattr(self.net.config, "null_class", False) else None

    def label_name(self, index: int) -> str:
        """Name of a class, its number if it has none."""
        return self.labels[index] if self.labels is not None else str(index)

    def class_index(self, name: str | int) -> int:
        """Index of a class given by name (case does not matter), an unambiguous part of a name, or number.

        Where the classes are ImageNet's, synonyms and synset ids are understood too: `imagenet_classes.find`.
        """
        classes = self.num_classes
        if classes is None:
            raise ValueError(f"the model has no classes, so {name!r} cannot be chosen")
        text = str(name).strip()
        if imagenet_classes.are_these(self.labels):
            return imagenet_classes.index_of(text)
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
        options = _some([labels[i] for i in found] or labels, 20)
        problem = (
            f"could mean {options}" if found else f"is none of the model's classes: {options or 'they have no names'}"
        )
        raise ValueError(f"class {name!r} {problem}; give a full name or a number from 0 to {classes - 1}")


@dataclass(frozen=True)
class DiffusionModel(_Model):
    """A diffusion model: `net` is a `UNet` or a `DDPMUNet`, `weights` says which of a checkpoint's weights they are."""

    net: UNet | DDPMUNet

    def denoiser(
        self,
        clip: str = "static",
        *,
        precision: str | None = None,
        device: torch.device | str = "cpu",
        gradient: bool = False,
    ) -> ChainDenoiser:
        """The model as a denoiser; `clip` as in `ChainDenoiser`.

        With a `precision` ("fp32", "bf16", "fp16") the network is first made ready in place, on `device`, to be used
        only: faster, but it can be neither trained nor saved any more, and has no gradients, unless `gradient` keeps
        those with respect to the image (for guidance through the network).
        """
        if precision is None:
            return ChainDenoiser(self.net, self.process, clip)
        _ = self.digest  # while the weights are there as they are in the file
        network = inference_forward(self.net, precision, torch.device(device), gradient=gradient)
        return ChainDenoiser(network, self.process, clip)


@dataclass(frozen=True)
class ClassifierModel(_Model):
    """A classifier of noisy images: `net` is a `NoisyClassifier`."""

    net: NoisyClassifier

    @property
    def clean_only(self) -> bool:
        """Whether it was trained on images without noise alone, and so knows nothing of noisy ones."""
        objective = self.manifest.get("objective") or {}
        return objective.get("noise") is False or objective.get("clean_fraction") == 1.0

    def level_classifier(self, *, precision: str | None = None, device: torch.device | str = "cpu") -> LevelClassifier:
        """The classifier asked at noise levels, its weights frozen; with a `precision` made ready as a denoiser is,
        except that it keeps its gradient with respect to the image."""
        if precision is None:
            return LevelClassifier(self.net, self.process)
        _ = self.digest
        network = inference_forward(self.net, precision, torch.device(device), gradient=True)
        return LevelClassifier(network, self.process)


def resolve(reference: str | Path, weights: str | None = None) -> Path:
    """The checkpoint a reference means, downloaded or converted where that is needed.

    A reference is a file, a run folder (its newest checkpoint), the name of a shipped or a published model
    (`undiffuse models`), a file or diffusers folder of others' weights, hf:OWNER/NAME on the Hub, or FILE@LIKE, where
    LIKE says what the weights do not tell: a published model, or the flags it was trained with. `weights` of several
    that a file of others holds.
    """
    path = Path(reference)
    if os.path.isfile(path):  # os.path, because flags may be longer than any file's name, which pathlib calls an error
        return path if foreign.is_ours(path) else importing.convert(path, which=weights)
    if os.path.isdir(path):
        newest = checkpoints.latest(path)
        if newest is not None:
            return newest
        only = None if importing.is_diffusers(path) else importing.only_weights(path)
        return resolve(only, weights) if only is not None else importing.convert(path, which=weights)
    if str(reference) in SHIPPED:
        return Path(str(resources.files("undiffuse") / "assets" / f"{reference}.safetensors"))
    if str(reference) in published.ENTRIES:
        return importing.published_checkpoint(str(reference))
    if hub.is_reference(str(reference)):
        return _of_hub(str(reference), weights)
    file, like = split_reference(reference)
    if like is not None:
        if os.path.isfile(file) and foreign.is_ours(Path(file)):
            raise ValueError(f"{file} says itself what it is: leave {like!r} out")
        return importing.convert(file, like, weights)
    shown = str(reference) if len(str(reference)) < 200 else f"{str(reference)[:197]}..."
    raise ValueError(
        f"there is no file or folder {shown}, no shipped model of that name ({', '.join(SHIPPED)}) and no "
        f"published one{published.near(str(reference))}"
    )


def _of_hub(reference: str, weights: str | None) -> Path:
    """A model on the Hub: hf:OWNER/NAME, with @REVISION or @LIKE behind it, where LIKE has a "=" or a space."""
    name, _, rest = reference.partition("@")
    revision, _, like = rest.partition("@")
    if "=" in revision or " " in revision:
        revision, like = "", rest
    folder = hub.snapshot(f"{name}@{revision}" if revision else name)
    return importing.convert(folder, like or None, weights)


def split_reference(reference: str | Path) -> tuple[str, str | None]:
    """ "FILE@LIKE" as (FILE, LIKE); (reference, None) where it is no such pair or is itself the name of a file."""
    text = str(reference)
    file, at, like = text.rpartition("@")
    return (file, like) if at and not os.path.exists(text) and os.path.exists(file) else (text, None)


def paired_classifier(reference: str | Path) -> str | None:
    """The classifier made for a model, by the model's reference: a name, or a file beside it; None without one."""
    if str(reference) == SHIPPED[0]:
        return SHIPPED[1]
    file, like = split_reference(reference)
    entry = published.ENTRIES.get(like or file) or published.of_file(file)
    if entry is None or entry.sampling is None or entry.sampling.classifier is None:
        return None
    beside = Path(file).parent / published.get(entry.sampling.classifier).file
    return str(beside) if os.path.isfile(file) and os.path.isfile(beside) else entry.sampling.classifier


def load_model(
    reference: str | Path, *, weights: str | None = None, device: torch.device | str = "cpu"
) -> DiffusionModel | ClassifierModel:
    """Load a model from a file, a run folder or by its name; `reference` as in `resolve`.

    `weights`: "net" (as trained), the name of an average ("0.999"), or None for the slowest average there is.
    The network is in evaluation mode, its parameters frozen and in channels-last layout on `device`. CheckpointError
    (a ValueError) says what is wrong with a damaged or foreign file.
    """
    path = resolve(reference, weights)
    state, manifest = checkpoints.load_weights(path, weights)
    which = weights or checkpoints.default_weights(manifest)
    kind = manifest.get("kind")
    if kind not in ("diffusion", "classifier"):
        raise checkpoints.CheckpointError(f"{path} holds a {kind!r}; expected a diffusion model or a classifier")
    try:
        config = config_from_dict(manifest["net"], kind)
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


def _build(config: Any, state: Mapping[str, torch.Tensor]) -> Any:
    """The network of `config` with the weights `state`, in float32; ValueError unless they fit exactly."""
    net: Any = skeleton(config.build)
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
    kept = ("objective", "train", "progress", "seed", "recipe", "init", "source", "posthoc", "sampling")
    manifest = {name: model.manifest[name] for name in kept if name in model.manifest}
    if "init" in manifest:  # the model it began with by its name, not by where it lay
        manifest["init"] = {key: value for key, value in manifest["init"].items() if key != "from"}
    # Of the data what identifies it and how it was prepared, not where it lay on somebody's disk.
    data = model.manifest.get("data") or {}
    manifest["data"] = {name: data[name] for name in ("fingerprint", "count", "size", "channels") if name in data}
    config = data.get("config") or {}
    manifest["data"]["config"] = {name: config[name] for name in _PREPARATION if name in config}
    kind = "diffusion" if isinstance(model, DiffusionModel) else "classifier"
    labels = list(model.labels) if model.labels is not None else None
    about = {"kind": kind, "net": asdict(model.net.config), "process": asdict(model.process), "labels": labels}
    checkpoints.write(path, state, {**manifest, **about, "ema": [], "weights": model.weights, "version": _version()})


def check_pair(model: DiffusionModel, classifier: ClassifierModel, at: str = "x_t") -> None:
    """Check that a classifier can guide a model.

    Args:
        model: The model.
        classifier: The classifier.
        at: Where it is asked: at the noisy image ("x_t", "mean") or at the denoised one ("x0").

    Raises:
        ValueError: It has another image shape or other classes, or was trained on clean images and is asked of noisy
            ones.
    """
    problems = []
    if at != "x0" and classifier.clean_only:
        problems.append(
            "it was trained on clean images alone, and a guide is asked of noisy ones: guide at the denoised image "
            "(guidance_at 'x0'), or train one on noisy images"
        )
    if model.image_shape[0] != classifier.image_shape[0]:
        ours = model.image_shape[0]
        channels = f"{ours} channel{'s' if ours != 1 else ''}"
        problems.append(f"images of {channels} against {classifier.image_shape[0]}")
    elif model.image_shape != classifier.image_shape and classifier.net.config.pool == "attention":
        shapes = ["x".join(map(str, shape[1:])) for shape in (model.image_shape, classifier.image_shape)]
        problems.append(f"images of {shapes[0]} (height x width) against {shapes[1]}, and its attention pool is fixed")
    if model.labels is not None and classifier.labels is not None and model.labels != classifier.labels:
        problems.append(f"classes {_some(model.labels)} against {_some(classifier.labels)}")
    elif model.num_classes is not None and model.num_classes != classifier.num_classes:
        problems.append(f"{model.num_classes} classes against {classifier.num_classes}")
    if problems:
        raise ValueError(f"this classifier does not fit the model: {'; '.join(problems)}")


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _version() -> str:
    from undiffuse import __version__

    return __version__
