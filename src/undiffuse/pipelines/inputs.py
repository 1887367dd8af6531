"""Opens a data set, image files or arrays, and prepares them as the model's training images were prepared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse import checkpoints
from undiffuse.data import (
    IMAGE_SUFFIXES,
    ArraySource,
    DataConfig,
    FolderSource,
    ImageDataset,
    Source,
    SubsetSource,
    screen,
)
from undiffuse.models import DiffusionModel
from undiffuse.pictures import read_record
from undiffuse.pixels import from_pixels, to_uint8, to_units
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import count_of, join_names

__all__ = ["Images", "file_of", "finite", "labels_of", "model_images", "open_images", "subsample"]

Images = str | Path | Sequence[str | Path] | np.ndarray | Tensor | Source | ImageDataset
"""A folder, .zip, .npz or name of a data set; one or several image files; uint8 [N, H, W, C]; numbers
[N, H, W, C] in the units of a model with a value range; float [N, C, H, W] in [-1, 1]; or a source."""


def open_images(
    images: Images,
    model: DiffusionModel,
    *,
    labels: str = "auto",
    size: tuple[int, int] | None = None,
    fit: Any = None,
    on_broken: Any = "refuse",
    count: int | None = None,
) -> ImageDataset:
    """Opens images and prepares them as the model's training images were.

    Args:
        images: A folder, .zip, .npz or name of a data set; one image file or several; an array [N, H, W, C], uint8, or
            in the units of the model's value range; a tensor [N, C, H, W] in [-1, 1]; a `Source`; or an `ImageDataset`,
            which is taken as it is.
        model: The model that takes the images.
        labels: Where labels come from, see `undiffuse.data.open_data`; "none" leaves them out.
        size: (height, width) of the prepared images; by default the model's.
        fit: "crop" or "pad"; by default as in training.
        on_broken: What to do with unreadable images, "refuse" or "skip".
        count: Take at most this many, evenly spaced over the data.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The model enlarges images, or the images cannot be read.
        ConfigError: The labels are not the model's classes ("classes").
    """
    if model.spec.super_resolution:
        raise ValueError("a super-resolution model enlarges images; expected a model that makes images from noise")
    if isinstance(images, ImageDataset):
        return subsample(images, count)
    value_range = model.value_range
    if isinstance(images, Tensor):
        x = images.float()
        images = to_uint8(x).cpu().numpy() if value_range is None else to_units(x, value_range).numpy()
    channels, height, width = model.image_shape
    trained: Any = model.preparation
    paths = [images] if isinstance(images, (str, Path)) else images
    files = isinstance(paths, Sequence) and all(Path(path).suffix.lower() in IMAGE_SUFFIXES for path in paths)
    stored = isinstance(paths, (np.ndarray, Source))
    config = DataConfig(
        path="memory" if isinstance(paths, (np.ndarray, Source)) else str(paths[0]),
        labels="none" if files or stored else labels,
        size=size or (height, width),
        channels=channels,
        fit=fit or trained.get("fit", "crop"),
        background=_background(trained.get("background", 255)),
        pad_value=trained.get("pad_value", 0),
        on_broken=on_broken,
        value_range=value_range,
    )
    if isinstance(paths, np.ndarray):
        source: Source = ArraySource(paths, value_range=value_range)
    elif isinstance(paths, Source):
        source = paths
    elif files:
        source = screen(
            _single_files(paths), check="full", on_broken=on_broken, value_range=value_range, channels=channels
        )
    elif len(paths) > 1:
        models = [path for path in map(str, paths) if path.endswith(".safetensors") or checkpoints.latest(path)]
        hint = f'. If {models[0]} is the model, give it as model="{models[0]}"' if models else ""
        raise ValueError(
            f"expected one folder, .zip, .npz or name of a data set, or image files; got {join_names(paths)}{hint}"
        )
    else:
        names = list(model.labels) if model.labels is not None and config.labels != "none" else None
        try:
            source = config.open(names)
        except ValueError as error:
            if "class table" not in str(error):
                raise
            raise ConfigError("classes", f"{error}. Name the class of all images instead") from error
    return subsample(ImageDataset(source, config), count)


def subsample(dataset: ImageDataset, count: int | None) -> ImageDataset:
    """Takes at most `count` images, evenly spaced over the data; all of them if it has no more."""
    if count is None or count >= len(dataset):
        return dataset
    chosen = np.arange(count) * len(dataset) // count
    return ImageDataset(dataset.source.subset(chosen), dataset.config)


def model_images(dataset: ImageDataset, indices: Sequence[int], device: torch.device | str) -> Tensor:
    """Reads some images without augmentation, [B, C, H, W] in [-1, 1] on the device."""
    return from_pixels(np.stack([dataset.plain(i).image for i in indices]), device)


def labels_of(dataset: ImageDataset, model: DiffusionModel, classes: Sequence[int] | None = None) -> list[int] | None:
    """Finds the class of every image.

    Args:
        dataset: The images.
        model: The model, whose numbers of classes are returned.
        classes: One class for all images, or a class for each; it takes precedence over everything else.

    Returns:
        The classes [N]: those given, or the data's labels, or else for each picture the class in its record (of
        pictures that undiffuse made), or the class that its folder is named after. None for an unconditional model.

    Raises:
        ConfigError: There are as many `classes` as fit nothing, or no class is known ("classes").
    """
    if model.num_classes is None:
        return None
    if classes is not None:
        if len(classes) not in (1, len(dataset)):
            expected = f"expected one class, or {len(dataset):,}, one for each image"
            raise ConfigError("classes", f"{expected}; got {len(classes)}")
        return list(classes) * len(dataset) if len(classes) == 1 else list(classes)
    source: Source = dataset.source
    if source.labels is not None:
        return [int(k) for k in source.labels]
    found = [_class_of_file(file_of(source, i), model) for i in range(len(source))]
    unknown = [source.name(i) for i, label in enumerate(found) if label is None]
    if unknown:
        raise ConfigError(
            "classes",
            f"missing; the model is class-conditional, but there are no labels in {source.where}, and neither "
            f"record nor folder names the class of {join_names(unknown, 3)}",
        )
    return [label for label in found if label is not None]


def file_of(source: Source, i: int) -> Path | None:
    """The file of picture i of a source; None if it is not a file of its own."""
    if isinstance(source, SubsetSource):
        return file_of(source.parent, int(source.indices[i]))
    return source.root / source.names[i] if isinstance(source, FolderSource) else None


def _single_files(paths: Sequence[str | Path]) -> FolderSource:
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
    source = FolderSource(".", [str(path) for path in paths], [Path(path).stat().st_size for path in paths])
    source.where = count_of(len(paths), "file")
    return source


def _class_of_file(path: Path | None, model: DiffusionModel) -> int | None:
    """The class that a picture's record names, or else the folder it is in, as the model numbers it."""
    if path is None:
        return None
    recorded = _recorded_class(path, model)
    if recorded is not None:
        return recorded
    folder = path.absolute().parent.name.casefold()
    named = [k for k, label in enumerate(model.labels or ()) if label.casefold() == folder]
    return named[0] if len(named) == 1 else None


def _recorded_class(path: Path, model: DiffusionModel) -> int | None:
    """A name counts where there is one; a bare number means something only to the model that made the picture."""
    try:
        record = read_record(path)
    except (OSError, SyntaxError, ValueError):
        return None
    name, number = record.get("class_name"), record.get("class")
    if model.labels is not None and name is not None:
        number = model.labels.index(name) if name in model.labels else None
    elif record.get("model") != model.digest:
        number = None
    return number if isinstance(number, int) and 0 <= number < (model.num_classes or 0) else None


def _background(value: object) -> int | tuple[int, int, int]:
    if isinstance(value, (list, tuple)):
        r, g, b = value
        return int(r), int(g), int(b)
    return int(str(value))


def finite(latents: Tensor, indices: Sequence[int]) -> Tensor:
    """Returns the latents of images on the CPU, in float32; ValueError with the images' numbers if not finite."""
    latents = latents.float().cpu()
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            f"latents of images {indices[0]} to {indices[-1]} are not finite: the network or the solver diverged. "
            "Check the weights, or encode in float32 if you used half precision"
        )
    return latents
