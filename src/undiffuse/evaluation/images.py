"""Sets of images to evaluate: stored ones, and those that a model makes when they are needed."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.data import ArraySource, DataConfig, FolderSource, ImageDataset, Source, open_data, open_npz
from undiffuse.data.channels import ValueRange, values_of
from undiffuse.data.decoding import Picture, PictureInfo, describe
from undiffuse.data.formats.samples import files_of_run
from undiffuse.data.screening import Check, OnBroken, default_workers, screen
from undiffuse.data.sources import BrokenImageError, SubsetSource
from undiffuse.metrics import MetricError
from undiffuse.pictures.npz import packed_files
from undiffuse.pictures.stored import read_file
from undiffuse.pictures.units import IN_UNITS, load_image, preview
from undiffuse.util.errors import ConfigError
from undiffuse.util.progress import NoProgress
from undiffuse.util.text import count_of, one_line

__all__ = ["ImageSet", "MadeImages", "StoredImages", "class_warnings", "open_images", "range_of_run"]

RUN = "run.json"  # written by `undiffuse sample` beside its images
LOSSY = (".jpg", ".jpeg", ".webp")
GREY_MODES = {"1", "L", "LA", "I;16", "I;16B", "I"}
LOOKED_AT = 64  # pictures whose pixel format decides between grey and colour


class ImageSet(ABC):
    """Numbered uint8 images [H, W, C] of one size that can be read in any order.

    Args:
        where: One line for people.
        shape: Height, width and channels of an image.
        labels: Class of each image, int64 [N]; None without classes.
        label_names: Names of the classes.
        about: Where the images come from, for the report: anything that JSON can hold.
        warnings: What a reader of the numbers should know.
    """

    def __init__(
        self,
        where: str,
        shape: tuple[int, int, int],
        labels: NDArray[np.int64] | None,
        label_names: Sequence[str] | None,
        about: Mapping[str, Any],
        warnings: Sequence[str] = (),
    ) -> None:
        self.where, self.shape = where, shape
        self.labels, self.label_names = labels, label_names
        self.about = dict(about)
        self.warnings = [*warnings, *class_warnings(labels, label_names)]
        self.progress: NoProgress | None = None  # advanced by one for each image that a model makes, in parts

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, uint8 [B, H, W, C]."""

    def key(self, start: int, stop: int) -> str | None:
        """Returns a name of these images that is known before they exist; None if only their pixels identify them."""
        return None


