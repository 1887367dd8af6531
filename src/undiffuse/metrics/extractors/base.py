"""Defines extractors: uint8 images in, features out, with a card that says how they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from undiffuse.arithmetic import exact_float32
from undiffuse.metrics.checks import as_features, as_images
from undiffuse.metrics.estimate import Card, MetricError
from undiffuse.util.hashing import tensors_hash

__all__ = ["Extracted", "Extractor", "FunctionExtractor", "exact_arithmetic", "in_batches", "tensors_hash"]

Images = Tensor | np.ndarray


@dataclass(frozen=True)
class Extracted:
    """Holds what one pass over images yields.

    Args:
        features: [B, D].
        spatial: Spatial features [B, S], for sFID; None if the extractor has none.
        logits: Class scores [B, K], for the Inception Score and the accuracy; None without classes.
    """

    features: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(Protocol):
    """Turns images into features.

    Called with uint8 images [B, H, W, C] it returns `Extracted`. `card` describes the features, `spatial_card` the
    spatial ones (None if there are none). `scores` turns kept features [B, D] into class scores [B, K] again, or
    returns None if there are no classes.
    """

    @property
    def card(self) -> Card: ...

    @property
    def spatial_card(self) -> Card | None: ...

    def __call__(self, images: Images) -> Extracted: ...

    def scores(self, features: Tensor) -> Tensor | None: ...


class FunctionExtractor:
    """Makes an extractor of any function.

    Args:
        function: Takes uint8 images [B, H, W, C] and returns features [B, D]. It resizes and normalises as it likes.
        card: Describes what the function does. Distances carry it, and only features with equal cards can be compared.
        channels: C that the function needs.
        grey: "repeat" shows it one-channel images as RGB; "refuse" is an error.

    Raises:
        MetricError: The card's distance has the name of the 2015 Inception's.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], card: Card, *, channels: int = 3, grey: str = "refuse"
    ) -> None:
        if card.distance in ("FID", "sFID"):
            raise MetricError(
                f"{card.distance} is the name of a distance between features of the 2015 Inception network; "
                f"call this one FD-{card.extractor}"
            )
        self.function = function
        self.card = card
        self.spatial_card: Card | None = None
        self.channels = channels
        self.grey = grey

    @torch.inference_mode()
    def __call__(self, images: Images) -> Extracted:
        ready = as_images(images, self.channels, self.grey)
        features = as_features(self.function(ready), self.card.dimension)
        if len(features) != len(ready):
            raise MetricError(f"the extractor gave {len(features)} features for {len(ready)} images")
        return Extracted(features)

    def scores(self, features: Tensor) -> Tensor | None:
        """Returns None: a function has no classes."""
        return None


def in_batches(extractor: Extractor, images: Images, batch: int = 64) -> Iterator[Extracted]:
    """Yields what an extractor makes of images [N, H, W, C], `batch` at a time, in order."""
    if batch < 1:
        raise MetricError(f"the batch must be at least 1, got {batch}")
    for start in range(0, len(images), batch):
        yield extractor(images[start : start + batch])


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Gives a context with plain float32: no autocast, and neither TF32 nor bfloat16 inside of float32 layers."""
    with torch.autocast(device.type, enabled=False), exact_float32(device):
        yield


def load_exactly(net: torch.nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Loads weights whose names and shapes must be those of `net`; counters of batch norms may be there or not."""
    counter = "num_batches_tracked"
    given = {name: tensor for name, tensor in state.items() if not name.endswith(counter)}
    own = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith(counter)}
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in own]
    for name in own.keys() & given.keys():
        tensor = given[name]
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape:
            shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            problems.append(f"{name} has shape {shape} instead of {list(own[name].shape)}")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name} contains NaN or infinity")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise MetricError(f"these are not the weights of {what}: {'; '.join(sorted(problems)[:5])}{more}")
    net.load_state_dict(given, strict=False)


def read_weights(path: Any, what: str) -> Mapping[str, Any]:
    """Reads the flat state dict of a PyTorch file without executing anything; MetricError for any other content."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MetricError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises errors of many kinds for damaged and for dangerous files
        raise MetricError(
            f"{path} is not a plain file of tensors ({type(error).__name__}); get the weights of {what} again"
        ) from error
    if not isinstance(state, Mapping):
        raise MetricError(f"{path} holds a {type(state).__name__} instead of the weights of {what}")
    return state
