"""`open_data`: from what a user types to a labelled, checked source."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from undiffuse.data.channels import ValueRange
from undiffuse.data.decoding import IMAGE_SUFFIXES, MAX_PIXELS
from undiffuse.data.fashion import fashion_mnist
from undiffuse.data.formats.base import Frames, Layout, Reading
from undiffuse.data.formats.files import without_part
from undiffuse.data.formats.frames import with_frames
from undiffuse.data.formats.registry import find_format, inner_folder
from undiffuse.data.formats.spans import expand_braces, is_url
from undiffuse.data.labelled import label_files
from undiffuse.data.labels import apply_table, join_names
from undiffuse.data.ranges import recorded_range
from undiffuse.data.remarks import remarks_of
from undiffuse.data.screening import Check, OnBroken, OnTiny, screen
from undiffuse.data.sources import FileSource, Source

__all__ = ["IMAGE_SUFFIXES", "NAMED_SETS", "WEIGHT_SUFFIXES", "is_data", "open_data", "split_part"]

NAMED_SETS = {"fashion-mnist": ("train", "test")}
"""Data sets known by name, with their splits; the first split is meant where none is given."""

WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pt2", ".onnx")
"""Files of weights of other programs."""


def open_data(
    spec: str | Path,
    *,
    labels: str = "auto",
    label_names: Sequence[str] | None = None,
    on_broken: OnBroken = "refuse",
    on_tiny: OnTiny = "upscale",
    min_size: int | tuple[int, int] | None = None,
    check: Check = "auto",
    value_range: ValueRange | Literal["found"] | None = None,
    channels: int = 0,
    max_pixels: int = MAX_PIXELS,
    frames: Frames = "first",
    layout: Layout = "auto",
) -> Source:
    """Open pictures for training, sampling statistics or inspection.

    Args:
        spec: a folder, a file, or a data set by name (``fashion-mnist``, ``fashion-mnist:test``). docs/formats.md lists
            the formats, which are recognised by their names and contents. ``PATH:PART`` opens a part of a data set that
            has several: ``train`` (the default), ``validation``, ``test``, a name that the data gives, or ``all``.
            Addresses (``https://.../shard-{000..015}.tar``) are WebDataset shards, read through fsspec.
        labels: where labels come from. "folder": the first sub-folder; "prefix": the file name before its first
            underscore; the path of a CSV, TSV, JSON, JSONL or Parquet table (looked for as given, then inside the
            data), also as FILE:LABEL_COLUMN or FILE:FILE_COLUMN:LABEL_COLUMN[,LABEL_COLUMN...]; "none"; "auto": a table
            named labels.csv, .tsv, .jsonl, .json or .parquet inside the data, or a known one of another program, else
            sub-folders if every image lies in one and there are at least two, else none. Formats that hold labels bring
            their own: "auto", "none", or the name of the field that holds them.
        label_names: an existing class table (of the training set, of a model) to number the labels by.
        on_broken: files that cannot be read, images without a label where others have one, and entries of a table
            without a file: "refuse" (an error names them) or "skip" (they are left out and noted in
            ``source.excluded``).
        on_tiny: images smaller than `min_size`: "upscale" (they stay; `scan` counts them), "refuse" or "skip".
        min_size: pixels, one number or (height, width); usually the size to train at.
        check: how closely files are looked at now: "headers", "full" (decode everything), "none", or "auto" (full for
            small sets, headers above 256 MiB or 20,000 files). What a look at headers misses is found when it is read.
        value_range: the declared (low, high) of stored values; None takes what the format declares, and without that
            pictures of floats and of 32-bit integers are refused. "found" takes the smallest and largest value that
            are there, to look at the pictures, not to train.
        channels: channels of the model; pictures that cannot have them count as broken. 0 takes any.
        max_pixels: larger pictures count as broken.
        frames: "first" or "all" frames of files that hold several (TIFF, GIF, WebP, APNG).
        layout: the axes of arrays of pictures: "auto", "HWC" or "CHW".

    Returns:
        The pictures. ``source.format`` names the format, ``source.notes`` says what was taken and from where,
        ``source.left_out`` and ``source.held_out`` count what was not.

    Raises:
        ValueError: nothing there, no images, labels that do not fit, broken or tiny images that are refused, a format
            that needs a package that is not installed.
        FileNotFoundError: there is no such path.
    """
    text = os.fspath(spec)
    name, _, split = text.partition(":")
    if name in NAMED_SETS:
        if labels not in ("auto", "none"):
            raise ValueError(f'{name} brings its own labels: expected labels="auto" or "none", got {labels!r}')
        source: Source = fashion_mnist(split or NAMED_SETS[name][0], labels=labels == "auto")
        return screen(_renumbered(source, label_names), on_tiny=on_tiny, min_size=min_size, check=check)
    path, part = split_part(text)
    reading = Reading(
        part=part, labels=labels, label_names=label_names, frames=frames, layout=layout, on_broken=on_broken
    )
    if path is None:
        from undiffuse.data.formats import webdataset

        if is_url(text) and not text.partition("?")[0].lower().endswith(webdataset.SUFFIXES):
            endings = ", ".join(webdataset.SUFFIXES)
            raise ValueError(
                f"{text}: only WebDataset shards ({endings}) are read by their address; download other data"
            )
        source = webdataset.open_shards([text], text, reading)
        source.format = "WebDataset shards"
    else:
        found = find_format(path)
        if found is None:
            raise ValueError(_unknown(path))
        inside = inner_folder(path) if path.is_dir() and found.module == "files" else None
        path, found = inside or (path, found)
        if part not in (None, "all") and not found.parts:
            raise ValueError(f"{path} ({found.title}) has no parts, so it has no part {part!r}")
        source = found.open(path, reading)
        source.containers = source.containers or (os.fspath(path),)
    if isinstance(source, FileSource):
        source.max_pixels = max_pixels
        if source.labels is None and not source.labels_settled:
            wanted, source.wanted_part = source.wanted_part, None
            source = label_files(source, labels, label_names, on_broken, without_part(source.names.runs), part)
            if wanted is not None and not source.held_out:
                raise ValueError(f"{path} has no parts such as train/ and test/, so it has no part {wanted!r}")
        if isinstance(source, FileSource):
            if source.value_range is None and (recorded := recorded_range(source)) is not None:
                source.value_range = recorded
                source.notes.append(f"values {recorded[0]:g} (black) to {recorded[1]:g} (white), as the files record")
            source = with_frames(source, frames)
    elif labels not in ("auto", "none") and not source.labels_settled:
        raise ValueError(f'{source.where} has no labels: expected labels="auto" or "none", got {labels!r}')
    if not len(source):
        raise ValueError(f"{text} holds no images")
    if value_range == "found":
        source.value_range = source.value_range or source.found_range
    elif value_range is None and source.undeclared and source.value_range is None:
        raise ValueError(
            f"{source.where}: the pixels are {source.undeclared}, and nothing says which values are black and white: "
            "declare them by value_range=(black, white)"
        )
    source.remarks = remarks_of(source)
    return screen(
        source,
        check=check,
        on_broken=on_broken,
        on_tiny=on_tiny,
        min_size=min_size,
        value_range=None if value_range == "found" else value_range,
        channels=channels,
    )


def split_part(text: str) -> tuple[Path | None, str | None]:
    """(path, part) of what a user types: "data:test" is the part "test" of data, unless "data:test" is there itself.

    The path is None for addresses.

    Raises:
        FileNotFoundError: there is nothing at the path.
    """
    if is_url(text):
        return None, None
    path = Path(text).expanduser()
    if path.exists():
        return path, None
    before, colon, part = text.rpartition(":")
    if colon and before and Path(before).expanduser().exists():
        return Path(before).expanduser(), part
    if "{" in text:
        shards = [Path(name).expanduser() for name in expand_braces(text)]
        missing = [str(shard) for shard in shards if not shard.exists()]
        if missing and len(missing) < len(shards):
            raise FileNotFoundError(
                f"{len(missing):,} of {len(shards):,} files of {text} are missing: {join_names(missing, 5)}"
            )
        if not missing:
            return None, None
    raise FileNotFoundError(
        f"there is no folder or file {text}. Expected a folder of images, a file that holds images, or one of the data "
        f"sets known by name: {', '.join(NAMED_SETS)}"
    )


def is_data(spec: str | Path) -> bool:
    """Whether this names images that `open_data` reads, and not a model or nothing at all.

    Looks at names and first bytes only. Any folder counts as images but that of a training run, which has checkpoints.

    Args:
        spec: A path, an address of shards, a data set known by name, or one of these with a part ("photos:test").
    """
    text = os.fspath(spec)
    if text.partition(":")[0] in NAMED_SETS:
        return True
    try:
        path, _ = split_part(text)
    except (OSError, ValueError):  # nothing is there, or a name that is too long for a file
        return False
    if path is None:
        from undiffuse.data.formats import webdataset

        return text.partition("?")[0].lower().endswith(webdataset.SUFFIXES)
    if path.is_dir():
        return not (path / "checkpoints").is_dir()
    if path.suffix.lower() in (".npz", ".zip"):
        return True
    if path.suffix.lower() in WEIGHT_SUFFIXES and zipfile.is_zipfile(path):  # PyTorch's files are zips
        return False
    found = find_format(path)
    return found is not None and found.module != "pickles"


def _unknown(path: Path) -> str:
    expected = "Expected a folder of images, a .zip of them, an .npz, or another format of docs/formats.md"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return f"{path} is a single image; give the folder it is in. {expected}"
    if path.suffix.lower() in (".7z", ".rar", ".xz", ".bz2", ".zst"):
        return f"{path} is a packed archive ({path.suffix}): unpack it first. {expected}"
    return f"{path} holds no images in a format that is known. {expected}"


def _renumbered(source: Source, label_names: Sequence[str] | None) -> Source:
    """A source of one's own numbered by an existing class table."""
    if label_names is not None and source.labels is not None and source.label_names is not None:
        values = [source.label_names[number] for number in source.labels]
        source.labels = apply_table(values, label_names, source.where)
        source.label_names = list(label_names)
    return source
