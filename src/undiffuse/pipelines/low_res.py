"""The small images that a super-resolution model enlarges."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from undiffuse.data import DataConfig, ImageDataset
from undiffuse.models import DiffusionModel
from undiffuse.pipelines.inputs import model_images


@dataclass(frozen=True)
class LowRes:
    """Small images by number; image i of a run enlarges image i mod n of the data."""

    dataset: ImageDataset
    labels: list[int] | None
    fingerprint: str

    def __len__(self) -> int:
        return len(self.dataset)

    @classmethod
    def of_args(cls, args: argparse.Namespace, model: DiffusionModel) -> LowRes | None:
        """From --low-res and --low-size; ValueError if the model needs them and they are missing, or the reverse."""
        needs = model.spec.super_resolution
        if not needs:
            if args.low_res is not None:
                raise ValueError("--low-res was given, but the model enlarges nothing: leave it out")
            return None
        if args.low_res is None:
            raise ValueError("this is a super-resolution model: give the images to enlarge, --low-res FOLDER or NPZ")
        wanted = low_size(model, args.low_size)
        conditional = model.num_classes is not None and not args.classes
        config = DataConfig(
            path=args.low_res, labels="auto" if conditional else "none", size=wanted, channels=model.image_shape[0]
        )
        source = config.open(model.labels if conditional else None)
        if conditional and source.labels is None:
            raise ValueError(f"{source.where} has no labels, which the model needs: give --class")
        labels = [int(k) for k in source.labels] if conditional and source.labels is not None else None
        return cls(ImageDataset(source, config), labels, source.fingerprint)

    @classmethod
    def of_npz(cls, path: Path, size: tuple[int, int], channels: int) -> LowRes:
        """All images of an npz of samples, without their labels."""
        config = DataConfig(path=str(path), labels="none", size=size, channels=channels)
        source = config.open(None)
        return cls(ImageDataset(source, config), None, source.fingerprint)

    def labels_of(self, indices: Sequence[int]) -> list[int] | None:
        """The classes of some images of the run."""
        return None if self.labels is None else [self.labels[i % len(self)] for i in indices]

    def images_of(self, indices: Sequence[int]) -> Tensor:
        """[B, C, h, w] in [-1, 1]."""
        return model_images(self.dataset, [i % len(self) for i in indices], "cpu")


@dataclass(frozen=True)
class Made:
    """One small image [1, C, h, w] in [-1, 1] that was made for the occasion, in the place of `LowRes`."""

    image: Tensor

    def labels_of(self, indices: Sequence[int]) -> None:
        """It has no classes of its own."""

    def images_of(self, indices: Sequence[int]) -> Tensor:
        """The image, for every index."""
        return self.image.expand(len(indices), -1, -1, -1)


def low_size(model: DiffusionModel, given: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) of the images that a model enlarges: as given, or as it says. ValueError if neither tells."""
    size = given or (model.manifest.get("objective") or {}).get("low_size")
    if size is None:
        raise ValueError("the model does not say how large the images are that it enlarges: give --low-size")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
