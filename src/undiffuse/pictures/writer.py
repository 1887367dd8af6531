"""Samples of a long job, written as they come, continued where the job stopped: PNG files, one npz, or both."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from undiffuse.pictures.arrays import Images, as_images
from undiffuse.pictures.names import output_names, sample_name
from undiffuse.pictures.npz import pack, packed_files, part_indices, write_part
from undiffuse.pictures.output_folder import claim_output
from undiffuse.pictures.png import check_record, parse_json, save_png
from undiffuse.pictures.stored import (
    NAMES,
    PARTS,
    RUN,
    file_labels,
    image_files,
    listed_names,
    pack_parts,
    packable,
    read_file,
)
from undiffuse.pictures.units import ENDINGS, save_image
from undiffuse.util.files import atomic_file, remove_leftovers

__all__ = ["SampleWriter"]

Format = Literal["png", "npz", "both", "png16", "tiff", "npy"]
_FORMATS = ("png", "npz", "both", "png16", "tiff", "npy")


class SampleWriter:
    """Streams the images of one run into ``folder`` and knows which are still to do.

    ``run`` holds everything that decides what the images look like (seed, model hash, solver, steps, guidance...); it
    must have a whole number "seed", is kept in ``run.json``, and only the same settings may continue in the same
    folder. ``notes`` may differ from one call to the next (version, device, time); PNG records carry both, with
    "index", "class" and "class_name".

    ``format`` "png": one file per image, ``003-Dress_seed0-000017.png``. "npz": batches in ``parts/`` until ``finish``
    packs them into ``samples_NxHxWxC.npz`` and removes them. "both": PNG files, and an npz packed from them.

    "png16", "tiff" and "npy": one file per image with the values in the units of ``value_range``, see `save_image`;
    ``write`` then takes float images in these units (``undiffuse.pixels.to_units``).

    ``names`` are those of the images that the run is made from, in the order of the indices: their files keep these
    names (`output_names`), which ``names.json`` lists. The folder must be empty, new, or of the same run: one that
    holds files of somebody else is refused, unless ``claimed`` says that it belonged to a run of ours.

    Nothing counts before it is whole: a killed job loses at most the batch it was writing. Several processes may write
    different images of the same run into one folder; one of them calls ``finish`` when all are done.

        writer = SampleWriter(folder, run={"seed": 0, "model": sha256, "steps": 250})
        for indices in batches_of(writer.missing(50_000)):
            writer.write(indices, images, labels)
        writer.finish(50_000)

    Raises ValueError when ``run`` is not JSON or has no seed, when the folder belongs to a run with other settings
    (which are listed), or when it holds samples of unknown settings; FileExistsError when it holds other files.
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
        value_range: tuple[float, float] | None = None,
        claimed: bool = False,
    ) -> None:
        if format not in _FORMATS:
            raise ValueError(f"format={format!r} is unknown: use {', '.join(map(repr, _FORMATS))}.")
        self.value_range = value_range
        self._ending = ENDINGS.get(format, ".png")
        self.names = None if names is None or format == "npz" else output_names(names, self._ending)
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
        self._claim(claimed)
        # Old enough that no other process of this run is still writing them.
        for place in (self.folder, self.folder / PARTS):
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
        wide = self.format in ("png16", "tiff", "npy")
        array = _as_values(images) if wide else as_images(images, any_channels=self.format == "npz")
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
            write_part(self.folder / PARTS, order, array, classes)
            return
        for k, image in enumerate(array):
            label = None if classes is None else int(classes[k])
            name = self.label_names[label] if label is not None and self.label_names is not None else None
            record = {**self.run, **self.notes, "index": int(order[k])}
            record |= {} if label is None else {"class": label}
            record |= {} if name is None else {"class_name": name}
            target = self.folder / self._name(int(order[k]), label, name)
            # Not durable: waiting for the disk each time is slow, and ``missing`` sees files that a power cut emptied.
            if wide:
                kind: Any = self.format
                save_image(target, image, kind, self.value_range, record=record, overwrite=True, durable=False)
            else:
                save_png(target, image, record, overwrite=True, durable=False)

    def _name(self, index: int, label: int | None, class_name: str | None) -> str:
        if self.names is None:
            return sample_name(index, self.seed, label, class_name, self._ending)
        if index >= len(self.names):
            raise ValueError(f"there is no name for image {index}: names holds {len(self.names)}.")
        return self.names[index]

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
            shape, labels = (total, *read_file(files[0]).shape), file_labels(files)
            result = pack(self.folder, shape, (read_file(file) for file in files), lambda: labels)
        elif self.format == "npz":
            ready = dict(packed_files(self.folder)).get(total)
            result = ready or pack_parts(self.folder, there, total)
            for part in (self.folder / PARTS).glob("part-*.npz"):
                if all(index < total for index in part_indices(part)):  # a part that reaches further is still needed
                    part.unlink()
        for place in (self.folder, self.folder / PARTS):
            remove_leftovers(place)
        if (self.folder / PARTS).is_dir() and not any((self.folder / PARTS).iterdir()):
            (self.folder / PARTS).rmdir()
        return result

    def _there(self) -> dict[int, Path]:
        """index -> file that holds it, as far as this format counts it."""
        return packable(self.folder) if self.format == "npz" else image_files(self.folder, self.seed)

    def _claim(self, claimed: bool) -> None:
        """Write ``run.json``, or check that the one there says the same."""
        file = self.folder / RUN
        if not file.exists():
            if self.folder.is_dir() and (image_files(self.folder) or packable(self.folder)):
                raise ValueError(
                    f"{self.folder} holds samples but no {RUN} that says how they were made: choose an empty folder."
                )
            if not claimed:
                claim_output(self.folder)
            with atomic_file(file, overwrite=True) as out:
                out.write((json.dumps(self.run, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
            self._claim_names()
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
        self._claim_names()

    def _claim_names(self) -> None:
        """Write ``names.json``, or check that the one there lists the same files."""
        theirs = listed_names(self.folder)
        if self.names is None and theirs is None:
            return
        if theirs is None and not image_files(self.folder):
            with atomic_file(self.folder / NAMES, overwrite=True) as out:
                out.write((json.dumps({"files": self.names}, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
        elif theirs != self.names:
            raise ValueError(f"{self.folder} holds images made from others than these: choose another folder.")


def _as_values(images: Images) -> np.ndarray:
    """Float images [N, H, W, C] in units."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype.kind not in "fu" or 0 in array.shape:
        shape = list(array.shape) if isinstance(array, np.ndarray) else type(images).__name__
        raise ValueError(f"expected float images [N, H, W, C] in units (undiffuse.pixels.to_units), got {shape}.")
    return array


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
