"""Checks what enters a metric: images at an extractor, features at an accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.estimate import MetricError

__all__ = ["as_features", "as_images", "as_labels", "same_dimension"]


def describe(value: Any) -> str:
    """Describes a tensor or array in a few words, for messages."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
    return type(value).__name__


def as_features(features: Tensor | np.ndarray, dimension: int | None = None, first: int = 0) -> Tensor:
    """Returns features as a finite floating tensor without gradients; half precisions become float32.

    Args:
        features: [B, D].
        dimension: D that is expected; None accepts any.
        first: Number of the first of them in the whole set, so that a message can name a broken one.

    Raises:
        MetricError: Another type, shape or dimension, NaN or infinity.
    """
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(np.require(features, requirements=["C", "W"]))
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        raise MetricError(f"features must be floating-point numbers [images, dimension], got {describe(features)}")
    if features.shape[1] == 0:
        raise MetricError("features of dimension 0 say nothing; check the extractor")
    if dimension is not None and features.shape[1] != dimension:
        raise MetricError(f"expected features of dimension {dimension}, got {features.shape[1]}")
    # Without a double precision of its own, a device's features are looked at on the CPU.
    features = features.detach().cpu() if features.device.type == "mps" else features.detach()
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    # The sum is finite if all numbers are (and do not overflow together): one cheap pass in the common case.
    if not bool(torch.isfinite(features.sum())):
        bad = (~torch.isfinite(features).all(dim=1)).nonzero()[:, 0]
        if len(bad):
            shown = ", ".join(str(first + int(i)) for i in bad[:5]) + (", ..." if len(bad) > 5 else "")
            raise MetricError(
                f"the features of {len(bad)} of {len(features)} images are NaN or infinite (image {shown}); "
                "find out why these images or the extractor broke, and leave no broken image in the set"
            )
    return features


def same_dimension(a: Tensor, b: Tensor) -> None:
    """Raises MetricError unless features [N, D] and [M, D] have one dimension."""
    if a.shape[1] != b.shape[1]:
        raise MetricError(f"features of dimension {a.shape[1]} cannot be compared with features of {b.shape[1]}")


def as_images(images: Tensor | np.ndarray, channels: int = 3, grey: str = "refuse") -> Tensor:
    """Returns images as a uint8 tensor [B, H, W, channels].

    Args:
        images: uint8 [B, H, W, C] in 0..255.
        channels: Channels that are needed.
        grey: What happens to one-channel images where three are needed: "refuse" raises, "repeat" copies the channel.

    Raises:
        MetricError: Another type (convert floats in [-1, 1] or [0, 1] first), layout or number of channels.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        advice = ""
        if isinstance(images, (Tensor, np.ndarray)):
            floating = images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
            advice = "; convert float images with undiffuse.pixels.to_uint8" if floating else "; convert them to uint8"
        raise MetricError(f"images must be uint8 [N, H, W, C] in 0..255, got {describe(images)}{advice}")
    if images.ndim != 4 or min(images.shape[1:]) == 0:
        raise MetricError(f"images must be uint8 [N, H, W, C], got shape {list(images.shape)}")
    found = images.shape[3]
    if found == channels:
        return images
    if found == 1 and channels == 3:
        if grey == "repeat":
            return images.expand(-1, -1, -1, 3)
        raise MetricError(
            "the extractor needs RGB images and these are grey; say grey='repeat' to show it three equal channels"
        )
    hint = ""
    if images.shape[1] == channels:
        hint = "; the channels seem to come first: permute them to the end"
    elif found == 4:
        hint = "; remove the alpha channel (composite on a background) first"
    raise MetricError(f"the extractor needs {channels} channels, got images of shape {list(images.shape)}{hint}")


def as_labels(labels: Tensor | np.ndarray, count: int, classes: int) -> Tensor:
    """Returns class numbers [B] in 0..classes-1 as int64; raises MetricError for anything else."""
    labels = torch.as_tensor(labels)
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise MetricError(f"expected one class number for each of {count} images, got {describe(labels)}")
    labels = labels.to(torch.int64)
    if count and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise MetricError(
            f"class numbers must be from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    return labels
