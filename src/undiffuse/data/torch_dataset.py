"""Data sets and data loaders of torch as data to train on.

A map-style data set (`__len__` and `__getitem__`) becomes a `Source`: its images come in the order of our runs, so a
resumed run is bit for bit the one that was not stopped. An iterable data set or a `DataLoader` decides its order
itself; it becomes a `StreamDataset`, whose order a resumed run cannot repeat.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.data import order
from undiffuse.data.batches import Batch
from undiffuse.data.dataset import DataConfig
from undiffuse.data.images import Picture, prepare
from undiffuse.data.labels import class_table
from undiffuse.data.sources import BrokenImageError, Excluded, Source
from undiffuse.data.torch_items import ItemReader, ValueRange, label_value, split_batch
from undiffuse.noise import seed_generator
from undiffuse.util.errors import ConfigError

__all__ = ["StreamDataset", "TorchSource", "is_map_style", "is_stream"]

_SAMPLED = 64  # items from which the value range is detected, and which a fingerprint covers
_RESUME = "the order of an iterable data set cannot be repeated: a resumed run sees other images than one not stopped"
_lock = threading.RLock()  # torch's generator is one for all threads


def is_map_style(data: Any) -> bool:
    """Returns whether an object has a length and items by number, as a map-style torch data set has."""
    plain = isinstance(data, (str, bytes, dict, np.ndarray, torch.Tensor))
    loader = isinstance(data, (torch.utils.data.DataLoader, torch.utils.data.IterableDataset))
    return not plain and not loader and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def is_stream(data: Any) -> bool:
    """Returns whether an object can only be iterated, as a data loader or an iterable torch data set."""
    plain = isinstance(data, (str, bytes, dict, np.ndarray, torch.Tensor))
    return not plain and not is_map_style(data) and hasattr(data, "__iter__")


@contextmanager
def _torch_seed(seed: int) -> Iterator[None]:
    """Inside the block torch's CPU generator is seeded; afterwards it is as it was. One thread at a time."""
    with _lock:
        before = torch.get_rng_state()
        seed_generator(torch.default_generator, seed)
        try:
            yield
        finally:
            torch.set_rng_state(before)


class TorchSource(Source):
    """A map-style torch data set.

    Random transforms that use torch's generator (as torchvision's do) are seeded by the position in the run's stream,
    so they augment and yet repeat exactly.

    Args:
        dataset: Items by number: an image, (image, label), or a dictionary ("image", "pixel_values" or "img"; "label"
            or "labels"). Images are PIL images, uint8 or float tensors [C, H, W], or NumPy arrays [H, W, C].
        class_names: Names of the classes; None takes the data set's own `classes`, or the labels that occur.
        value_range: (low, high) of float pixels; None detects [0, 1], [-1, 1] or [0, 255] from a sample.
        use_labels: False leaves labels out.

    Raises:
        ConfigError: The data set is empty, or its items are no images.
    """

    in_memory = True  # no decoding threads: the data set may not bear them
    augments = True

    def __init__(
        self,
        dataset: Any,
        *,
        class_names: Sequence[str] | None = None,
        value_range: ValueRange | None = None,
        use_labels: bool = True,
    ) -> None:
        self.dataset = dataset
        self._count = len(dataset)
        if self._count == 0:
            raise ConfigError("data", f"the data set {type(dataset).__name__} is empty")
        self._reader = ItemReader(value_range)
        where = f"torch data set {type(dataset).__name__}"
        sample = np.unique(np.linspace(0, self._count - 1, min(self._count, _SAMPLED)).astype(np.int64)).tolist()
        try:
            items = [self._reader.parts(self._item(i, i)) for i in sample]
            range_text = self._reader.detect([image for image, _ in items])
            again = [self._picture(i, i) for i in sample[:3]]
            repeats = all(_same(self._picture(i, i), seen) for i, seen in zip(sample[:3], again, strict=True))
            found = [label_value(label) for _, label in items] if use_labels else []
            values = self._all_labels(dict(zip(sample, found, strict=True))) if use_labels else None
            labels, names = _table(values, class_names or _class_names(dataset))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError("data", f"{where}: {error}") from error
        super().__init__(where, labels, names)
        remarks = [f"pixel values {range_text}"]
        if not repeats:
            remarks.append(
                "items change from one reading to the next although torch's generator is seeded: a resumed run is not "
                "bit for bit the same"
            )
        self.remarks = tuple(remarks)

    def __len__(self) -> int:
        return self._count

    def name(self, i: int) -> str:
        return f"{type(self.dataset).__name__}[{i}]"

    def image(self, i: int) -> Picture:
        return self.draw(i, i)

    def draw(self, i: int, seed: int) -> Picture:
        try:
            return self._picture(i, seed)
        except (ValueError, OSError) as error:
            raise BrokenImageError(self.name(i), str(error)) from error

    def _item(self, i: int, seed: int) -> Any:
        with _torch_seed(seed):
            return self.dataset[i]

    def _picture(self, i: int, seed: int) -> Picture:
        return self._reader.picture(self._reader.parts(self._item(i, seed))[0])

    def _all_labels(self, sample: dict[int, int | str | None]) -> list[int | str] | None:
        """The labels of all items: from the data set's own list if it agrees with the items, else from every item."""
        if all(label is None for label in sample.values()):
            return None
        listed = _listed_labels(self.dataset, self._count)
        if listed is not None and all(listed[i] == label for i, label in sample.items()):
            return listed
        values = [
            sample[i] if i in sample else label_value(self._reader.parts(self._item(i, i))[1]) for i in range(len(self))
        ]
        missing = [i for i, value in enumerate(values) if value is None]
        if missing:
            raise ValueError(f"{len(missing):,} of {len(values):,} items have no label, the first is item {missing[0]}")
        return [value for value in values if value is not None]

    def _content_hash(self) -> bytes:
        """SHA-256 of the number of items and the pixels of 64 evenly spaced ones."""
        sha = hashlib.sha256(f"torch {len(self)}".encode())
        for i in np.unique(np.linspace(0, len(self) - 1, min(len(self), _SAMPLED)).astype(np.int64)).tolist():
            array = np.ascontiguousarray(np.asarray(self.image(i)))
            sha.update(f"{array.dtype} {list(array.shape)}".encode())
            sha.update(array.tobytes())
        return sha.digest()


@dataclass(frozen=True)
class _StreamSource:
    """What is known of the images of a stream."""

    where: str
    label_names: list[str] | None
    fingerprint: str
    excluded: tuple[Excluded, ...] = ()

    def name(self, i: int) -> str:
        """The name of image i of the stream."""
        return f"{self.where}[{i}]"

    def class_counts(self) -> dict[str, int]:
        """Nothing: a stream is not counted."""
        return {}


class _Sample(Source):
    """The first images of a stream, to guess size and channels from."""

    in_memory = True

    def __init__(self, where: str, pictures: Sequence[Picture]) -> None:
        super().__init__(where)
        self._pictures = list(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, i: int) -> str:
        return f"{self.where}[{i}]"

    def image(self, i: int) -> Picture:
        return self._pictures[i]

    def _content_hash(self) -> bytes:
        return b"sample"


class StreamDataset:
    """An iterable torch data set or a data loader, prepared like our data sets.

    Every process of a distributed run reads the whole stream and trains on its share of each batch.

    Args:
        items: What is iterated, anew at the end of each pass. It yields items as for `TorchSource`, or batches of them.
        class_names: Names of the classes; needed for labels where the data set has no `classes`.
        value_range: (low, high) of float pixels; None detects it from the first items.
        use_labels: False leaves labels out.

    Raises:
        ConfigError: The stream is empty, its items are no images, or its classes are not known.
    """

    def __init__(
        self,
        items: Iterable[Any],
        *,
        class_names: Sequence[str] | None = None,
        value_range: ValueRange | None = None,
        use_labels: bool = True,
    ) -> None:
        self._items = items
        self._reader = ItemReader(value_range)
        self.where = f"torch data {type(items).__name__}"
        self.replaced: dict[int, str] = {}
        size = getattr(items, "batch_size", None)
        self.batch: int | None = size if isinstance(size, int) and size > 0 else None
        inner = getattr(items, "dataset", items)
        first = iter(items)
        head = list(islice((one for batch in first for one in split_batch(batch)), _SAMPLED))
        if not head:
            raise ConfigError("data", f"{self.where} yields no images")
        # An iterator cannot be started again: what was read is put back in front.
        self._pending = chain(head, (one for batch in first for one in split_batch(batch))) if first is items else None
        try:
            parts = [self._reader.parts(item) for item in head]
            text = self._reader.detect([image for image, _ in parts])
            pictures = [self._reader.picture(image) for image, _ in parts]
            labelled = use_labels and label_value(parts[0][1]) is not None
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError("data", f"{self.where}: {error}") from error
        names = list(class_names) if class_names is not None else _class_names(inner)
        if labelled and not names:
            raise ConfigError(
                "class_names",
                f"{self.where} yields labels, but how many classes there are is not known before its end: give "
                "class_names, or unconditional=True",
            )
        self.label_names = names if labelled else None
        self.sample: Source = _Sample(self.where, pictures)
        self.source = _StreamSource(self.where, self.label_names, f"stream of {type(items).__name__}")
        self.remarks = (f"pixel values {text}", _RESUME)
        self.config = DataConfig(path=self.where)

    def __len__(self) -> int:
        """The number of images if the stream knows it, else 0."""
        inner = getattr(self._items, "dataset", self._items)
        try:
            return len(inner)  # type: ignore[arg-type]
        except TypeError:
            return 0

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels."""
        return None if self.label_names is None else len(self.label_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return self.config.shape

    def prepared(self, config: DataConfig) -> StreamDataset:
        """Sets how images are prepared; returns the same data set."""
        self.config = config
        return self

    def stream(self, start: int, batch: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Yields endless batches; image n of the run is at position `start` + n of the new pass that begins here.

        Args:
            start: Images that the run has already seen.
            batch: Images per global batch.
            rank: This process.
            world_size: The number of processes.
        """
        each = batch // world_size
        first, items = start, self._endless()
        while True:
            taken = list(islice(items, batch))
            mine = range(rank * each, (rank + 1) * each)
            yield self._collate([(first + k, taken[k]) for k in mine])
            first += batch

    def _endless(self) -> Iterator[Any]:
        while True:
            count = 0
            pass_, self._pending = self._pending, None
            for item in pass_ if pass_ is not None else (i for b in self._items for i in split_batch(b)):
                count += 1
                yield item
            if count == 0:
                raise ValueError(
                    f"{self.where} has ended and cannot be iterated again: give a data set or data loader that can be, "
                    "or fewer images to train on"
                )

    def _collate(self, numbered: Sequence[tuple[int, Any]]) -> Batch:
        images: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        config = self.config
        for position, item in numbered:
            try:
                image, label = self._reader.parts(item)
                flip = config.flip and order.uniforms(config.seed, "flip", position, 1)[0] < 0.5
                crop = order.uniforms(config.seed, "crop", position, 3) if config.random_crop else None
                images.append(
                    prepare(
                        self._reader.picture(image),
                        config.size,
                        config.channels,
                        fit=config.fit,
                        flip=bool(flip),
                        crop=None if crop is None else (float(crop[0]), float(crop[1]), float(crop[2])),
                        background=config.background,
                        pad_value=config.pad_value,
                    )
                )
                if self.label_names is not None:
                    labels.append(_index(label_value(label), self.label_names))
            except (ValueError, OSError) as error:
                raise BrokenImageError(self.source.name(position), str(error)) from error
        positions = torch.tensor([position for position, _ in numbered], dtype=torch.int64)
        return Batch(
            images=torch.from_numpy(np.stack(images)),
            labels=torch.tensor(labels, dtype=torch.int64) if self.label_names is not None else None,
            positions=positions,
            indices=positions,
            names=tuple(self.source.name(position) for position, _ in numbered),
        )


