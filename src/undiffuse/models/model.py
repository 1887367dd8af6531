"""A model in memory: a network with its process, class names and provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from undiffuse import checkpoints
from undiffuse.adapters import imagenet_classes, published
from undiffuse.config import SamplerConfig
from undiffuse.config.advice import from_manifest
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import LevelClassifier, LevelRegressor
from undiffuse.nets.protocol import NetworkSpec, describe, memory_format
from undiffuse.nets.runner import is_consumed, prepare_for_inference, weights_version
from undiffuse.util.notebook import card

if TYPE_CHECKING:
    from undiffuse.conditions import ModelConditions, NumberCondition


@dataclass(frozen=True, repr=False)
class _Model:
    """A network with what is needed to use it.

    Attributes:
        net: The network, see `undiffuse.nets.protocol.Network`.
        process: The diffusion process it was trained on.
        labels: Names of its classes, in the order of their indices; None if they have none.
        manifest: What its file says, see `checkpoints`.
        weights: Which of the file's weights they are: "net" (as trained), or the name of an average.
        net_spec: What the network's images and classes are, for a network that does not say it.
    """

    net: Any
    process: ProcessConfig
    labels: tuple[str, ...] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "net"
    net_spec: NetworkSpec | None = None

    @property
    def spec(self) -> NetworkSpec:
        """What the network's images and classes are. Raises ValueError if nothing says it."""
        return self.net_spec or describe(self.net)

    @property
    def digest(self) -> str:
        """sha256 of the weights: the model's identity, whatever file they came from."""
        kept = self.__dict__.get("_digest")
        if kept is not None and is_consumed(self.net):
            return kept[1]
        self._check_weights("its digest cannot be computed")
        version = weights_version(self.net)
        if kept is None or kept[0] != version:
            kept = (version, checkpoints.weights_hash(self.net.state_dict()))
            self.__dict__["_digest"] = kept
        return kept[1]

    def _check_weights(self, problem: str) -> None:
        if is_consumed(self.net):
            raise ValueError(
                f"the model's weights were given up when it was prepared with consume=True, so {problem}: load it again"
            )

    def _runner(self, precision: str | None, device: torch.device | str, **how: bool) -> Any:
        """Return the network itself if no precision is given, else a runner of a prepared copy."""
        if precision is not None:
            _ = self.digest  # the identity outlives the weights
            return prepare_for_inference(self.net, precision, device, **how)
        if any(how.values()):
            raise ValueError("gradient, compiled and consume need a precision: give 'fp32', 'bf16' or 'fp16'")
        if memory_format(self.net) == torch.channels_last:
            self.net.to(memory_format=torch.channels_last)
        return self.net

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            shape = "x".join(map(str, self.image_shape))
        except ValueError:  # nothing says what its images are
            shape = "images of any shape"
        count = sum(parameter.numel() for parameter in self.net.parameters())
        classes = f", {len(self.labels)} classes" if self.labels is not None else ""
        network = f"{type(self.net).__name__} of {count / 1e6:.3g}M parameters"
        return f"{name}({network}, {shape}{classes}, weights {self.weights!r})"

    def _repr_html_(self) -> str:
        """The model for notebooks: network, process, classes, what it was trained on."""
        shape: str | None
        try:
            shape = "x".join(map(str, self.image_shape))
        except ValueError:
            shape = None
        count = sum(parameter.numel() for parameter in self.net.parameters())
        process, trained = self.process, (self.manifest.get("progress") or {}).get("images")
        facts = [
            ("network", f"{type(self.net).__name__}, {count / 1e6:.3g} million parameters"),
            ("images", shape),
            ("classes", None if self.labels is None else some_names(self.labels)),
            ("conditions", self.conditions.text() or None),
            ("process", f"{process.levels_text}, predicts {process.target}, variance {process.variance}"),
            ("weights", self.weights),
            ("trained on", f"{trained:,} images" if isinstance(trained, int) else None),
        ]
        return card(type(self).__name__, facts)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it was trained on."""
        return self.spec.image_shape

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for an unconditional model."""
        return self.spec.num_classes

    @property
    def published(self) -> published.Published | None:
        """The published model that it is, or that it was taken for when it was loaded; None for any other."""
        name = (self.manifest.get("source") or {}).get("published")
        return published.ENTRIES.get(name) if isinstance(name, str) else None

    @property
    def advice(self) -> SamplerConfig | None:
        """How the model's authors sample it: of a published model, or of one that came with its scheduler."""
        saved = self.manifest.get("sampling")
        if isinstance(saved, Mapping):
            return from_manifest(saved)
        return self.published.sampling if self.published is not None else None

    @property
    def differences(self) -> tuple[str, ...]:
        """What is done otherwise than by the scheduler that the model came with, a sentence each."""
        facts = (self.manifest.get("source") or {}).get("facts")
        named = facts.items() if isinstance(facts, Mapping) else ()
        return tuple(str(what) for who, what in named if str(who).startswith("otherwise than"))

    @property
    def null_class(self) -> int | None:
        """The class index that means "no class", for classifier-free guidance; None if there is none."""
        return self.spec.null_index

    @property
    def conditions(self) -> ModelConditions:
        """What it is conditioned on besides the class."""
        from undiffuse.conditions import ModelConditions

        return ModelConditions.from_dict(self.manifest.get("conditions"))

    @property
    def conditions_dropped(self) -> bool:
        """Whether it was trained without its conditions at times, so that it can do without them and be guided."""
        return bool((self.manifest.get("objective") or {}).get("label_dropout"))

    @property
    def null_conditions(self) -> dict[str, int | float]:
        """What stands for "not given", by condition, for classifier-free guidance; {} if it always needs conditions."""
        null: dict[str, int | float] = {} if self.null_class is None else {"y": self.null_class}
        return {**null, **dict.fromkeys(self.conditions.keywords, math.nan)} if self.conditions_dropped else null

    @property
    def preparation(self) -> Mapping[str, Any]:
        """How the training images were prepared: "size", "channels", "fit", "pad_value", "background"; may be empty."""
        return (self.manifest.get("data") or {}).get("config") or {}

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What the files of the training images call their channels; empty where they do not name them."""
        return tuple((self.manifest.get("data") or {}).get("channel_names") or ())

    @property
    def value_range(self) -> tuple[float, float] | None:
        """(low, high) of the units of the training images, for `undiffuse.pixels.to_units`; None for 8-bit levels."""
        found = self.preparation.get("value_range")
        return None if found is None else (float(found[0]), float(found[1]))

    def label_name(self, index: int) -> str:
        """Return the name of a class, its number if it has none."""
        return self.labels[index] if self.labels is not None else str(index)

    def class_index(self, name: str | int) -> int:
        """Return the index of a class.

        Args:
            name: A name (case does not matter), an unambiguous part of a name, or a number. If the classes are those of
                ImageNet, synonyms and synset ids are understood as well, see `imagenet_classes`.

        Raises:
            ValueError: There is no such class, or there are several.
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
        options = some_names([labels[i] for i in found] or labels, 20)
        problem = (
            f"could mean {options}" if found else f"is none of the model's classes: {options or 'they have no names'}"
        )
        raise ValueError(f"class {name!r} {problem}; give a full name or a number from 0 to {classes - 1}")