class StoredImages(ImageSet):
    """A prepared data set as an `ImageSet`.

    Of data with a value range the low end becomes 0 and the high end 255, rounded; values beyond it are clipped.

    Args:
        dataset: The images. With `on_broken="skip"` all of them are decoded now, and those that cannot be are left out
            with a warning. Otherwise an image that cannot be decoded is an error that names it.
        about: Added to what the report says of the images.
        warnings: What a reader of the numbers should know.
    """

    def __init__(
        self, dataset: ImageDataset, *, about: Mapping[str, Any] | None = None, warnings: Sequence[str] = ()
    ) -> None:
        if dataset.config.on_broken == "skip":
            left = screen(dataset.source, check="full", on_broken="skip")
            warnings = [*warnings, *_left_out(left)]
            dataset = ImageDataset(left, dataset.config)
        self.dataset = dataset
        source = dataset.source
        about = {"kind": "stored", "fingerprint": source.fingerprint, **(about or {})}
        super().__init__(source.where, dataset.shape, source.labels, source.label_names, about, warnings)

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, uint8 [B, H, W, C]; BrokenImageError names one that cannot be read."""
        pixels = self._pixels(start, stop)
        if start == 0 and len(pixels) > 1 and int(pixels.max()) <= 1 and not self.in_units:
            raise MetricError(
                f"{self.where}: all pixels of the first {len(pixels)} images are 0 or 1, as of images in [0, 1] that "
                "were made whole numbers without a factor of 255; expected uint8 in 0..255"
            )
        return pixels

    def _pixels(self, start: int, stop: int) -> Tensor:
        raw = _slice(self.dataset.source, start, stop)
        if raw is not None and raw.shape[1:] == self.shape and raw.dtype == np.uint8 and not self.in_units:
            return torch.from_numpy(np.array(raw))
        numbers = range(start, stop)
        if self.dataset.source.in_memory:
            pixels = np.stack([self.dataset.plain(i).image for i in numbers])
        else:
            with ThreadPoolExecutor(default_workers()) as pool:
                pixels = np.stack(list(pool.map(lambda i: self.dataset.plain(i).image, numbers)))
        return torch.from_numpy(pixels) if pixels.dtype == np.uint8 else torch.from_numpy(preview(pixels, (-1.0, 1.0)))

    @property
    def in_units(self) -> bool:
        """Whether the pixels are values of a range."""
        return self.dataset.config.value_range is not None


def _slice(source: Source, start: int, stop: int) -> NDArray[np.uint8] | None:
    """Returns images of an array [B, H, W, C] without decoding one by one; None for other sources."""
    if isinstance(source, SubsetSource) and isinstance(source.parent, ArraySource):
        part = source.parent.images[source.indices[start:stop]]
    elif isinstance(source, ArraySource):
        part = source.images[start:stop]
    else:
        return None
    return part[..., None] if part.ndim == 3 else part


def _left_out(source: Source) -> list[str]:
    count = len(source.excluded)
    return [f"{count_of(count, 'unreadable image')} {'was' if count == 1 else 'were'} left out"] if count else []


class MadeImages(ImageSet):
    """Images that a model makes when the extractor needs them; nothing is written to the disk.

    Args:
        make: Takes numbers of images and returns them, uint8 [B, H, W, C]; image i depends on i only.
        count: Number of images.
        shape: Height, width and channels of an image.
        where: One line for people.
        identity: Everything that decides what the images look like (weights, sampler, seed, classes). It names cached
            features.
        batch: Images made at once.
        labels: Class of each image, int64 [N].
        label_names: Names of the classes.
    """

    def __init__(
        self,
        make: Callable[[list[int]], Tensor],
        count: int,
        shape: tuple[int, int, int],
        *,
        where: str,
        identity: Mapping[str, Any],
        batch: int = 64,
        labels: NDArray[np.int64] | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        if count < 1:
            raise MetricError(f"at least one image must be made, got {count}")
        super().__init__(where, shape, labels, label_names, {"kind": "made", **identity})
        self.make = make
        self.count = count
        self.batch_size = batch
        self._identity = json.dumps(dict(identity), sort_keys=True, default=str)

    def __len__(self) -> int:
        return self.count

    def batch(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, made now."""
        numbers = list(range(start, stop))
        size = self.batch_size
        parts = [self.make(numbers[k : k + size]) for k in range(0, len(numbers), size)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def key(self, start: int, stop: int) -> str | None:
        """Returns a name made of the identity and the numbers."""
        return hashlib.sha256(f"{self._identity}\n{start}\n{stop}".encode()).hexdigest()


def class_warnings(labels: NDArray[np.int64] | None, names: Sequence[str] | None) -> list[str]:
    """Returns warnings about unequal classes: distances compare the mixture of classes too."""
    if labels is None or names is None or not len(labels):
        return []
    counts = np.bincount(labels, minlength=len(names))
    if int(counts.min()) == 0:
        missing = int((counts == 0).sum())
        return [f"{missing} of {len(names)} classes have no image"]
    if int(counts.max()) > 1.5 * int(counts.min()):
        return [f"classes are not equally frequent: {int(counts.min())} to {int(counts.max())} images"]
    return []


def open_images(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: Literal["crop", "pad"] = "crop",
    pad_value: int = 0,
    count: int | None = None,
    first: bool = False,
    labels: str = "auto",
    label_names: Sequence[str] | None = None,
    on_broken: OnBroken = "refuse",
    value_range: ValueRange | None = None,
) -> StoredImages:
    """Opens a folder, .zip, .npz (memory-mapped), known data set, or the output of `undiffuse sample` for evaluation.

    Args:
        path: Where the images are, or the name of a data set.
        size: Prepares the images to this size (one number, or height and width) as for training, see
            `undiffuse.data.prepare`. None takes them as they are, and then all of them must have one size.
        channels: 1 or 3; None takes them as stored.
        fit: "crop" covers the size and cuts the centre, "pad" adds a border.
        pad_value: Grey level of that border, 0 to 255.
        count: Number of images to take: evenly spaced over the set, or the first ones.
        first: Takes the first `count` images.
        labels: How the labels are found, see `undiffuse.data.open_data`.
        label_names: Names of the classes that the labels are numbered by.
        on_broken: "refuse" raises an error for unreadable images. "skip" decodes all images once now, leaves the
            unreadable ones out and adds a warning.
        value_range: (low, high) of the stored values that become 0 and 255. Pixels of floats and of integers other than
            uint8 need it; samples of undiffuse carry it themselves.

    Raises:
        ConfigError: Pixels that need a value range ("value_range").
        ValueError: Sizes that differ, too few images, unreadable images, or labels that do not fit.
        FileNotFoundError: There is no such path.
    """
    path_ = Path(path)
    about: dict[str, Any] = {}
    warnings: list[str] = []
    samples = _samples(path_)
    # A look at headers misses files that were cut short. Those left out must be known before anything is measured.
    check: Check = "full" if on_broken == "skip" else "headers"
    if samples is not None:
        source, about = samples
        source, value_range = screen(source, check=check, on_broken=on_broken), None  # levels of their own range
    else:
        wanted: Any = "found" if value_range is None else value_range
        source = open_data(
            path, labels=labels, label_names=label_names, on_broken=on_broken, check=check, value_range=wanted
        )
        if value_range is None:
            warnings += _undeclared(source)
    warnings += _left_out(source)
    if count is not None and count > len(source):
        raise MetricError(f"{source.where} has {len(source):,} images, fewer than the {count:,} to take")
    if count is not None and count < len(source):
        chosen = np.arange(count) if first else np.arange(count) * len(source) // count
        source = source.subset(chosen)
    found, alpha = _channels(source)
    if alpha:
        warnings.append("images with transparency were laid on white")
    lossy = _lossy(source)
    if lossy:
        warnings.append(
            f"{lossy:,} of {len(source):,} images are stored lossily (JPEG, WebP), which changes distances: compare "
            "with lossless images"
        )
    config = DataConfig(
        path=str(path),
        size=_one_size(source) if size is None else size,
        channels=channels or found,
        fit=fit,
        pad_value=pad_value,
        labels=labels if labels in ("auto", "none") else "auto",
        value_range=value_range,
    )
    if config.value_range is not None:
        about["value_range"] = list(config.value_range)
    about["preparation"] = "as stored" if size is None else f"{fit} to {_times(config.shape)}"
    return StoredImages(ImageDataset(source, config), about=about, warnings=warnings)


def _undeclared(source: Source) -> list[str]:
    """Warns of pixels of 16 bits; ConfigError for pixels that say nothing about black and white."""
    largest = 0
    for i in np.unique(np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).astype(np.int64)):
        try:
            if source.value_range is not None and source.info(int(i)).value_range == source.value_range:
                continue  # its own record says so
            picture = source.image(int(i))
        except BrokenImageError:
            continue
        info = describe(picture)
        if info.depth in ("int", "float") or (source.in_memory and info.depth != "8"):
            values = values_of(picture)
            seen = f", {one_line(source.name(int(i)))} has {float(np.nanmin(values)):g}..{float(np.nanmax(values)):g}"
            raise ConfigError(
                "value_range",
                f"is missing: {source.where} holds {info.mode} and not uint8{seen}; give the values of black and "
                "white, for example 0,1",
            )
        largest = max(largest, int(values_of(picture).max())) if info.depth == "16" else largest
    if not largest:
        return []
    return [f"16-bit values were divided by 257, so that the brightest is {largest / 257:.0f} of 255; declare "
            "value_range if white is another value"]  # fmt: skip


