"""Folders of samples that this library wrote: the images of the run, without its grid and whatever else lies there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from undiffuse.data.decoding import Picture, PictureInfo, describe, without_alpha
from undiffuse.data.formats import npz
from undiffuse.data.formats.base import Reading, with_labels
from undiffuse.data.sources import BrokenImageError, FolderSource, Source
from undiffuse.pictures.names import parse_name
from undiffuse.pictures.npz import packed_files
from undiffuse.pictures.stored import RUN, keeps_names, sample_files, sample_label
from undiffuse.pictures.units import ENDINGS, load_image, read_record

__all__ = ["files_of_run", "open", "recognise", "record_of"]


def recognise(path: Path) -> bool:
    """A folder with the settings of a sampling run, which a training run has not."""
    return path.is_dir() and (path / RUN).is_file() and record_of(path) is not None


def record_of(folder: Path) -> dict[str, Any] | None:
    """The settings of the run whose samples lie in a folder; None if there is none."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(found, dict) and isinstance(found.get("seed"), int) and "request" not in found
    return found if ours else None


def files_of_run(folder: Path) -> tuple[list[str], list[int], list[int | None]]:
    """The names, sizes in bytes and classes of the samples in a folder, in the order of the run."""
    if keeps_names(folder):  # results of an edit, which only their records tell apart from other images
        found = [(index, file, sample_label(file, recorded=True)) for index, file in sample_files(folder).items()]
    else:
        named = ((file, parse_name(file.name)) for file in folder.iterdir())
        found = [(name.index, file, name.label) for file, name in named if name is not None]
    found.sort()
    files = [file for _, file, _ in found]
    names = [file.relative_to(folder).as_posix() for file in files]
    return names, [file.stat().st_size for file in files], [label for *_, label in found]


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The samples, with their classes.

    Raises:
        ValueError: there are none yet.
    """
    record = record_of(path) or {}
    names, sizes, labels = files_of_run(path)
    if not names:
        packed = packed_files(path)
        if not packed:
            raise ValueError(f"{path} holds the {RUN} of a sampling run but no samples: finish the run first")
        source = npz.open(packed[-1][1], reading)
        source.notes.append(f"samples in {packed[-1][1].name}")
        return source
    arrays = record.get("format") == "npy"
    files = (_ArrayFiles if arrays else FolderSource)(path, names, sizes)
    files.where = f"samples {path}"
    if arrays:
        low, high = record.get("value_range") or (0.0, 255.0)
        files.value_range = (float(low), float(high))
    endings = set(ENDINGS.values())
    others = sum(file.suffix in endings and file.is_file() for file in path.rglob("*")) - len(names)
    if others > 0:
        files.left_out["other images in the folder of the samples"] = others
    return _labelled(files, path, names, labels, reading)


class _ArrayFiles(FolderSource):
    """Images that are npy files, in the units of a value range."""

    def image(self, i: int) -> Picture:
        try:
            return without_alpha(load_image(self.root / self.names[i])[0])
        except ValueError as error:
            raise BrokenImageError(self.names[i], str(error)) from error

    def info(self, i: int) -> PictureInfo:
        return describe(self.image(i))


def _labelled(source: Source, path: Path, names: list[str], labels: list[int | None], reading: Reading) -> Source:
    known = [label for label in labels if label is not None]
    if reading.of_files or len(known) < len(names):
        source.labels_settled = not reading.of_files
        return source
    words: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        if label is not None and label not in words:
            words[label] = _class_name(path / name, label)
    return with_labels(source, [words[label] for label in known], reading, field="the classes of the run")


def _class_name(file: Path, label: int) -> str:
    """The name in a sample's record, or in its file name; else the number."""
    try:
        return str(read_record(file).get("class_name") or label)
    except (OSError, SyntaxError, ValueError):
        word = file.name.partition("-")[2].rpartition("_seed")[0]
        return word or str(label)
