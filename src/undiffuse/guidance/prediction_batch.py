"""Functions that map over all tensors of a prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.noise_levels import Level
from undiffuse.prediction import Guide, Prediction


def without_graph(prediction: Prediction) -> Prediction:
    """Detaches a prediction from the graph. Guides stay, since they return gradients without a graph."""
    return _mapped(prediction, Tensor.detach, lambda guide: guide)


def halves(prediction: Prediction) -> tuple[Prediction, Prediction]:
    """Splits a prediction for a batch of 2 B, one x [B, C, H, W] under two conditions, into two predictions."""
    count = len(prediction.x)

    def half(part: slice) -> Prediction:
        return _mapped(prediction, lambda tensor: _rows(tensor, part, count), lambda guide: _half(guide, part))

    return half(slice(None, count // 2)), half(slice(count // 2, None))


def doubled(level: Level) -> Level:
    """Returns the level for a batch repeated twice."""
    if level.alpha.numel() == 1:
        return level
    return Level(torch.cat([level.alpha, level.alpha]), torch.cat([level.sigma, level.sigma]))


def _rows(tensor: Tensor, part: slice, count: int) -> Tensor:
    """Returns a part of the batch; tensors that all rows share are unchanged."""
    return tensor[part] if tensor.ndim and tensor.shape[0] == count else tensor


def _half(guide: Guide, part: slice) -> Guide:
    """Returns the guide of one half; it evaluates both, because its classes and losses belong to the whole batch."""

    def gradient(x: Tensor, level: Level) -> Tensor:
        return guide.gradient(torch.cat([x, x]), doubled(level))[part]

    return replace(guide, gradient=gradient)


def _mapped(value: Any, of_tensor: Callable[[Tensor], Tensor], of_guide: Callable[[Guide], Guide]) -> Any:
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, Guide):
        return of_guide(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, of_tensor, of_guide) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _mapped(getattr(value, f.name), of_tensor, of_guide) for f in fields(value)}
        return replace(value, **changed)
    return value