def range_of_run(path: Any) -> ValueRange | None:
    """The value range of the model whose samples lie in a folder; None for anything else."""
    if not isinstance(path, (str, Path)):
        return None
    place = Path(path)
    file = (place if place.suffix.lower() != ".npz" else place.parent) / RUN
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("value_range")
        return None if found is None else (float(found[0]), float(found[1]))
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return None


class _InUnits(FolderSource):
    """Samples in the units of a model's value range, which becomes 0..255."""

    def image(self, i: int) -> Picture:
        file = self.root / self.names[i]
        channels = load_image(file)[0].shape[-1]
        if channels not in (1, 3, 4):
            raise MetricError(f"{file} has {channels} channels; metrics take grey and RGB images")
        try:
            return read_file(file)
        except (OSError, ValueError) as error:
            raise BrokenImageError(self.names[i], str(error)) from error

    def info(self, i: int) -> PictureInfo:
        return describe(self.image(i))


def _samples(path: Path) -> tuple[Source, dict[str, Any]] | None:
    """Opens what `undiffuse sample` wrote to a folder (not its grid), with the run's record; None for anything else."""
    folder = path if path.is_dir() else path.parent
    if not (folder / RUN).is_file() or (path.is_file() and path not in [file for _, file in packed_files(folder)]):
        return None
    try:
        record = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MetricError(f"{folder / RUN} cannot be read ({error}): the record of the samples beside it") from error
    about = {"record": record}
    if path.is_file():
        return open_npz(path), about
    names, sizes, numbers = files_of_run(folder)
    if not names:
        packed = packed_files(folder)
        if not packed:
            raise MetricError(f"{folder} holds the record of a sampling run but no samples; finish it first")
        return open_npz(packed[-1][1]), about
    known = [label for label in numbers if label is not None]
    classes: NDArray[np.int64] | None = None
    table: list[str] | None = None
    if len(known) == len(numbers):
        classes = np.array(known, dtype=np.int64)
        table = [str(k) for k in range(int(classes.max()) + 1)]
    kind = _InUnits if record.get("format") in IN_UNITS or record.get("value_range") is not None else FolderSource
    return kind(folder, names, sizes, labels=classes, label_names=table), about


