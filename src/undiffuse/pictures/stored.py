"""Samples on disk, read: folders of `SampleWriter`, finished or not, and packed npz files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from undiffuse.pictures.arrays import from_picture
from undiffuse.pictures.names import parse_name
from undiffuse.pictures.npz import load_npz, open_rows, pack, packed_files, part_indices, read_part
from undiffuse.pictures.png import is_whole_png, open_picture, parse_json
from undiffuse.pictures.units import load_image, preview

__all__ = [
    "NAMES", "PARTS", "RUN", "Samples", "file_labels", "image_files", "listed_names", "pack_parts", "packable",
    "read_file", "read_samples", "sample_files",
]  # fmt: skip

RUN = "run.json"
NAMES = "names.json"
PARTS = "parts"


class Samples(NamedTuple):
    """Images uint8 [N, H, W, C], labels int64 [N] (None when unconditional), and indices within the run int64 [N]."""

    images: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray


def read_samples(path: str | os.PathLike[str]) -> Samples:
    """The samples of an npz file in the original's layout, or of a folder of ``SampleWriter``, finished or not.

    In a folder, PNG files come before packed ones; the order is that of the indices. An npz is numbered 0..N-1.
    Raises FileNotFoundError when there is nothing at ``path``, ValueError when there are no samples in it or they do
    not go together.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist: give an npz file or a folder of samples.")
    if place.is_file():
        images, labels = load_npz(place)
        return Samples(images, labels, np.arange(len(images), dtype=np.int64))
    pngs = image_files(place)
    if pngs:
        order = sorted(pngs)
        pictures = [read_file(pngs[k]) for k in order]
        _one_shape({p.shape for p in pictures})
        return Samples(np.stack(pictures), file_labels([pngs[k] for k in order]), np.array(order, np.int64))
    packs = packable(place)
    if not packs:
        raise ValueError(
            f"{place} holds no samples: neither PNG files named like 003-Dress_seed0-000017.png nor samples_*.npz."
        )
    order = sorted(packs)
    rows, labels = zip(*_rows(packs, order), strict=True)
    _one_shape({row.shape for row in rows})
    return Samples(np.stack(rows), _all_labels(labels), np.array(order, np.int64))


def image_files(folder: Path, seed: int | None = None) -> dict[int, Path]:
    """index -> file of the whole PNG samples in a folder, of one seed or of any."""
    found: dict[int, Path] = {}
    listed = listed_names(folder)
    if listed is not None:
        return {k: folder / name for k, name in enumerate(listed) if _is_whole(folder / name)}
    for file in folder.iterdir():
        name = parse_name(file.name)
        if name is None or (seed is not None and name.seed != seed) or not _is_whole(file):
            continue
        if name.index in found:
            raise ValueError(
                f"{folder} holds image {name.index} twice ({found[name.index].name} and {file.name}): "
                "samples of two runs were put together. Remove one of them."
            )
        found[name.index] = file
    return found


def sample_files(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The files of the whole single samples in a folder, by ascending index, whether named by the run or by images."""
    return dict(sorted(image_files(Path(folder)).items()))


def _is_whole(file: Path) -> bool:
    if file.suffix == ".png":
        return is_whole_png(file)
    return file.is_file() and file.stat().st_size > 0


def listed_names(folder: Path) -> list[str] | None:
    """The files that ``names.json`` lists; None without one."""
    file = folder / NAMES
    if not file.is_file():
        return None
    try:
        found = parse_json(file.read_bytes(), str(file))
        names = found["files"]
        if not all(isinstance(name, str) and ".." not in Path(name).parts for name in names):
            raise ValueError("its names are no relative paths")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): restore it, or choose another folder.") from error
    return list(names)


def packable(folder: Path) -> dict[int, Path]:
    """index -> part file, or packed file, that holds the image."""
    found = {index: part for part in sorted((folder / PARTS).glob("part-*.npz")) for index in part_indices(part)}
    packed = packed_files(folder)
    return {**found, **dict.fromkeys(range(packed[-1][0]), packed[-1][1])} if packed else found


def _rows(files: Mapping[int, Path], order: Sequence[int]) -> Iterator[tuple[np.ndarray, int | None]]:
    """(image, label) for every index of ``order`` (ascending), with few files open and few batches in memory."""

    @lru_cache(maxsize=16)  # processes that share a run interleave their indices
    def load(path: Path) -> tuple[dict[int, int], np.ndarray, np.ndarray | None]:
        indices, images, labels = read_part(path)
        return {int(index): k for k, index in enumerate(indices)}, images, labels

    packed: Iterator[np.ndarray] | None = None
    packed_labels: np.ndarray | None = None
    for index in order:
        path = files[index]
        if path.parent.name == PARTS:
            where, images, labels = load(path)
            yield images[where[index]], None if labels is None else int(labels[where[index]])
            continue
        if packed is None:  # a packed file holds 0, 1, 2... so it is read from its beginning
            packed, packed_labels = open_rows(path, len(order)), _npz_labels(path)
        yield next(packed), None if packed_labels is None else int(packed_labels[index])


def pack_parts(folder: Path, files: Mapping[int, Path], total: int) -> Path:
    labels: list[int | None] = []
    first, _ = next(_rows(files, [0]))

    def images() -> Iterator[np.ndarray]:
        for image, label in _rows(files, range(total)):
            labels.append(label)  # noted in passing: ``pack`` asks for them after the last image
            yield image

    return pack(folder, (total, *first.shape), images(), lambda: _all_labels(labels))


def _npz_labels(path: Path) -> np.ndarray | None:
    with np.load(path, allow_pickle=False) as archive:
        return archive["arr_1"] if "arr_1" in archive.files else None


def file_labels(files: Sequence[Path]) -> np.ndarray | None:
    return _all_labels([_label_of(file) for file in files])


def _label_of(file: Path) -> int | None:
    name = parse_name(file.name)
    if name is not None:
        return name.label
    try:
        label = load_image(file)[1].get("class")
    except (OSError, ValueError):
        return None
    return label if isinstance(label, int) else None


def _all_labels(labels: Sequence[int | None]) -> np.ndarray | None:
    known = [label for label in labels if label is not None]
    if known and len(known) != len(labels):
        raise ValueError(
            f"{len(known)} of {len(labels)} images have labels: give labels with all images of a run, or with none."
        )
    return np.array(known, np.int64) if known else None


def _one_shape(shapes: set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise ValueError(
            f"the samples have several shapes ({', '.join(str(list(s)) for s in sorted(shapes))}): "
            "they come from different runs."
        )


def read_file(path: Path) -> np.ndarray:
    try:
        if path.suffix != ".png":
            values, record = load_image(path)
            given = record.get("value_range") or _range_of(path.parent)
            return preview(values[None], None if given is None else (given[0], given[1]))[0]
        with open_picture(path) as picture:
            if picture.mode.startswith("I;16"):
                values, record = load_image(path)
                given = record.get("value_range")
                return preview(values[None], None if given is None else (given[0], given[1]))[0]
            return from_picture(picture)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the run will make it again.") from error


def _range_of(folder: Path) -> list[float] | None:
    """The value range that a run's settings name."""
    try:
        run = parse_json((folder / RUN).read_bytes(), RUN)
        return run.get("value_range") if isinstance(run, dict) else None
    except (OSError, ValueError):
        return None
