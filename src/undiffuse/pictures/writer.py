"""The sample store: the images of a long job as PNG files, as one npz, or as both, resumed where the job stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from undiffuse.pictures.arrays import Images, as_images, from_picture
from undiffuse.pictures.names import parse_name, sample_name
from undiffuse.pictures.npz import load_npz, open_rows, pack, packed_files
from undiffuse.pictures.png import is_whole_png, open_picture, read_record, save_png
from undiffuse.util.files import remove_leftovers
from undiffuse.util.records import check_record, read_json
from undiffuse.util.store import Parts, Store, whole_numbers

__all__ = ["RUN", "SampleWriter", "Samples", "keeps_names", "read_samples", "sample_files", "sample_label"]

Format = Literal["png", "npz", "both"]
RUN = "run.json"
_PARTS = "parts"
_KEPT = "of the inputs"  # under "names" in run.json
_Row = tuple[np.ndarray, "int | None"]


class Samples(NamedTuple):
    """Images uint8 [N, H, W, C], labels int64 [N] (None when unconditional), and indices within the run int64 [N]."""

    images: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray


class SampleWriter(Store):
    """Streams the images of one run into a folder and knows which are still to be made.

    Several processes may write different images of the same run into one folder; one of them calls `finish` when all
    are done. A killed job loses at most the batch it was writing.

    Example:
        writer = SampleWriter(folder, run={"seed": 0, "model": sha256, "steps": 250})
        for indices in batches_of(writer.missing(50_000)):
            writer.write(indices, images, labels)
        writer.finish(50_000)

    Args:
        folder: Where the images go.
        format: "png": one file per image, ``003-Dress_seed0-000017.png`` or as in `names`. "npz": batches in
            ``parts/``, which `finish` packs into ``samples_NxHxWxC.npz``. "both": PNG files, and an npz made of them.
        run: Everything that decides what the images look like (seed, model hash, solver, steps, guidance...). It must
            have a whole number "seed" and is kept in ``run.json``; only a run with the same settings resumes.
        notes: What may differ from one call to the next (version, device, time). PNG records carry `run` and `notes`,
            with "index", "class" and "class_name".
        label_names: The names of the classes, used in file names and records.
        names: A file name for each image, relative to `folder` and ending in .png, in place of names made of class,
            seed and index. `run.json` then says so under "names".

    Raises:
        ValueError: `run` is not JSON or has no seed, the folder belongs to a run with other settings (they are
            listed), or it holds samples without settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        format: Format = "png",
        *,
        run: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        label_names: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if format not in ("png", "npz", "both"):
            raise ValueError(f"format={format!r} is unknown: use 'png', 'npz' or 'both'.")
        super().__init__(folder, run if names is None else {**run, "names": _KEPT}, "samples")
        self.folder, self.format, self.notes = self.place, format, check_record(notes or {})
        self.label_names = None if label_names is None else [str(name) for name in label_names]
        self.names = None if names is None else [str(name) for name in names]
        seed = self.settings.get("seed")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"run needs a whole number 'seed' of 0 or more, got {seed!r}: files are named by it.")
        self.seed = seed
        self.parts = Parts(self.folder / _PARTS)
        self._alike: tuple[tuple[int, ...], bool] | None = None  # shape and being labelled, of the first images written
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: give a folder for the samples.")
        self.folder.mkdir(parents=True, exist_ok=True)
        run_file = self.folder / RUN
        self.claim(run_file, not run_file.exists() and bool(sample_files(self.folder) or _packable(self.folder)))
        # Old enough that no other process of this run is still writing them.
        for place in (self.folder, self.parts.folder):
            remove_leftovers(place, older_than=3600)

    def done(self) -> dict[int, Path]:
        """The file that holds each image, by the image's index, as far as this format counts it."""
        if self.format == "npz":
            return _packable(self.folder)
        if self.names is None:
            return sample_files(self.folder, self.seed)
        files = [self.folder / name for name in self.names]
        return {index: file for index, file in enumerate(files) if is_whole_png(file)}

    def write(
        self,
        indices: Sequence[int] | np.ndarray | Tensor,
        images: Images,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Puts one batch on disk. An image that is there already is replaced; as the run decides it, it is the same.

        Args:
            indices: Indices of the images within the run, [B].
            images: uint8 [B, H, W, C].
            labels: Classes of the images, [B], of a conditional run.

        Raises:
            ValueError: An index is given twice, a label has no name, or shapes differ from those of earlier images.
        """
        array = as_images(images)
        order = whole_numbers(indices, "indices", len(array))
        classes = None if labels is None else whole_numbers(labels, "labels", len(array))
        if len(set(order.tolist())) != len(order):
            raise ValueError("indices name the same image twice: every image of a run has one index.")
        if classes is not None and self.label_names is not None and classes.max() >= len(self.label_names):
            raise ValueError(f"label {classes.max()} has no name: label_names holds {len(self.label_names)}.")
        alike = (array.shape[1:], classes is not None)
        if self._alike not in (None, alike):
            raise ValueError(
                f"all images of a run have one shape, and all or none a label: {self._alike} before, {alike} now."
            )
        self._alike = alike
        if self.format == "npz":
            self.parts.write(order, images=array, labels=classes)
            return
        for k, image in enumerate(array):
            index, label = int(order[k]), None if classes is None else int(classes[k])
            name = self.label_names[label] if label is not None and self.label_names is not None else None
            record = {**self.settings, **self.notes, "index": index}
            record |= {} if label is None else {"class": label}
            record |= {} if name is None else {"class_name": name}
            file = sample_name(index, self.seed, label, name) if self.names is None else self.names[index]
            # Not durable: waiting for the disk each time is slow, and `missing` sees files that a power cut emptied.
            save_png(self.folder / file, image, record, overwrite=True, durable=False)

    def finish(self, total: int | None = None) -> Path:
        """Closes the run.

        Args:
            total: Number of images of the run; by default those that are there.

        Returns:
            The npz file, or for "png" the folder.

        Raises:
            ValueError: Images are missing, they differ in shape, or only some have labels.
        """
        there = self.done()
        total = max(there, default=-1) + 1 if total is None else total
        self.require(total)
        result = self.folder
        if self.format == "both":
            files, recorded = [there[k] for k in range(total)], self.names is not None
            rows = ((_read_png(file), sample_label(file, recorded)) for file in files)
            result = _packed(self.folder, total, rows)
        elif self.format == "npz":
            ready = dict(packed_files(self.folder)).get(total)
            result = ready or _packed(self.folder, total, _rows(self.folder, range(total)))
            self.parts.remove(below=total)
        remove_leftovers(self.folder)
        return result


def keeps_names(folder: Path) -> bool:
    """Whether the samples in a folder have names of their own, so that only their records say what they are."""
    try:
        return read_json((folder / RUN).read_bytes(), RUN).get("names") == _KEPT
    except (OSError, ValueError):
        return False


def sample_files(folder: Path, seed: int | None = None) -> dict[int, Path]:
    """Finds the whole PNG samples in a folder of `SampleWriter`.

    Args:
        folder: The folder.
        seed: Only samples of this seed; None takes any.

    Returns:
        The file of each image, by the image's index.

    Raises:
        ValueError: Two files hold the same image.
    """
    found: dict[int, Path] = {}
    if keeps_names(folder):
        for file in sorted(folder.rglob("*.png")):
            record = _record(file)
            index = record.get("index")
            if isinstance(index, int) and seed in (None, record.get("seed")):
                _add(found, index, file, folder)
        return found
    for file in folder.iterdir():
        name = parse_name(file.name)
        if name is not None and seed in (None, name.seed) and is_whole_png(file):
            _add(found, name.index, file, folder)
    return found


def sample_label(file: Path, recorded: bool) -> int | None:
    """The class of a PNG sample by its name, or with `recorded` by its record; None without classes."""
    if recorded:
        label = _record(file).get("class")
        return label if isinstance(label, int) else None
    name = parse_name(file.name)
    return None if name is None else name.label


def read_samples(path: str | os.PathLike[str]) -> Samples:
    """Reads the samples of an npz file in the original's layout, or of a folder of `SampleWriter`, finished or not.

    In a folder, PNG files come before packed ones; the order is that of the indices. An npz is numbered 0..N-1.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It holds no samples, or samples that do not go together.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist: give an npz file or a folder of samples.")
    if place.is_file():
        images, labels = load_npz(place)
        return Samples(images, labels, np.arange(len(images), dtype=np.int64))
    files = sample_files(place)
    order = sorted(files or _packable(place))
    if not order:
        raise ValueError(
            f"{place} holds no samples: neither PNG files named like 003-Dress_seed0-000017.png nor samples_*.npz."
        )
    recorded = keeps_names(place)
    read = ((_read_png(files[k]), sample_label(files[k], recorded)) for k in order)
    rows = list(read if files else _rows(place, order))
    shapes = {image.shape for image, _ in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"the samples have several shapes ({', '.join(str(list(s)) for s in sorted(shapes))}): "
            "they come from different runs."
        )
    classes = _all_labels([label for _, label in rows])
    return Samples(np.stack([image for image, _ in rows]), classes, np.array(order, np.int64))


def _record(file: Path) -> dict[str, Any]:
    try:
        return read_record(file)
    except (OSError, ValueError):
        return {}


def _add(found: dict[int, Path], index: int, file: Path, folder: Path) -> None:
    if index in found:
        raise ValueError(
            f"{folder} holds image {index} twice ({found[index].name} and {file.name}): "
            "samples of two runs were put together. Remove one of them."
        )
    found[index] = file


def _packable(folder: Path) -> dict[int, Path]:
    """index -> part file, or packed file, that holds the image."""
    found, packed = Parts(folder / _PARTS).found(), packed_files(folder)
    return {**found, **dict.fromkeys(range(packed[-1][0]), packed[-1][1])} if packed else found


def _rows(folder: Path, order: Sequence[int]) -> Iterator[_Row]:
    """(image, label) for every index of `order` (ascending), one image in memory for packed files, a batch for parts.

    A packed file holds 0, 1, 2, ..., so its images come first.
    """
    packed = packed_files(folder)
    count = min(packed[-1][0], len(order)) if packed else 0
    if count:
        with np.load(packed[-1][1], allow_pickle=False) as archive:
            labels = archive["arr_1"] if "arr_1" in archive.files else None
        for k, image in enumerate(open_rows(packed[-1][1], count)):
            yield image, None if labels is None else int(labels[k])
    for row in Parts(folder / _PARTS).rows(order[count:]):
        yield row["images"], int(row["labels"]) if "labels" in row else None


def _packed(folder: Path, total: int, rows: Iterator[_Row]) -> Path:
    """The rows as one npz in the original's layout."""
    labels: list[int | None] = []
    first = next(rows)

    def images() -> Iterator[np.ndarray]:
        labels.append(first[1])
        yield first[0]
        for image, label in rows:
            labels.append(label)  # noted in passing: `pack` asks for them after the last image
            yield image

    return pack(folder, (total, *first[0].shape), images(), lambda: _all_labels(labels))


def _all_labels(labels: Sequence[int | None]) -> np.ndarray | None:
    known = [label for label in labels if label is not None]
    if known and len(known) != len(labels):
        raise ValueError(
            f"{len(known)} of {len(labels)} images have labels: give labels with all images of a run, or with none."
        )
    return np.array(known, np.int64) if known else None


def _read_png(path: Path) -> np.ndarray:
    try:
        with open_picture(path) as picture:
            return from_picture(picture)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the run will make it again.") from error
