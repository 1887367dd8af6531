"""Extracts features by a classifier of this library on clean images: a distance for a domain of its own."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undiffuse.metrics.checks import as_images
from undiffuse.metrics.estimate import Card, MetricError
from undiffuse.metrics.extractors.base import Extracted, Images, exact_arithmetic
from undiffuse.pixels import from_uint8

if TYPE_CHECKING:
    from undiffuse.models import ClassifierModel

__all__ = ["FASHION_CLASSIFIER", "ClassifierExtractor"]

FASHION_CLASSIFIER = "fashion-mnist-32-judge"  # trained on clean images, and no guide of anything that it judges


class ClassifierExtractor:
    """Extracts penultimate features [B, D] and class scores [B, K] of a `NoisyClassifier` at its least noisy level.

    The features are what the classifier's last linear layer sees. Images are uint8 [B, H, W, C] of the classifier's
    size and channels: nothing is resized.

    Args:
        model: The classifier.
        name: Part of the distance's name: FD-fashion for the shipped Fashion-MNIST classifier.
        device: Where it runs.
    """

    def __init__(self, model: ClassifierModel, name: str, *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model  # how its training images were prepared is how others should be
        self.shape = model.image_shape
        self.labels = model.labels
        body: Any = copy.deepcopy(model.net).to(self.device).eval().requires_grad_(False)
        self.last = _cut_last_layer(body)
        self._body = replace(model, net=body).level_classifier()
        self._level = model.process.chain().level(0)
        self.spatial_card: Card | None = None
        self.card = Card(
            protocol=f"classifier-{name}",
            distance=f"FD-{name}",
            extractor=f"classifier {name}",
            weights_sha256=model.digest,
            layer="penultimate, least noisy level",
            dimension=self.last.weight.shape[1],
            resize=f"none ({self.shape[1]}x{self.shape[2]}, {self.shape[0]} channels)",
            normalisation="x / 127.5 - 1",
        )

    @classmethod
    def load(
        cls, reference: str = FASHION_CLASSIFIER, name: str | None = None, *, device: torch.device | str = "cpu"
    ) -> ClassifierExtractor:
        """Loads a file, run folder or shipped model; the name of the shipped Fashion-MNIST classifier is "fashion"."""
        from undiffuse.models import load_classifier

        if name is None:
            name = "fashion" if reference == FASHION_CLASSIFIER else "classifier"
        return cls(load_classifier(reference), name, device=device)

    @torch.inference_mode()
    def __call__(self, images: Images) -> Extracted:
        """Turns images uint8 [B, H, W, C] into features [B, D] and logits [B, K]."""
        channels, height, width = self.shape
        ready = as_images(images, channels)
        if tuple(ready.shape[1:3]) != (height, width):
            raise MetricError(
                f"the classifier was trained on {height}x{width} images, got {ready.shape[1]}x{ready.shape[2]}; "
                "prepare the images as its training data were"
            )
        with exact_arithmetic(self.device):
            features = self._body(from_uint8(ready, self.device), self._level).float()
            return Extracted(features, logits=self.scores(features))

    @torch.inference_mode()
    def scores(self, features: Tensor) -> Tensor:
        """Turns features [B, D] into class scores [B, K]."""
        return nn.functional.linear(features.to(self.device), self.last.weight.flatten(1), self.last.bias)


def _cut_last_layer(net: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.Linear:
    """Replaces the linear layer that gives the class scores by the identity, and returns it."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    name, last = [(name, m) for name, m in net.named_modules() if isinstance(m, kinds) and name.startswith("out.")][-1]
    width = last.weight.shape[1]
    identity = copy.deepcopy(last)
    # A layer of the same kind, because some heads use the weights of their layer and do not call it.
    eye: Tensor = torch.eye(width, dtype=last.weight.dtype, device=last.weight.device)
    identity.weight = nn.Parameter(eye.reshape(width, width, *last.weight.shape[2:]), requires_grad=False)
    identity.bias = nn.Parameter(torch.zeros(width, dtype=eye.dtype, device=eye.device), requires_grad=False)
    parent, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(parent), attribute, identity)
    return last