def _channels(source: Source) -> tuple[int, bool]:
    """Returns the channels as stored (1 if all pictures that are tried are grey) and whether some have alpha."""
    grey, alpha = True, False
    for i in np.unique(np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).astype(np.int64)):
        picture = source.image(int(i))
        if isinstance(picture, np.ndarray):
            deep = 1 if picture.ndim == 2 else picture.shape[2]
            return deep if deep != 4 else 3, deep == 4
        grey &= picture.mode in GREY_MODES
        alpha |= picture.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in picture.info
    return 1 if grey else 3, alpha


def _one_size(source: Source) -> tuple[int, int]:
    """Returns height and width of all images; MetricError names two that differ."""
    whole = _slice(source, 0, 1)
    if whole is not None:
        return int(whole.shape[1]), int(whole.shape[2])
    with ThreadPoolExecutor(default_workers()) as pool:
        sizes = list(pool.map(source.stored_size, range(len(source))))
    for i, size in enumerate(sizes):
        if size != sizes[0]:
            raise ConfigError(
                "size",
                f"images differ in size: {one_line(source.name(0))} is {sizes[0][0]}x{sizes[0][1]}, "
                f"{one_line(source.name(i))} is {size[0]}x{size[1]}; give the size to prepare them to, "
                "for example 256 (cuts the centre)",
            )
    return sizes[0][1], sizes[0][0]


def _lossy(source: Source) -> int:
    if _slice(source, 0, 1) is not None:
        return 0
    return sum(source.name(i).lower().endswith(LOSSY) for i in range(len(source)))


def _times(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
