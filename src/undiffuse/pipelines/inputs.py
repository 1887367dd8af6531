"""Images as commands read them: data or single files, prepared as the model was trained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.data import IMAGE_SUFFIXES, DataConfig, FolderSource, ImageDataset, Source, screen
from undiffuse.models import DiffusionModel
from undiffuse.pictures import read_record
from undiffuse.pixels import from_uint8


def open_images(
    args: argparse.Namespace,
    paths: Sequence[str],
    model: DiffusionModel,
    labelled: bool,
    size: tuple[int, int] | None = None,
) -> ImageDataset:
    """The images of `paths`: one data set, or image files.

    labelled: whether the labels are wanted, numbered as the model's classes; size: (height, width) they are brought to,
    if not the model's. ValueError for what is neither, for
    several data sets, and for images of a model that enlarges others.
    """
    if model.spec.super_resolution:
        raise ValueError("a super-resolution model enlarges images; this command needs one that makes them from noise")
    channels, height, width = model.image_shape
    trained = (model.manifest.get("data") or {}).get("config") or {}
    files = all(Path(path).suffix.lower() in IMAGE_SUFFIXES for path in paths)
    config = DataConfig(
        path=str(paths[0]),
        labels=getattr(args, "labels", "auto") if labelled and not files else "none",
        size=size or (height, width),
        channels=channels,
        fit=args.fit or trained.get("fit", "crop"),
        background=_background(trained.get("background", 255)),
        pad_value=trained.get("pad_value", 0),
        on_broken=args.on_broken,
    )
    if not files:
        if len(paths) > 1:
            raise ValueError(f"give one folder, .zip, .npz or name, or image files; got {', '.join(map(str, paths))}")
        names = list(model.labels) if model.labels is not None and config.labels != "none" else None
        try:
            return ImageDataset(config.open(names), config)
        except ValueError as error:
            if "class table" not in str(error):
                raise
            raise ValueError(f"{error}. Give --class to tell the model the class of all images") from error
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
    source = FolderSource(".", [str(path) for path in paths], [Path(path).stat().st_size for path in paths])
    source.where = f"{len(paths)} file{'s' if len(paths) != 1 else ''}"
    return ImageDataset(screen(source, check="full", on_broken=args.on_broken), config)


def thinned(dataset: ImageDataset, count: int | None) -> ImageDataset:
    """At most `count` images, evenly spaced over the data; the data itself where it has no more."""
    if count is None or count >= len(dataset):
        return dataset
    chosen = np.arange(count) * len(dataset) // count
    return ImageDataset(dataset.source.subset(chosen), dataset.config)


def model_images(dataset: ImageDataset, indices: Sequence[int], device: torch.device | str) -> Tensor:
    """Some images of the data, without augmentation, [B, C, H, W] in [-1, 1] on the device."""
    return from_uint8(np.stack([dataset.plain(i).image for i in indices]), device)


def labels_of(
    dataset: ImageDataset, model: DiffusionModel, classes: Sequence[int] | None, what: str = "--class"
) -> list[int] | None:
    """The class of every image [N]: the one that was given, the data's labels, or what the records of PNG files say.

    None for an unconditional model. ValueError if nothing tells the classes.
    """
    if model.num_classes is None:
        return None
    if classes is not None:
        if len(classes) != 1:
            raise ValueError(f"{what} takes one class for all images here; got {len(classes)}")
        return [classes[0]] * len(dataset)
    source: Source = dataset.source
    if source.labels is None:
        recorded = recorded_classes([source.name(i) for i in range(len(source))], model)
        if recorded is not None:
            return recorded
        raise ValueError(f"the model is told a class, but there are no labels in {source.where}: give {what}")
    return [int(k) for k in source.labels]


def recorded_classes(paths: Sequence[str], model: DiffusionModel) -> list[int] | None:
    """The classes [N] that pictures of undiffuse carry in their records, as the model numbers them; None without.

    Names count where there are any; a bare number means something only to the model that the picture was made by.
    """
    found = []
    for path in paths:
        try:
            record = read_record(path)
        except (OSError, SyntaxError, ValueError):
            return None
        name, number = record.get("class_name"), record.get("class")
        if model.labels is not None and name is not None:
            number = model.labels.index(name) if name in model.labels else None
        elif record.get("model") != model.digest:
            number = None
        if not isinstance(number, int) or not 0 <= number < (model.num_classes or 0):
            return None
        found.append(number)
    return found


def _background(value: object) -> int | tuple[int, int, int]:
    if isinstance(value, (list, tuple)):
        r, g, b = value
        return int(r), int(g), int(b)
    return int(str(value))
