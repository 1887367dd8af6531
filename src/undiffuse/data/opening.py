"""`open_data`: from what a user types to a labelled, checked source."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from undiffuse.data.fashion import fashion_mnist
from undiffuse.data.formats.base import Frames, Layout, Reading
from undiffuse.data.formats.files import kind_of, without_part
from undiffuse.data.formats.frames import with_frames
from undiffuse.data.formats.imagenet import translated
from undiffuse.data.formats.registry import find_format
from undiffuse.data.formats.spans import expand_braces, is_url
from undiffuse.data.labels import (
    TABLE_SUFFIXES,
    apply_table,
    class_table,
    folder_labels,
    listed,
    match_table,
    prefix_labels,
    read_table,
)
from undiffuse.data.screening import Check, OnBroken, OnTiny, screen
from undiffuse.data.sources import Excluded, FileSource, FolderSource, Source, ZipSource

__all__ = ["IMAGE_SUFFIXES", "NAMED_SETS", "open_data", "split_part"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
NAMED_SETS = {"fashion-mnist": ("train", "test")}
"""Data sets known by name, with their splits; the first split is meant where none is given."""
_OWN_TABLES = ("labels.csv", "labels.tsv", "labels.jsonl")
Complain = Callable[[str], None]
_HOW = ("auto", "none", "folder", "prefix")


def open_data(
    spec: str | Path,
    *,
    labels: str = "auto",
    label_names: Sequence[str] | None = None,
    on_broken: OnBroken = "refuse",
    on_tiny: OnTiny = "upscale",
    min_size: int | tuple[int, int] | None = None,
    check: Check = "auto",
    frames: Frames = "first",
    layout: Layout = "auto",
    value_range: tuple[float, float] | Literal["found"] | None = None,
) -> Source:
    """Open pictures for training, sampling statistics or inspection.

    Args:
        spec: a folder, a file, or a data set by name (``fashion-mnist``, ``fashion-mnist:test``). docs/formats.md lists
            the formats, which are recognised by their names and contents. ``PATH:PART`` opens a part of a data set that
            has several: ``train`` (the default), ``validation``, ``test``, a name that the data gives, or ``all``.
            Addresses (``https://.../shard-{000..015}.tar``) are WebDataset shards, read through fsspec.
        labels: where labels come from. "folder": the first sub-folder; "prefix": the file name before its first
            underscore; the path of a CSV, TSV or JSONL table (looked for as given, then inside the data); "none";
            "auto": a table named labels.csv, labels.tsv or labels.jsonl inside the data, else sub-folders if every
            image lies in one and there are at least two, else none. Formats that hold labels bring their own: "auto",
            "none", or the name of the field that holds them.
        label_names: an existing class table (of the training set, of a model) to number the labels by.
        on_broken: files that cannot be read, images without a label where others have one, and entries of a table
            without a file: "refuse" (an error names them) or "skip" (they are left out and noted in
            ``source.excluded``).
        on_tiny: images smaller than `min_size`: "upscale" (they stay; `scan` counts them), "refuse" or "skip".
        min_size: pixels, one number or (height, width); usually the size to train at.
        check: how closely files are looked at now: "headers", "full" (decode everything), "none", or "auto" (full for
            small sets, headers above 256 MiB or 20,000 files). What a look at headers misses is found when it is read.
        frames: "first" or "all" frames of files that hold several (TIFF, GIF, WebP, APNG).
        layout: the axes of arrays of pictures: "auto", "HWC" or "CHW".
        value_range: the values of black and white in arrays that are not 8-bit; None takes what the format declares,
            "found" the smallest and largest value that are there (to look at them, not to train).

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

        source = webdataset.open_shards([text], text, reading)
        source.format = "WebDataset shards"
    else:
        found = find_format(path)
        if found is None:
            raise ValueError(_unknown(path))
        if part not in (None, "all") and not found.parts:
            raise ValueError(f"{path} ({found.title}) has no parts, so it has no part {part!r}")
        source = found.open(path, reading)
    if isinstance(source, FileSource):
        if source.labels is None and not source.labels_settled:
            source = _labelled(source, labels, label_names, on_broken)
        source = with_frames(source, frames) if isinstance(source, FileSource) else source
    elif labels not in ("auto", "none") and not source.labels_settled:
        raise ValueError(f'{source.where} has no labels: expected labels="auto" or "none", got {labels!r}')
    if value_range == "found":
        source.value_range = source.value_range or source.found_range
    elif value_range is not None:
        source.value_range = value_range
    elif source.undeclared and source.value_range is None:
        raise ValueError(
            f"{source.where}: the pixels are {source.undeclared}, and nothing says which values are black and white: "
            "declare them by value_range=(black, white)"
        )
    if not len(source):
        raise ValueError(f"{text} holds no images")
    return screen(source, check=check, on_broken=on_broken, on_tiny=on_tiny, min_size=min_size)


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
        if len(shards) > 1 and len(missing) < len(shards):
            raise FileNotFoundError(f"{len(missing):,} of {len(shards):,} files of {text} are missing: {listed(missing, 5)}")
        if not missing:
            return None, None
    raise FileNotFoundError(
        f"there is no folder or file {text}. Expected a folder of images, a file that holds images, or one of the data "
        f"sets known by name: {', '.join(NAMED_SETS)}"
    )


def _unknown(path: Path) -> str:
    expected = "Expected a folder of images, or a file in one of the formats of docs/formats.md (.zip, .npz, .tar, ...)"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return f"{path} is a single image; give the folder it is in. {expected}"
    if path.suffix.lower() in (".7z", ".rar", ".xz", ".bz2", ".zst"):
        return f"{path} is a packed archive ({path.suffix}): unpack it first. {expected}"
    return f"{path} holds no images in a format that is known. {expected}"


def _table_text(source: FileSource, name: str) -> str | None:
    """The text of a label table inside the data, or None."""
    if isinstance(source, ZipSource):
        with zipfile.ZipFile(source.path) as archive:
            held = {member: member for member in archive.namelist()}
            # A zip of one folder has its table in that folder.
            tops = {PurePosixPath(member).parts[0] for member in source.names}
            found = held.get(name) or (held.get(f"{next(iter(tops))}/{name}") if len(tops) == 1 else None)
            try:
                return archive.read(found).decode("utf-8", "replace") if found else None
            except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
                raise ValueError(f"{source.path}: {found} in it cannot be read: {error}") from error
    path = source.root / name if isinstance(source, FolderSource) else Path(name)
    return path.read_text("utf-8", "replace") if path.is_file() else None


def _labelled(source: FileSource, how: str, label_names: Sequence[str] | None, on_broken: OnBroken) -> Source:
    """The source with labels as the user wishes; files without one are refused or left out."""
    names = source.names
    table: tuple[str, str] | None = None
    if how.lower().endswith(TABLE_SUFFIXES):
        outside = Path(how).expanduser()
        text = outside.read_text("utf-8", "replace") if outside.is_file() else _table_text(source, how)
        if text is None:
            raise FileNotFoundError(f"there is no label table {how}, neither as given nor inside {source.where}")
        table = (how, text)
    elif how not in _HOW:
        raise ValueError(
            f"labels={how!r}: expected {', '.join(_HOW)}, or a table ending in {', '.join(TABLE_SUFFIXES)}"
        )
    elif how == "auto":
        inside = ((name, _table_text(source, name)) for name in _OWN_TABLES)
        table = next(((name, text) for name, text in inside if text is not None), None)

    def complain(text: str) -> None:
        if on_broken == "refuse":
            raise ValueError(f'{text}. Correct that, or go on with what fits by on_broken="skip"')

    values: list[str | None]
    if table is not None:
        entries = {file: label for file, label in read_table(table[1], table[0]).items() if file not in source.held_names}
        kind = kind_of(table[0])
        if kind in source.left_out and (source.left_out[kind] == 1 or table[0] in _OWN_TABLES):
            source.left_out[kind] -= 1  # a table inside the data that is used is not left out
            source.left_out = {kind: count for kind, count in source.left_out.items() if count}
        wrap = _wrapping_folder(names, entries)
        values = match_table([name[len(wrap) :] for name in names], entries, f"the label table {table[0]}", complain)
    elif how == "none":
        return source
    elif how == "prefix":
        values = prefix_labels(names)
        _require(values, names, "an underscore after a class name, as in cat_0012.png", source.where, complain)
    else:
        values = folder_labels(without_part(names), label_names)
        if how == "auto" and (None in values or (len(set(values)) < 2 and label_names is None)):
            return source
        _require(values, names, "a sub-folder named after its class, as in cat/0012.png", source.where, complain)
    keep = [i for i, value in enumerate(values) if value is not None]
    texts = [value for value in values if value is not None]
    texts = translated(texts, label_names)
    where = f"{source.where} (labels: {table[0] if table else how})"
    classes = list(label_names) if label_names is not None else class_table(texts)
    excluded = [Excluded(name=names[i], reason="no label") for i, value in enumerate(values) if value is None]
    labelled = source.labelled(keep, apply_table(texts, classes, where), classes, excluded)
    labelled.notes.append(f"labels from {table[0] if table else 'the names of folders' if how != 'prefix' else 'file names'}")
    return labelled


def _wrapping_folder(names: Sequence[str], entries: dict[str, str]) -> str:
    """ "folder/" where all images lie in one folder and the table is written from inside it; else nothing."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or any(name in entries for name in names):
        return ""
    top = next(iter(tops)) + "/"
    inside = all(name.startswith(top) for name in names)
    return top if inside and any(name[len(top) :] in entries for name in names) else ""


def _require(values: Sequence[str | None], names: Sequence[str], what: str, where: str, complain: Complain) -> None:
    """Every image must have a label: none at all is always an error, a few missing are reported to `complain`."""
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if len(missing) == len(names):
        raise ValueError(f"{where}: no image has {what}. The names are {listed(names, 3)}")
    if missing:
        complain(f"{where}: {len(missing):,} of {len(names):,} images lack {what}: {listed(missing)}")


def _renumbered(source: Source, label_names: Sequence[str] | None) -> Source:
    """A source of one's own numbered by an existing class table."""
    if label_names is not None and source.labels is not None and source.label_names is not None:
        values = [source.label_names[number] for number in source.labels]
        source.labels = apply_table(values, label_names, source.where)
        source.label_names = list(label_names)
    return source
