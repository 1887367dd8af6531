"""Data given as Python objects: arrays, data sets of torch and our own, as something to train on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.data.array_source import ArraySource
from undiffuse.data.dataset import ImageDataset
from undiffuse.data.labels import apply_table
from undiffuse.data.sources import Source
from undiffuse.data.torch_dataset import StreamDataset, TorchSource, is_map_style, is_stream
from undiffuse.data.torch_items import ValueRange
from undiffuse.util.errors import ConfigError

__all__ = ["as_data", "renumbered", "unlabelled"]


def as_data(
    data: Any,
    *,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    use_labels: bool = True,
) -> Source | StreamDataset | None:
    """Returns a Python object as a source of images; None for a path or a name, which `open_data` opens.

    Args:
        data: uint8 array [N, H, W] or [N, H, W, C] (or a uint8 tensor, also [N, C, H, W]), one of our sources or data
            sets, a map-style torch data set, an iterable one, or a data loader.
        labels: For an array: integers [N].
        class_names: Names of the classes.
        value_range: (low, high) of float pixels of torch data, None: detected.
        use_labels: False leaves labels out.

    Raises:
        ConfigError: None of these, or arrays of another type or shape.
    """
    if isinstance(data, (str, Path)):
        return None
    if isinstance(data, StreamDataset):
        return data
    if isinstance(data, ImageDataset):
        data = data.source
    if isinstance(data, Source):
        return data if use_labels else unlabelled(data)
    if isinstance(data, (np.ndarray, torch.Tensor)):
        return _array_source(data, labels if use_labels else None, class_names)
    options: dict[str, Any] = {"class_names": class_names, "value_range": value_range, "use_labels": use_labels}
    if is_map_style(data):
        return TorchSource(data, **options)
    if is_stream(data):
        return StreamDataset(data, **options)
    raise ConfigError(
        "data",
        f"a {type(data).__name__} is no data to train on; expected a path, a name, an array, a data set or a loader",
    )


def unlabelled(source: Source) -> Source:
    """Returns the same images without labels."""
    other = copy.copy(source)
    other.__dict__.pop("fingerprint", None)
    other.labels = other.label_names = None
    return other


def renumbered(source: Source, names: Sequence[str]) -> Source:
    """Returns the same images, labels numbered by an existing class table.

    Raises:
        ValueError: A class is not in the table.
    """
    if source.labels is None or source.label_names is None:
        return source
    values = [source.label_names[number] for number in source.labels]
    other = copy.copy(source)
    other.__dict__.pop("fingerprint", None)
    other.labels, other.label_names = apply_table(values, names, source.where), list(names)
    return other


def _array_source(data: Any, labels: Any, class_names: Sequence[str] | None) -> ArraySource:
    array = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else data
    if isinstance(data, torch.Tensor) and array.ndim == 4 and array.shape[1] in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    names: list[str] | None = None
    numbers = None
    if labels is not None:
        numbers = np.asarray(labels)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise ConfigError("labels", f"expected integers [N], got {numbers.dtype} {list(numbers.shape)}")
        names = list(class_names) if class_names is not None else [str(k) for k in range(int(numbers.max()) + 1)]
        numbers = numbers.astype(np.int64)
    try:
        return ArraySource(array, numbers, names)
    except ValueError as error:
        raise ConfigError("data", str(error)) from error
