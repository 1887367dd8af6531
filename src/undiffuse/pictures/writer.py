"""The sample store: the images of a long job as single files, as one npz, or as both; a stopped job resumes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from undiffuse.pictures.arrays import Images, as_images
from undiffuse.pictures.names import sample_name
from undiffuse.pictures.npz import packed_files
from undiffuse.pictures.output_folder import claim_output
from undiffuse.pictures.png import save_png
from undiffuse.pictures.stored import (
    KEPT,
    PARTS,
    RUN,
    is_whole,
    packable,
    packed_rows,
    read_file,
    sample_files,
    sample_label,
    sample_rows,
)
from undiffuse.pictures.units import ENDINGS, IN_UNITS, save_image
from undiffuse.util.files import remove_leftovers
from undiffuse.util.records import check_record
from undiffuse.util.store import Parts, Store, whole_numbers

__all__ = ["FORMATS", "SampleWriter"]

Format = Literal["png", "npz", "both", "png16", "tiff", "npy"]
FORMATS = ("png", "npz", "both", "png16", "tiff", "npy")


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
            "png16", "tiff" and "npy": one file per image, float values in units, see `save_image`.
        run: Everything that decides what the images look like (seed, model hash, solver, steps, guidance...). It must
            have a whole number "seed" and is kept in ``run.json``; only a run with the same settings resumes.
        notes: What may differ from one call to the next (version, device, time). PNG records carry `run` and `notes`,
            with "index", "class" and "class_name".
        label_names: The names of the classes, used in file names and records.
        value_range: (low, high) of the units in which "png16", "tiff" and "npy" are written, kept in `run.json`.
        names: A file name for each image, relative to `folder` and with the format's ending, in place of names
            made of class, seed and index. `run.json` then says so under "names".
        claimed: Whether the folder belonged to a run of ours whose samples were removed; other files may lie in it.

    Raises:
        ValueError: `run` is not JSON or has no seed, the folder belongs to a run with other settings (they are
            listed), or it holds samples without settings.
        FileExistsError: The folder holds files of which no run.json says that a run wrote them.
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
        if format not in FORMATS:
            raise ValueError(f"format={format!r} is unknown: use {', '.join(map(repr, FORMATS))}.")
        run = run if names is None else {**run, "names": KEPT}
        run = {**run, "format": format} if format in IN_UNITS else run  # 8 and 16 bits have the same file names
        run = run if value_range is None else {**run, "value_range": [float(value) for value in value_range]}
        super().__init__(folder, run, "samples")
        self.folder, self.format, self.notes = self.place, format, check_record(notes or {})
        self.label_names = None if label_names is None else [str(name) for name in label_names]
        self.value_range, self._ending = value_range, ENDINGS.get(format, ".png")
        self.names = None if names is None else [f"{str(name).removesuffix('.png')}{self._ending}" for name in names]
        seed = self.settings.get("seed")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"run needs a whole number 'seed' of 0 or more, got {seed!r}: files are named by it.")
        self.seed = seed
        self.parts = Parts(self.folder / PARTS)
        self._alike: tuple[tuple[int, ...], bool] | None = None  # shape and being labelled, of the first images written
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: give a folder for the samples.")
        self.folder.mkdir(parents=True, exist_ok=True)
        run_file = self.folder / RUN
        ours = bool(sample_files(self.folder) or packable(self.folder))
        if not (ours or claimed):
            claim_output(self.folder)
        self.claim(run_file, not run_file.exists() and ours)
        for place in (self.folder, self.parts.folder):
            remove_leftovers(place)

    @property
    def in_units(self) -> bool:
        """Whether `write` takes floats in units rather than uint8."""
        return self.format in IN_UNITS

    def done(self) -> dict[int, Path]:
        """The file that holds each image, by the image's index, as far as this format counts it."""
        if self.format == "npz":
            return packable(self.folder)
        if self.names is None:
            return sample_files(self.folder, self.seed)
        files = [self.folder / name for name in self.names]
        return {index: file for index, file in enumerate(files) if is_whole(file)}

    def write(
        self,
        indices: Sequence[int] | np.ndarray | Tensor,
        images: Images,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
        entries: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Puts one batch on disk. An image that is there already is replaced; as the run decides it, it is the same.

        Args:
            indices: Indices of the images within the run, [B].
            images: uint8 [B, H, W, C]; for "png16", "tiff" and "npy" floats in units, see `undiffuse.pixels.to_units`.
            labels: Classes of the images, [B], of a conditional run.
            entries: What else the record of each image says, B of them.

        Raises:
            ValueError: An index is given twice, a label has no name, or shapes differ from those of earlier images.
        """
        array = _as_values(images) if self.in_units else as_images(images, any_channels=self.format == "npz")
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
            record |= {} if entries is None else dict(entries[k])
            file = sample_name(index, self.seed, label, name, self._ending) if self.names is None else self.names[index]
            # Not durable: waiting for the disk each time is slow, and `missing` sees files that a power cut emptied.
            target, kind = self.folder / file, self.format
            if kind in ("png16", "tiff", "npy"):
                save_image(target, image, kind, self.value_range, record=record, overwrite=True, durable=False)
            else:
                save_png(target, image, record, overwrite=True, durable=False)

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
            rows = ((read_file(file), sample_label(file, recorded)) for file in files)
            result = packed_rows(self.folder, total, rows)
        elif self.format == "npz":
            ready = dict(packed_files(self.folder)).get(total)
            result = ready or packed_rows(self.folder, total, sample_rows(self.folder, range(total)))
            self.parts.remove(below=total)
        remove_leftovers(self.folder)
        return result


def _as_values(images: Images) -> np.ndarray:
    """Float images [N, H, W, C] in units."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype.kind not in "fu" or 0 in array.shape:
        shape = list(array.shape) if isinstance(array, np.ndarray) else type(images).__name__
        raise ValueError(f"expected float images [N, H, W, C] in units (undiffuse.pixels.to_units), got {shape}.")
    return array
