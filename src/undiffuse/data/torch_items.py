"""The items of torch data sets: images, (image, label) pairs or dictionaries, as uint8 pictures and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from undiffuse.data.images import Picture
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import shown

__all__ = ["RANGES", "ItemReader", "ValueRange", "split_batch"]

IMAGE_KEYS = ("image", "pixel_values", "img", "images", "x")
LABEL_KEYS = ("label", "labels", "class", "target", "targets", "y", "fine_label")
RANGES: dict[str, tuple[float, float]] = {"uint8": (0.0, 255.0), "[0, 1]": (0.0, 1.0), "[-1, 1]": (-1.0, 1.0)}
ValueRange = tuple[float, float]
_SLACK = 0.01  # of the range: interpolation in a transform may overshoot by a little
_CHANNELS = (1, 3, 4)


@dataclass
class ItemReader:
    """Reads items of one data set.

    Attributes:
        value_range: (low, high) of pixel values that are not uint8 or PIL; None until `detect` has seen some.
    """

    value_range: ValueRange | None = None

    def parts(self, item: Any) -> tuple[Any, Any]:
        """Returns (image, label) of an item; the label is None where there is none.

        Raises:
            ValueError: The item is neither an image, nor a pair, nor a dictionary with an image.
        """
        if isinstance(item, Mapping):
            key = next((key for key in IMAGE_KEYS if key in item), None)
            if key is None:
                raise ValueError(
                    f"an item has the keys {', '.join(map(str, item))}; expected an image under one of "
                    f"{', '.join(IMAGE_KEYS)}"
                )
            label = next((item[key] for key in LABEL_KEYS if key in item), None)
            return item[key], label
        if isinstance(item, (tuple, list)):
            if len(item) == 0:
                raise ValueError("an item is an empty tuple; expected (image,) or (image, label)")
            return item[0], (item[1] if len(item) > 1 else None)
        return item, None

    def detect(self, images: Sequence[Any]) -> str:
        """Finds the range of the pixel values from some images; returns it in words for a remark.

        Raises:
            ConfigError: Values that fit no usual range.
        """
        arrays = [_array(image) for image in images if not isinstance(image, Image.Image)]
        if not arrays or all(array.dtype == np.uint8 for array in arrays):
            return "8-bit"
        if self.value_range is None:
            low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
            whole = all(array.dtype.kind in "iub" or bool((array == np.rint(array)).all()) for array in arrays)
            if low >= -_SLACK and high <= 1 + _SLACK:
                self.value_range = (0.0, 1.0)
            elif low >= -1 - 2 * _SLACK and high <= 1 + 2 * _SLACK:
                self.value_range = (-1.0, 1.0)
            elif whole and low >= 0 and high <= 255:
                self.value_range = (0.0, 255.0)
            else:
                raise ConfigError(
                    "value_range",
                    f"pixel values from {low:.4g} to {high:.4g} fit none of [0, 1], [-1, 1] and [0, 255]. Remove a "
                    "normalization by mean and standard deviation from the data set's transform, or give "
                    "value_range=(low, high)",
                )
        return f"in [{self.value_range[0]:g}, {self.value_range[1]:g}]"

    def picture(self, image: Any) -> Picture:
        """Returns an image as a PIL image or as uint8 [H, W] or [H, W, C].

        Raises:
            ValueError: Another shape, another number of channels, or values out of the range.
        """
        if isinstance(image, Image.Image):
            return image
        array = _pixels_last(_array(image), channels_first=isinstance(image, torch.Tensor))
        if array.dtype == np.uint8:
            return array
        if array.dtype == np.bool_:
            return array.astype(np.uint8) * 255
        low, high = self.value_range or (0.0, 1.0)
        values = (array.astype(np.float64) - low) / (high - low)
        if not np.isfinite(values).all() or values.min() < -_SLACK or values.max() > 1 + _SLACK:
            raise ValueError(
                f"pixel values from {array.min():.4g} to {array.max():.4g}; expected [{low:g}, {high:g}] as in the "
                "images seen first"
            )
        return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def split_batch(batch: Any) -> Iterator[Any]:
    """Yields the items of what a data loader or an iterable data set yields: a batch, or an item as it is."""
    if isinstance(batch, Mapping):
        key = next((key for key in IMAGE_KEYS if key in batch), None)
        if key is None or not _is_batch(batch[key]):
            yield batch
            return
        names = [name for name in batch if name == key or name in LABEL_KEYS]
        for i in range(len(batch[key])):
            yield {name: batch[name][i] for name in names}
    elif isinstance(batch, (tuple, list)) and len(batch) and _is_batch(batch[0]):
        labels = batch[1] if len(batch) > 1 else None
        for i in range(len(batch[0])):
            yield (batch[0][i],) if labels is None else (batch[0][i], labels[i])
    elif _is_batch(batch):
        yield from batch
    else:
        yield batch


def label_value(label: Any) -> int | str | None:
    """Returns a label as a number or a name.

    Raises:
        ValueError: It is neither.
    """
    if label is None or isinstance(label, str):
        return label
    if isinstance(label, (torch.Tensor, np.ndarray)) and _count(label) != 1:
        raise ValueError(f"a label has the shape {list(label.shape)}; expected one class index or name per image")
    value = label.item() if hasattr(label, "item") else label
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ValueError(f"the label {shown(label)} is neither a class index nor a name")
    return int(value)


def _count(label: Any) -> int:
    return int(label.numel()) if isinstance(label, torch.Tensor) else int(label.size)


def _is_batch(images: Any) -> bool:
    if isinstance(images, (torch.Tensor, np.ndarray)):
        return images.ndim == 4
    return isinstance(images, (list, tuple)) and len(images) > 0 and all(_is_image(image) for image in images)


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim in (2, 3))


def _array(image: Any) -> NDArray[Any]:
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(image, np.ndarray):
        return image
    raise ValueError(f"an image is a {type(image).__name__}; expected a tensor, a NumPy array or a PIL image")


def _pixels_last(array: NDArray[Any], channels_first: bool) -> NDArray[Any]:
    """[H, W] or [H, W, C], from either order; where both are possible, tensors have their channels first."""
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
        if first and (channels_first or not last):
            return np.ascontiguousarray(array.transpose(1, 2, 0))
        if last:
            return array
    raise ValueError(f"an image has the shape {list(array.shape)}; expected [H, W] or 1, 3 or 4 channels")
