"""`ImageDataset`: image number p of a run's stream, a pure function of (source, config, p)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from undiffuse.data import order
from undiffuse.data.channels import ValueRange, check_value_range
from undiffuse.data.conditions import prepare_partner
from undiffuse.data.decoding import MAX_PIXELS, describe
from undiffuse.data.formats.base import Frames, Layout
from undiffuse.data.images import Picture, prepare, size_pair
from undiffuse.data.labels import join_names
from undiffuse.data.opening import open_data
from undiffuse.data.patches import TiledSource
from undiffuse.data.screening import Check, OnBroken, OnTiny, screen
from undiffuse.data.sources import BrokenImageError, Source

__all__ = ["DataConfig", "Example", "ImageDataset", "check_trainable"]

_Crop = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pictures, and how they are prepared.

    Attributes:
        path: folder, file, part of a data set or named set, as `open_data` takes it.
        labels: "auto", "none", "folder", "prefix", a table, or the name of a field, as `open_data` takes it.
        size: pixels, one number (square) or (height, width).
        channels: 1 grey, 3 RGB, 4 RGBA; any other number takes pictures of that many channels as they are.
        fit: "crop" (ADM's: cover and cut the centre) or "pad" (constant border, 28 -> 32).
        flip: mirror every second image on average, at random.
        random_crop: ADM's random crop, as for its classifier, instead of the centre.
        background: grey 0..255 or (R, G, B) behind transparent pixels, where alpha is not kept.
        pad_value: the border of fit="pad", 0..255.
        on_broken: unreadable files: "refuse" or "skip".
        on_tiny: images smaller than `size` (with fit="crop"): "upscale", "refuse" or "skip".
        check: how closely files are looked at on opening: "auto", "none", "headers" or "full".
        workers: decoding threads; None chooses the number, 0 decodes in the calling thread. Results never differ.
        seed: decides the order, flips, crops and random patches.
        value_range: (low, high) of the stored values that become -1 and 1, in the units of the data, for pictures of
            more than 8 bits; None takes 8-bit levels (16 bits are divided by 257).
        patches: None prepares whole pictures. "random" cuts a window of `size` pixels at random from each picture,
            "tiled" cuts every picture into windows that cover it; neither resizes.
        max_pixels: pictures with more pixels count as broken.
        frames: "first" or "all" frames of files that hold several.
        layout: the axes of arrays of pictures: "auto", "HWC" or "CHW".
        conditions: what belongs to each picture besides its class, as `condition_specs.attach` takes it.
    """

    path: str
    labels: str = "auto"
    size: int | tuple[int, int] = 64
    channels: int = 3
    fit: Literal["crop", "pad"] = "crop"
    flip: bool = False
    random_crop: bool = False
    background: int | tuple[int, int, int] = 255
    pad_value: int = 0
    on_broken: OnBroken = "refuse"
    on_tiny: OnTiny = "upscale"
    check: Check = "auto"
    workers: int | None = None
    seed: int = 0
    value_range: ValueRange | None = None
    patches: Literal["random", "tiled"] | None = None
    max_pixels: int = MAX_PIXELS
    frames: Frames = "first"
    layout: Layout = "auto"
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size_pair(self.size)
        object.__setattr__(self, "conditions", tuple(self.conditions))
        object.__setattr__(self, "value_range", check_value_range(self.value_range))
        if self.channels < 1:
            raise ValueError(f"channels={self.channels}: expected 1 (grey), 3 (RGB), 4 (RGBA) or another number from 2")
        if self.patches not in (None, "random", "tiled"):
            raise ValueError(f'patches={self.patches!r}: expected None, "random" or "tiled"')
        if self.frames not in ("first", "all") or self.layout not in ("auto", "HWC", "CHW"):
            raise ValueError(
                f'frames={self.frames!r}, layout={self.layout!r}: expected "first" or "all", and "auto", "HWC" or "CHW"'
            )
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels}: expected at least 1")
        if self.fit not in ("crop", "pad"):
            raise ValueError(f'fit={self.fit!r}: expected "crop" or "pad"')
        colour = (self.background,) if isinstance(self.background, int) else tuple(self.background)
        if len(colour) not in (1, 3) or not all(0 <= value <= 255 for value in (*colour, self.pad_value)):
            raise ValueError(
                f"background={self.background!r}, pad_value={self.pad_value!r}: expected 0..255 (background also "
                "as three of them)"
            )
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers}: expected 0 or more, or None")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is out of range: expected an integer from 0 to 2**64 - 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every prepared image."""
        return (*size_pair(self.size), self.channels)

    def open(self, label_names: Sequence[str] | None = None) -> Source:
        """The source alone, checked as the config says; `label_names` is an existing class table."""
        source = open_data(
            self.path,
            labels=self.labels,
            label_names=label_names,
            on_broken=self.on_broken,
            on_tiny=self.on_tiny,
            min_size=self.size if self.fit == "crop" else None,
            check=self.check,
            value_range=self.value_range,
            channels=self.channels,
            max_pixels=self.max_pixels,
            frames=self.frames,
            layout=self.layout,
        )
        return self._tiled(self._attached(source))

    def _attached(self, source: Source) -> Source:
        from undiffuse.data.condition_specs import attach

        return attach(source, self) if self.conditions else source

    def _tiled(self, source: Source) -> Source:
        if self.patches != "tiled":
            return source
        if source.conditions is not None and source.conditions.partners is not None:
            raise ValueError("tiled patches have no partners: give condition pictures with random patches or none")
        return TiledSource(source, size_pair(self.size))

    def checked(self, source: Source) -> Source:
        """A source that is open already, without what the config refuses or skips, and cut into tiles if it says so.

        Raises:
            ValueError: broken or tiny pictures that are refused.
        """
        source = screen(
            source,
            check=self.check,
            on_broken=self.on_broken,
            on_tiny=self.on_tiny,
            min_size=self.size if self.fit == "crop" else None,
            value_range=self.value_range,
            channels=self.channels,
        )
        return self._tiled(self._attached(source))

    def build(self, label_names: Sequence[str] | None = None) -> ImageDataset:
        """The data set: `open` and prepare."""
        return ImageDataset(self.open(label_names), self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Settings that came later are left out where they have their defaults."""
        plain = dataclasses.asdict(self)
        later = {
            "value_range": None, "patches": None, "max_pixels": MAX_PIXELS, "frames": "first", "layout": "auto",
            "conditions": (),
        }  # fmt: skip
        return {key: value for key, value in plain.items() if key not in later or value != later[key]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataConfig:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: a field that does not exist.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown data settings {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prepared picture.

    Attributes:
        image: uint8 [H, W, C], or float32 in [-1, 1] with a value range.
        label: its class, or None.
        index: its number in the source.
        position: its place in the stream.
        cond_image: its partner, prepared like it, see `conditions.prepare_partner`; None without.
    """

    image: NDArray[Any]
    label: int | None
    index: int
    position: int
    cond_image: NDArray[Any] | None = None


class ImageDataset:
    """Prepared pictures of a source, in the order of a run.

    `example(p)` depends on (source, config, p) only: the permutation of the epoch, the flip and the crop are drawn by a
    counter-based generator from (seed, p). No state is kept, so any thread, rank or resumed run may ask for any p.

    With on_broken="skip", a picture that turns out broken only when it is read is replaced by the next readable one of
    the source, again a pure function of p; `replaced` notes which and why.
    """

    def __init__(self, source: Source, config: DataConfig) -> None:
        if len(source) == 0:
            raise ValueError(f"{source.where} holds no images")
        self.source, self.config = source, config
        self.replaced: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def label_names(self) -> list[str] | None:
        """The class table; None without labels."""
        return self.source.label_names

    @property
    def num_classes(self) -> int | None:
        """The number of classes in the table; None without labels."""
        return None if self.label_names is None else len(self.label_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return self.config.shape

    def epoch_of(self, position: int) -> int:
        """The epoch, from 0, that a position lies in."""
        return order.epoch_of(position, len(self))

    def example(self, position: int) -> Example:
        """The image at a position 0, 1, 2, ... of the endless stream, augmented as configured.

        Raises:
            ValueError: a negative position.
            BrokenImageError: its file cannot be read, and on_broken is "refuse" (or nothing readable is left).
        """
        config, index = self.config, order.index_at(self.config.seed, position, len(self))
        flip = config.flip and order.uniforms(config.seed, "flip", position, 1)[0] < 0.5
        crop = order.uniforms(config.seed, "crop", position, 3) if config.random_crop else None
        draws = None if crop is None else (float(crop[0]), float(crop[1]), float(crop[2]))
        patch = order.uniforms(config.seed, "patch", position, 2) if config.patches == "random" else None
        place = (0.5, 0.5) if patch is None else (float(patch[0]), float(patch[1]))
        tries = len(self) if config.on_broken == "skip" else 1
        for step in range(tries):
            candidate = (index + step) % len(self)
            if candidate in self.replaced and step + 1 < tries:
                continue
            try:
                image, partner = self._pair(candidate, self._drawn(candidate, position), bool(flip), draws, place)
            except BrokenImageError as error:
                if step + 1 == tries:
                    raise
                self.replaced[candidate] = error.reason
                continue
            label = self.source.label(candidate)
            return Example(image=image, label=label, index=candidate, position=position, cond_image=partner)
        raise AssertionError("unreachable: the last try returns or raises")

    def plain(self, index: int) -> Example:
        """Image `index` of the source without augmentation (centre crop or patch, no flip); its position is its index.

        Raises:
            BrokenImageError: its file cannot be read.
        """
        image, partner = self._pair(index, self.source.image(index), False, None, (0.5, 0.5))
        label = self.source.label(index)
        return Example(image=image, label=label, index=index, position=index, cond_image=partner)

    def partner(self, index: int) -> NDArray[Any]:
        """The prepared partner of image `index`, without augmentation and without reading the image itself.

        Raises:
            BrokenImageError: its file cannot be read.
        """
        partner = self._partner(index, self.source.stored_size(index), False, None, (0.5, 0.5))
        assert partner is not None
        return partner

    def _drawn(self, index: int, position: int) -> Picture:
        if not self.source.augments:
            return self.source.image(index)
        return self.source.draw(index, order.item_seed(self.config.seed, position))

    def _pair(
        self, index: int, picture: Picture, flip: bool, crop: _Crop | None, place: tuple[float, float]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """A picture and its partner, prepared alike; None without partners."""
        found = self.source.conditions
        partner = None
        if found is not None and found.partners is not None:
            shape = describe(picture)
            partner = self._partner(index, (shape.width, shape.height), flip, crop, place)
        return self._prepared(index, picture, flip, crop, place), partner

    def _partner(
        self, index: int, like: tuple[int, int], flip: bool, crop: _Crop | None, place: tuple[float, float]
    ) -> NDArray[Any] | None:
        found, config = self.source.conditions, self.config
        if found is None or found.partners is None:
            return None
        try:
            return prepare_partner(
                found.partners.picture(index),
                found.partners.condition,
                config.size,
                like=like,
                fit=config.fit,
                flip=flip,
                crop=crop,
                patch=place if config.patches == "random" else None,
                background=config.background,
                pad_value=config.pad_value,
            )
        except (ValueError, OSError) as error:
            reason = error.reason if isinstance(error, BrokenImageError) else str(error)
            named = f"{self.source.name(index)} (its partner {found.partners.name(index)})"
            raise BrokenImageError(named, reason) from error

    def _prepared(
        self,
        index: int,
        picture: Picture,
        flip: bool,
        crop: _Crop | None,
        place: tuple[float, float],
    ) -> NDArray[Any]:
        config = self.config
        wide = config.value_range is None and self.source.value_range is not None and describe(picture).depth != "8"
        try:
            image = prepare(
                picture,
                config.size,
                config.channels,
                fit=config.fit,
                flip=flip,
                crop=crop,
                background=config.background,
                pad_value=config.pad_value,
                value_range=self.source.value_range if wide else config.value_range,
                patch=place if config.patches == "random" else None,
            )
            return np.floor((image + 1) * 127.5 + 0.5).astype(np.uint8) if wide else image
        except (ValueError, OSError) as error:
            raise BrokenImageError(self.source.name(index), str(error)) from error


def check_trainable(dataset: ImageDataset, batch: int, conditional: bool) -> None:
    """Refuse what cannot be trained on, before anything expensive starts.

    Args:
        dataset: the training images.
        batch: images of a global batch.
        conditional: whether the model takes class labels (or is a classifier).

    Raises:
        ValueError: fewer images than a batch; no labels, or one class only, for a conditional model.
    """
    source = dataset.source
    if batch < 1:
        raise ValueError(f"batch size {batch}: expected at least 1")
    if len(dataset) < batch:
        raise ValueError(
            f"{source.where} has {len(dataset):,} usable images, fewer than one batch of {batch:,}. "
            f"Choose a batch of at most {len(dataset):,}, or add images"
        )
    if not conditional:
        return
    if source.labels is None and source.vectors is not None:
        names = join_names(source.vector_names or [], 6)
        what = "several labels for each image" if source.multi_hot else "numbers, not classes,"
        raise ValueError(
            f"{source.where} has {what} ({names}), and a class-conditional model or a classifier needs one class for "
            'each. Name a column of classes, labels="TABLE:COLUMN", or train without labels, labels="none"'
        )
    if source.labels is None:
        raise ValueError(
            f"{source.where} has no labels, which a class-conditional model or a classifier needs. Put each class in a "
            'sub-folder of its name, or name the labels: labels="prefix", "folder", or a CSV or JSONL table'
        )
    counts = {name: count for name, count in source.class_counts().items() if count}
    if len(counts) < 2:
        raise ValueError(
            f"{source.where}: all {len(dataset):,} images are of one class, {next(iter(counts))!r}. A conditional "
            "model or a classifier needs at least two; train without labels, or check where the labels come from"
        )
