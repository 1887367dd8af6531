"""Samples of a long job, written as they come, continued where the job stopped: PNG files, one npz, or both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from undiffuse.pictures.arrays import Images, as_images, from_picture
from undiffuse.pictures.names import parse_name, sample_name
from undiffuse.pictures.npz import load_npz, open_rows, pack, packed_files, part_indices, read_part, write_part
from undiffuse.pictures.png import check_record, is_whole_png, open_picture, parse_json, save_png
from undiffuse.util.files import atomic_file, remove_leftovers

__all__ = ["SampleWriter", "Samples", "read_samples"]

Format = Literal["png", "npz", "both"]
_RUN = "run.json"
_PARTS = "parts"


class Samples(NamedTuple):
    """Images uint8 [N, H, W, C], labels int64 [N] (None when unconditional), and indices within the run int64 [N]."""

    images: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray


class SampleWriter:
    """Streams the images of one run into ``folder`` and knows which are still to do.

    ``run`` holds everything that decides what the images look like (seed, model hash, solver, steps, guidance...); it
    must have a whole number "seed", is kept in ``run.json``, and only the same settings may continue in the same
    folder. ``notes`` may differ from one call to the next (version, device, time); PNG records carry both, with
    "index", "class" and "class_name".

    ``format`` "png": one file per image, ``003-Dress_seed0-000017.png``. "npz": batches in ``parts/`` until ``finish``
    packs them into ``samples_NxHxWxC.npz`` and removes them. "both": PNG files, and an npz packed from them.

    Nothing counts before it is whole: a killed job loses at most the batch it was writing. Several processes may write
    different images of the same run into one folder; one of them calls ``finish`` when all are done.

        writer = SampleWriter(folder, run={"seed": 0, "model": sha256, "steps": 250})
        for indices in batches_of(writer.missing(50_000)):
            writer.write(indices, images, labels)
        writer.finish(50_000)

    Raises ValueError when ``run`` is not JSON or has no seed, when the folder belongs to a run with other settings
    (which are listed), or when it holds samples of unknown settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        format: Format = "png",
        *,
        run: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        if format not in ("png", "npz", "both"):
            raise ValueError(f"format={format!r} is unknown: use 'png', 'npz' or 'both'.")
        self.folder, self.format = Path(folder), format
        self.run, self.notes = check_record(run), check_record(notes or {})
        self.label_names = None if label_names is None else [str(name) for name in label_names]
        seed = self.run.get("seed")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"run needs a whole number 'seed' of 0 or more, got {seed!r}: files are named by it.")
        self.seed = seed
        self._alike: tuple[tuple[int, ...], bool] | None = None  # shape and being labelled, of the first images written
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: give a folder for the samples.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim()
        # Old enough that no other process of this run is still writing them.
        for place in (self.folder, self.folder / _PARTS):
            remove_leftovers(place, older_than=3600)

    def missing(self, total: int) -> list[int]:
        """The indices of 0..total-1 that are not on disk yet, ascending."""
        if total < 0:
            raise ValueError(f"total={total}: give the number of images of the whole run.")
        there = self._there()
        return [index for index in range(total) if index not in there]

    def write(
        self,
        indices: Sequence[int] | np.ndarray | Tensor,
        images: Images,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Put uint8 ``images`` [B, H, W, C] with their ``indices`` [B] and (if conditional) ``labels`` [B] on disk.

        An image that is there already is replaced; as the run decides it, it is the same image.
        """
        array = as_images(images)
        order = _whole_numbers(indices, "indices", len(array))
        classes = None if labels is None else _whole_numbers(labels, "labels", len(array))
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
            write_part(self.folder / _PARTS, order, array, classes)
            return
        for k, image in enumerate(array):
            label = None if classes is None else int(classes[k])
            name = self.label_names[label] if label is not None and self.label_names is not None else None
            record = {**self.run, **self.notes, "index": int(order[k])}
            record |= {} if label is None else {"class": label}
            record |= {} if name is None else {"class_name": name}
            target = self.folder / sample_name(int(order[k]), self.seed, label, name)
            # Not durable: waiting for the disk each time is slow, and ``missing`` sees files that a power cut emptied.
            save_png(target, image, record, overwrite=True, durable=False)

    def finish(self, total: int | None = None) -> Path:
        """Close the run of ``total`` images (default: those there are) and return the npz, or for "png" the folder.

        Raises ValueError when images are missing, or when they differ in shape or only some have labels.
        """
        there = self._there()
        total = max(there, default=-1) + 1 if total is None else total
        absent = [index for index in range(total) if index not in there]
        if absent or total < 1:
            some = ", ".join(str(index) for index in absent[:5]) + (", ..." if len(absent) > 5 else "")
            raise ValueError(
                f"{len(absent)} of {total} images are not there yet ({some or 'nothing was written'}): "
                f"make those of missing({total}) first."
            )
        result = self.folder
        if self.format == "both":
            files = [there[k] for k in range(total)]
            shape, labels = (total, *_read_png(files[0]).shape), _png_labels(files)
            result = pack(self.folder, shape, (_read_png(file) for file in files), lambda: labels)
        elif self.format == "npz":
            ready = dict(packed_files(self.folder)).get(total)
            result = ready or _pack_parts(self.folder, there, total)
            for part in (self.folder / _PARTS).glob("part-*.npz"):
                if all(index < total for index in part_indices(part)):  # a part that reaches further is still needed
                    part.unlink()
        for place in (self.folder, self.folder / _PARTS):
            remove_leftovers(place)
        if (self.folder / _PARTS).is_dir() and not any((self.folder / _PARTS).iterdir()):
            (self.folder / _PARTS).rmdir()
        return result

    def _there(self) -> dict[int, Path]:
        """index -> file that holds it, as far as this format counts it."""
        return _packable(self.folder) if self.format == "npz" else _pngs(self.folder, self.seed)

    def _claim(self) -> None:
        """Write ``run.json``, or check that the one there says the same."""
        file = self.folder / _RUN
        if not file.exists():
            if _pngs(self.folder) or _packable(self.folder):
                raise ValueError(
                    f"{self.folder} holds samples but no {_RUN} that says how they were made: choose an empty folder."
                )
            with atomic_file(file, overwrite=True) as out:
                out.write((json.dumps(self.run, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
            return
        try:
            theirs = parse_json(file.read_bytes(), str(file))
        except ValueError as error:
            raise ValueError(f"{error}: restore it, or choose another folder.") from error
        if not isinstance(theirs, dict):
            raise ValueError(f"{file} does not hold the settings of a run: restore it, or choose another folder.")
        there, here = _flat(theirs), _flat(self.run)
        absent = object()
        differing = [key for key in sorted({*there, *here}) if there.get(key, absent) != here.get(key, absent)]
        if differing:
            listed = "\n".join(
                f"  {key}: {_shown(there.get(key, absent), absent)} there, {_shown(here.get(key, absent), absent)} now"
                for key in differing
            )
            raise ValueError(
                f"{self.folder} holds samples of a run with other settings:\n{listed}\n"
                "A folder holds one run, so that it can be repeated and continued: choose another folder, "
                "repeat the settings of the first run to continue it, or delete the folder."
            )


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
    pngs = _pngs(place)
    if pngs:
        order = sorted(pngs)
        pictures = [_read_png(pngs[k]) for k in order]
        _one_shape({p.shape for p in pictures})
        return Samples(np.stack(pictures), _png_labels([pngs[k] for k in order]), np.array(order, np.int64))
    packable = _packable(place)
    if not packable:
        raise ValueError(
            f"{place} holds no samples: neither PNG files named like 003-Dress_seed0-000017.png nor samples_*.npz."
        )
    order = sorted(packable)
    rows, labels = zip(*_rows(packable, order), strict=True)
    _one_shape({row.shape for row in rows})
    return Samples(np.stack(rows), _all_labels(labels), np.array(order, np.int64))


def _pngs(folder: Path, seed: int | None = None) -> dict[int, Path]:
    """index -> file of the whole PNG samples in a folder, of one seed or of any."""
    found: dict[int, Path] = {}
    for file in folder.iterdir():
        name = parse_name(file.name)
        if name is None or (seed is not None and name.seed != seed) or not is_whole_png(file):
            continue
        if name.index in found:
            raise ValueError(
                f"{folder} holds image {name.index} twice ({found[name.index].name} and {file.name}): "
                "samples of two runs were put together. Remove one of them."
            )
        found[name.index] = file
    return found


def _packable(folder: Path) -> dict[int, Path]:
    """index -> part file, or packed file, that holds the image."""
    found = {index: part for part in sorted((folder / _PARTS).glob("part-*.npz")) for index in part_indices(part)}
    packed = packed_files(folder)
    return {**found, **dict.fromkeys(range(packed[-1][0]), packed[-1][1])} if packed else found


def _rows(packable: Mapping[int, Path], order: Sequence[int]) -> Iterator[tuple[np.ndarray, int | None]]:
    """(image, label) for every index of ``order`` (ascending), with few files open and few batches in memory."""

    @lru_cache(maxsize=16)  # processes that share a run interleave their indices
    def load(path: Path) -> tuple[dict[int, int], np.ndarray, np.ndarray | None]:
        indices, images, labels = read_part(path)
        return {int(index): k for k, index in enumerate(indices)}, images, labels

    packed: Iterator[np.ndarray] | None = None
    packed_labels: np.ndarray | None = None
    for index in order:
        path = packable[index]
        if path.parent.name == _PARTS:
            where, images, labels = load(path)
            yield images[where[index]], None if labels is None else int(labels[where[index]])
            continue
        if packed is None:  # a packed file holds 0, 1, 2... so it is read from its beginning
            packed, packed_labels = open_rows(path, len(order)), _npz_labels(path)
        yield next(packed), None if packed_labels is None else int(packed_labels[index])


def _pack_parts(folder: Path, packable: Mapping[int, Path], total: int) -> Path:
    labels: list[int | None] = []
    first, _ = next(_rows(packable, [0]))

    def images() -> Iterator[np.ndarray]:
        for image, label in _rows(packable, range(total)):
            labels.append(label)  # noted in passing: ``pack`` asks for them after the last image
            yield image

    return pack(folder, (total, *first.shape), images(), lambda: _all_labels(labels))


def _npz_labels(path: Path) -> np.ndarray | None:
    with np.load(path, allow_pickle=False) as archive:
        return archive["arr_1"] if "arr_1" in archive.files else None


def _png_labels(files: Sequence[Path]) -> np.ndarray | None:
    names = [parse_name(file.name) for file in files]
    return _all_labels([name.label for name in names if name is not None])


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


def _read_png(path: Path) -> np.ndarray:
    try:
        with open_picture(path) as picture:
            return from_picture(picture)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the run will make it again.") from error


def _whole_numbers(values: Sequence[int] | np.ndarray | Tensor, name: str, count: int) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iu" or (array < 0).any():
        raise ValueError(
            f"{name} must be {count} whole numbers of 0 or more, one for each image, "
            f"got {array.dtype} of shape {list(array.shape)}."
        )
    return array.astype(np.int64)


def _shown(value: Any, absent: object) -> str:
    """A setting in a few words: hashes shortened, long values cut."""
    if value is absent:
        return "not set"
    if isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value):
        return f"{value[:12]}..."
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, to say exactly which differ."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }
