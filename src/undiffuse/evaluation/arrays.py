"""Images from the memory of a program as sets to evaluate: arrays, tensors and torch datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.evaluation.images import ImageSet
from undiffuse.metrics import MetricError
from undiffuse.pictures import preview

__all__ = ["ArrayImages", "DatasetImages"]


class ArrayImages(ImageSet):
    """An array or tensor of images.

    Args:
        images: uint8 [N, H, W, C] or [N, H, W] with values in 0..255, or other numbers with a `value_range`; C is 1
            or 3.
        labels: Class of each image, integers [N]; None without classes.
        label_names: Names of the classes; their numbers by default.
        where: One line for people.
        value_range: (low, high) of the values that become 0 and 255, for images that are not uint8.

    Raises:
        MetricError: Another type or shape, or labels that do not fit.
    """

    def __init__(
        self,
        images: NDArray[Any] | Tensor,
        labels: Sequence[int] | NDArray[Any] | Tensor | None = None,
        label_names: Sequence[str] | None = None,
        where: str = "an array",
        value_range: tuple[float, float] | None = None,
    ) -> None:
        pixels = torch.as_tensor(images).detach()
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        declared = value_range is not None and pixels.dtype not in (torch.bool, torch.complex64, torch.complex128)
        if (pixels.dtype != torch.uint8 and not declared) or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            raise MetricError(
                f"{where}: expected uint8 images [N, H, W, C] with 1 or 3 channels and values in 0..255, got "
                f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}; other numbers need a value_range"
            )
        numbers = None if labels is None else torch.as_tensor(labels).cpu().numpy().astype(np.int64)
        if numbers is not None and (numbers.shape != (len(pixels),) or (len(numbers) and int(numbers.min()) < 0)):
            raise MetricError(f"labels: expected {len(pixels)} numbers of classes from 0, got {list(numbers.shape)}")
        if numbers is not None and label_names is None:
            label_names = [str(k) for k in range(int(numbers.max(initial=-1)) + 1)]
        if numbers is not None and label_names is not None and int(numbers.max(initial=-1)) >= len(label_names):
            raise MetricError(f"labels: got class {int(numbers.max())}, but only {len(label_names)} names of classes")
        self.pixels, self.value_range = pixels, value_range
        shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
        super().__init__(where, shape, numbers, label_names if numbers is not None else None, {"kind": "array"})

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, uint8 [B, H, W, C]; MetricError for values that are NaN or infinite."""
        part = self.pixels[start:stop].cpu()
        if self.value_range is None:
            return part.contiguous()
        if not bool(torch.isfinite(part).all()):
            raise MetricError(f"{self.where}: some values are NaN or infinite")
        return torch.from_numpy(preview(part.numpy(), self.value_range))


class DatasetImages(ImageSet):
    """A map-style torch dataset of images, which is read one image at a time.

    Args:
        dataset: Has a length; its items are images, (image, label), or dictionaries with "image" and possibly "label".
            An image is a PIL picture, a uint8 array [H, W] or [H, W, C], or a uint8 tensor [C, H, W].
        label_names: Names of the classes; `dataset.classes` where there is such a list, else the classes' numbers.

    Raises:
        MetricError: No length, no images, or an item of another form.
    """

    def __init__(self, dataset: Any, label_names: Sequence[str] | None = None) -> None:
        try:
            count = len(dataset)
        except TypeError:
            raise MetricError(
                f"{type(dataset).__name__} has no length: give a map-style dataset, or the images as an array"
            ) from None
        if not count:
            raise MetricError(f"{type(dataset).__name__} holds no images")
        self.dataset = dataset
        image, label = self._item(0)
        names = label_names or getattr(dataset, "classes", None)
        labels = None
        if label is not None:
            labels = np.array([self._item(i)[1] for i in range(count)], dtype=np.int64)
            names = list(names) if names else [str(k) for k in range(int(labels.max()) + 1)]
        shape = (image.shape[0], image.shape[1], image.shape[2])
        super().__init__(
            type(dataset).__name__, shape, labels, names if label is not None else None, {"kind": "dataset"}
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, uint8 [B, H, W, C]; MetricError for one of another size."""
        images = [self._item(i)[0] for i in range(start, stop)]
        for i, image in enumerate(images, start):
            if image.shape != self.shape:
                raise MetricError(f"{self.where}: image {i} is {list(image.shape)}, image 0 is {list(self.shape)}")
        return torch.from_numpy(np.stack(images))

    def _item(self, i: int) -> tuple[NDArray[np.uint8], int | None]:
        """Returns image i as [H, W, C] and its label."""
        item: Any = self.dataset[i]
        label: Any = None
        if isinstance(item, Mapping):
            item, label = item.get("image"), item.get("label")
        elif isinstance(item, (tuple, list)):
            item, label = item[0], item[1] if len(item) > 1 else None
        if isinstance(item, Tensor):
            image = item.detach().cpu().numpy()
            image = image.transpose(1, 2, 0) if image.ndim == 3 else image
        else:
            image = np.asarray(item.convert("RGB") if getattr(item, "mode", "RGB") not in ("RGB", "L") else item)
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise MetricError(
                f"{type(self.dataset).__name__}: item {i} is {type(item).__name__} {image.dtype} {list(image.shape)}; "
                "expected a picture, a uint8 array [H, W, C] or a uint8 tensor [C, H, W] with 1 or 3 channels"
            )
        return image, None if label is None else int(label)
