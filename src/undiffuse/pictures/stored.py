"""Samples on disk, read: folders of `SampleWriter`, finished or not, and packed npz files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from undiffuse.pictures.arrays import from_picture
from undiffuse.pictures.names import parse_name
from undiffuse.pictures.npz import load_npz, open_rows, pack, packed_files
from undiffuse.pictures.png import is_whole_png, open_picture
from undiffuse.pictures.units import format_of, load_image, preview, read_record
from undiffuse.util.limits import open_npz
from undiffuse.util.records import read_json
from undiffuse.util.store import Parts

__all__ = [
    "KEPT", "PARTS", "RUN", "Samples", "is_whole", "keeps_names", "packable", "packed_rows", "read_file",
    "read_samples", "sample_files", "sample_label", "sample_rows",
]  # fmt: skip

RUN = "run.json"
PARTS = "parts"
KEPT = "of the inputs"  # under "names" in run.json
_Row = tuple[np.ndarray, "int | None"]


class Samples(NamedTuple):
    """Images uint8 [N, H, W, C], labels int64 [N] (None when unconditional), and indices within the run int64 [N]."""

    images: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray


def keeps_names(folder: Path) -> bool:
    """Whether the samples in a folder have names of their own, so that only their records say what they are."""
    try:
        return read_json((folder / RUN).read_bytes(), RUN).get("names") == KEPT
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
        for file in sorted(file for ending in (".png", ".tiff", ".npy") for file in folder.rglob(f"*{ending}")):
            record = _record(file)
            index = record.get("index")
            if isinstance(index, int) and seed in (None, record.get("seed")):
                _add(found, index, file, folder)
        return found
    for file in folder.iterdir():
        name = parse_name(file.name)
        if name is not None and seed in (None, name.seed) and is_whole(file):
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
    order = sorted(files or packable(place))
    if not order:
        raise ValueError(
            f"{place} holds no samples: neither PNG files named like 003-Dress_seed0-000017.png nor samples_*.npz."
        )
    recorded = keeps_names(place)
    read = ((read_file(files[k]), sample_label(files[k], recorded)) for k in order)
    rows = list(read if files else sample_rows(place, order))
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


def packable(folder: Path) -> dict[int, Path]:
    """index -> part file, or packed file, that holds the image."""
    found, packed = Parts(folder / PARTS).found(), packed_files(folder)
    return {**found, **dict.fromkeys(range(packed[-1][0]), packed[-1][1])} if packed else found


def sample_rows(folder: Path, order: Sequence[int]) -> Iterator[_Row]:
    """(image, label) for every index of `order` (ascending), one image in memory for packed files, a batch for parts.

    A packed file holds 0, 1, 2, ..., so its images come first.
    """
    packed = packed_files(folder)
    count = min(packed[-1][0], len(order)) if packed else 0
    if count:
        with open_npz(packed[-1][1]) as archive:
            labels = archive["arr_1"] if "arr_1" in archive.files else None
        for k, image in enumerate(open_rows(packed[-1][1], count)):
            yield image, None if labels is None else int(labels[k])
    for row in Parts(folder / PARTS).rows(order[count:]):
        yield row["images"], int(row["labels"]) if "labels" in row else None


def packed_rows(folder: Path, total: int, rows: Iterator[_Row]) -> Path:
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


def is_whole(file: Path) -> bool:
    """Whether a file of one image is complete: a PNG as far as a look at its end can tell, others by reading them."""
    if file.suffix == ".png":
        return is_whole_png(file)
    try:
        load_image(file)
    except (OSError, ValueError):
        return False
    return True


def read_file(path: Path) -> np.ndarray:
    """Reads one image as uint8 [H, W, C]; values in units become levels by the run's value range.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        if format_of(path) == "png":
            with open_picture(path) as picture:
                return from_picture(picture)
        values, record = load_image(path)
        given = record.get("value_range") or _range_of(path.parent)
        return preview(values[None], None if given is None else (given[0], given[1]))[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the run will make it again.") from error


def _range_of(folder: Path) -> list[float] | None:
    """The value range that a run's settings name."""
    try:
        found = read_json((folder / RUN).read_bytes(), RUN).get("value_range")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) else None
