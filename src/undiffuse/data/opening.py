"""`open_data`: from what a user types to a labelled, checked source."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from undiffuse.data.arrays import open_npz
from undiffuse.data.channels import ValueRange
from undiffuse.data.decoding import IMAGE_SUFFIXES, MAX_PIXELS
from undiffuse.data.fashion import fashion_mnist
from undiffuse.data.labelled import label_files
from undiffuse.data.labels import apply_table
from undiffuse.data.screening import Check, OnBroken, OnTiny, screen
from undiffuse.data.sources import FolderSource, Source, ZipSource

__all__ = ["IMAGE_SUFFIXES", "NAMED_SETS", "open_data"]

NAMED_SETS = {"fashion-mnist": ("train", "test")}
"""Data sets known by name, with their splits; the first split is meant where none is given."""


def open_data(
    spec: str | Path,
    *,
    labels: str = "auto",
    label_names: Sequence[str] | None = None,
    on_broken: OnBroken = "refuse",
    on_tiny: OnTiny = "upscale",
    min_size: int | tuple[int, int] | None = None,
    check: Check = "auto",
    value_range: ValueRange | None = None,
    channels: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Open pictures for training, sampling statistics or inspection.

    Args:
        spec: a folder of images (searched recursively; hidden files are passed over), a ``.zip`` of the same, an
            ``.npz`` (``arr_0``, ``arr_1``), or a data set by name: ``fashion-mnist``, ``fashion-mnist:test``.
        labels: where labels come from. "folder": the first sub-folder; "prefix": the file name before its first
            underscore; the path of a CSV, TSV, JSON, JSONL or Parquet table (looked for as given, then inside the
            data), also as FILE:LABEL_COLUMN or FILE:FILE_COLUMN:LABEL_COLUMN[,LABEL_COLUMN...]; "none"; "auto": a table
            named labels.csv, .tsv, .jsonl, .json or .parquet inside the data, or a known one of another program, else
            sub-folders if every image lies in one and there are at least two, else none. An npz and a named set bring
            their own ("auto" or "none").
        label_names: an existing class table (of the training set, of a model) to number the labels by.
        on_broken: files that cannot be read, and with a table also files without a label and entries without a file:
            "refuse" (an error names them) or "skip" (they are left out and noted in ``source.excluded``).
        on_tiny: images smaller than `min_size`: "upscale" (they stay; `scan` counts them), "refuse" or "skip".
        min_size: pixels, one number or (height, width); usually the size to train at.
        check: how closely files are looked at now: "headers", "full" (decode everything), "none", or "auto" (full for
            small sets, headers above 256 MiB or 20,000 files). What a look at headers misses is found when it is read.
        value_range: the declared (low, high) of stored values; without one, pictures of floats and of 32-bit integers
            count as broken.
        channels: channels of the model; pictures that cannot have them count as broken. 0 takes any.
        max_pixels: larger pictures count as broken.

    Raises:
        ValueError: nothing there, no images, labels that do not fit, broken or tiny images that are refused.
        FileNotFoundError: there is no such path.
    """
    text = os.fspath(spec)
    name, _, split = text.partition(":")
    if name in NAMED_SETS:
        if labels not in ("auto", "none"):
            raise ValueError(f'{name} brings its own labels: expected labels="auto" or "none", got {labels!r}')
        source: Source = fashion_mnist(split or NAMED_SETS[name][0], labels=labels == "auto")
        return screen(_renumbered(source, label_names), on_tiny=on_tiny, min_size=min_size, check=check)
    path = Path(text).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"there is no folder or file {text}. Expected a folder of images, a .zip, an .npz, or one of the data sets "
            f"known by name: {', '.join(NAMED_SETS)}"
        )
    if path.suffix.lower() == ".npz":
        if labels not in ("auto", "none"):
            raise ValueError(f'the labels of an npz are its arr_1: expected labels="auto" or "none", got {labels!r}')
        source = open_npz(path, labels=labels == "auto", label_names=label_names)
        if not len(source):
            raise ValueError(f"{text} holds no images")
        return screen(source, on_tiny=on_tiny, min_size=min_size, check=check)
    if path.is_dir():
        names, sizes = _list_folder(path)
        source = FolderSource(path, names, sizes)
    elif path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        names, sizes = _list_zip(path)
        source = ZipSource(path, names, sizes)
    else:
        kind = "a single image; give the folder it is in" if path.suffix.lower() in IMAGE_SUFFIXES else "none of these"
        raise ValueError(f"{text} is {kind}. Expected a folder of images, a .zip of them, or an .npz")
    if not names:
        raise ValueError(f"{text} holds no images: looked everywhere inside for {', '.join(IMAGE_SUFFIXES)}")
    source.max_pixels = max_pixels
    return screen(
        label_files(source, labels, label_names, on_broken),
        check=check,
        on_broken=on_broken,
        on_tiny=on_tiny,
        min_size=min_size,
        value_range=value_range,
        channels=channels,
    )


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(
        part.startswith(".") or part == "__MACOSX" for part in parts
    )


def _list_folder(root: Path) -> tuple[list[str], list[int]]:
    """Names (relative, with "/") and sizes in bytes of all images under a folder, sorted; links are followed."""
    found: dict[str, int] = {}
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:  # os.walk would leave the folder out without a word
        raise error

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        base = Path(folder).relative_to(root).as_posix()
        for file in files:
            name = file if base == "." else f"{base}/{file}"
            if _is_image(name):
                try:
                    status = os.stat(os.path.join(folder, file))
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP):
                        raise
                    found[name] = 0  # a link to nowhere, or to itself, is a broken file, reported with the others
                    continue
                if not stat.S_ISREG(status.st_mode):
                    raise ValueError(f"{Path(folder) / file} is no file but a pipe, socket or device; move it away")
                found[name] = status.st_size
    names = sorted(found)
    return names, [found[name] for name in names]


def _list_zip(path: Path) -> tuple[list[str], list[int]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {
                info.filename: info for info in archive.infolist() if not info.is_dir() and _is_image(info.filename)
            }
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} cannot be read as a zip file: {error}") from error
    locked = [name for name, info in infos.items() if info.flag_bits & 1]
    if locked:
        raise ValueError(f"{path} is encrypted ({len(locked):,} of its images are); unpack it first")
    names = sorted(infos)
    return names, [infos[name].file_size for name in names]


def _renumbered(source: Source, label_names: Sequence[str] | None) -> Source:
    """A source of one's own numbered by an existing class table."""
    if label_names is not None and source.labels is not None and source.label_names is not None:
        values = [source.label_names[number] for number in source.labels]
        source.labels = apply_table(values, label_names, source.where)
        source.label_names = list(label_names)
    return source