@dataclass(frozen=True, repr=False)
class DiffusionModel(_Model):
    """A diffusion model."""

    @property
    def distillation(self) -> Mapping[str, Any] | None:
        """How it was distilled ("method", "calls", "teacher", "logsnr" of its calls); None for other models."""
        card = self.manifest.get("distillation")
        return card if isinstance(card, Mapping) else None

    def denoiser(
        self,
        clip: str = "static",
        *,
        precision: str | None = None,
        device: torch.device | str = "cpu",
        gradient: bool = False,
        compiled: bool = False,
        consume: bool = False,
    ) -> ChainDenoiser:
        """Return the model as a denoiser. The model stays as it is: it can be saved, trained and used again.

        Args:
            clip: Treatment of the denoised image, see `ChainDenoiser`.
            precision: "fp32", "bf16" or "fp16" to prepare a copy of the network for fast inference, see
                `prepare_for_inference`, which also explains the arguments below. None calls the network itself.
            device: The device to run on.
            gradient: Whether the prepared network has gradients with respect to the image.
            compiled: Whether to use `torch.compile`.
            consume: Whether to give up the model's own weights to save memory.

        Returns:
            The denoiser.

        Raises:
            ValueError: `clip` is unknown, or the weights were given up earlier.
        """
        network = self._runner(precision, device, gradient=gradient, compiled=compiled, consume=consume)
        return ChainDenoiser(network, self.process, clip)


@dataclass(frozen=True, repr=False)
class ClassifierModel(_Model):
    """A classifier of noisy images."""

    def level_classifier(
        self,
        *,
        precision: str | None = None,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
        consume: bool = False,
    ) -> LevelClassifier:
        """Return the classifier as a function of noisy images and noise levels.

        Args:
            precision: "fp32", "bf16" or "fp16" to prepare a copy of the network that has gradients with respect to the
                image, see `prepare_for_inference`. None uses the network itself and freezes its parameters.
            device: The device to run on.
            temperature: Divisor of the scores, above 0, see `LevelClassifier`.
            consume: Whether to give up the model's own weights to save memory.

        Returns:
            The classifier.
        """
        how = {"gradient": True, "consume": consume} if precision is not None else {"consume": consume}
        kind = LevelClassifier if self.numbers is None else LevelRegressor
        return kind(self._runner(precision, device, **how), self.process, temperature)

    @property
    def numbers(self) -> NumberCondition | None:
        """The numbers that a regressor predicts; None for a classifier."""
        return self.conditions.numbers

    @property
    def clean_only(self) -> bool:
        """Whether it was trained on images without noise alone, and so knows nothing of noisy ones."""
        objective = self.manifest.get("objective") or {}
        return objective.get("noise") is False or objective.get("clean_fraction") == 1.0


def some_names(names: Sequence[str], most: int = 10) -> str:
    """Returns the first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