def _same(a: Picture, b: Picture) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def _class_names(dataset: Any) -> list[str] | None:
    """The names that a data set has for its classes: `classes` (torchvision), or those of a `features` column."""
    inner = dataset
    while isinstance(inner, torch.utils.data.Subset):
        inner = inner.dataset
    names = getattr(inner, "classes", None)
    features = getattr(inner, "features", None)
    if names is None and isinstance(features, dict):
        names = next((getattr(features[key], "names", None) for key in ("label", "labels") if key in features), None)
    usable = isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names)
    return list(names) if usable else None  # type: ignore[arg-type]


def _listed_labels(dataset: Any, count: int) -> list[int | str] | None:
    """The labels that a data set lists beside its items (`targets`, `labels`), None if there is no usable list."""
    if isinstance(dataset, torch.utils.data.Subset):
        inner = _listed_labels(dataset.dataset, len(dataset.dataset))  # type: ignore[arg-type]
        return None if inner is None else [inner[int(i)] for i in dataset.indices]
    for name in ("targets", "labels"):
        listed = getattr(dataset, name, None)
        if listed is None or isinstance(listed, (str, dict)) or not hasattr(listed, "__len__") or len(listed) != count:
            continue
        try:
            values = [label_value(value) for value in listed]
        except ValueError:
            continue
        if all(value is not None for value in values):
            return [value for value in values if value is not None]
    return None


def _table(
    values: Sequence[int | str] | None, names: Sequence[str] | None
) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """(labels [N], class table) from labels as they are in the data."""
    if values is None:
        return None, None
    table = list(names) if names is not None else class_table({str(value) for value in values})
    if names is None:
        numbers = {name: k for k, name in enumerate(table)}
        return np.array([numbers[str(value)] for value in values], dtype=np.int64), table
    return np.array([_index(value, table) for value in values], dtype=np.int64), table


def _index(label: int | str | None, names: Sequence[str]) -> int:
    """The class index of a label, which is an index already or a name."""
    if isinstance(label, str) and label in names:
        return list(names).index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise ValueError(f"the label {label!r} is none of the {len(names)} classes")
