"""Predictions taken apart: one function over all tensors that a prediction is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.noise_levels import Level
from undiffuse.prediction import Guide, Prediction


def without_graph(prediction: Prediction) -> Prediction:
    """The same, cut from the graph of whatever computed it. Guides stay, for they give gradients without a graph."""
    return _mapped(prediction, Tensor.detach, lambda guide: guide)


def halves(prediction: Prediction) -> tuple[Prediction, Prediction]:
    """The two predictions in one for a batch of 2 B, whose halves are one x [B, C, H, W] under two conditions."""
    count = len(prediction.x)

    def half(part: slice) -> Prediction:
        return _mapped(prediction, lambda tensor: _rows(tensor, part, count), lambda guide: _half(guide, part))

    return half(slice(None, count // 2)), half(slice(count // 2, None))


def doubled(level: Level) -> Level:
    """The level for a batch twice over."""
    if level.alpha.numel() == 1:
        return level
    return Level(torch.cat([level.alpha, level.alpha]), torch.cat([level.sigma, level.sigma]))


def _rows(tensor: Tensor, part: slice, count: int) -> Tensor:
    """Its part of the batch; what all rows share stays as it is."""
    return tensor[part] if tensor.ndim and tensor.shape[0] == count else tensor


def _half(guide: Guide, part: slice) -> Guide:
    """The guide of one half, asked for both: what it was made with (classes, losses) is of the whole batch."""

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
