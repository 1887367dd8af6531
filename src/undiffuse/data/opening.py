"""`open_data`: from what a user types to a labelled, checked source."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from undiffuse.data.arrays import open_npz
from undiffuse.data.fashion import fashion_mnist
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

__all__ = ["IMAGE_SUFFIXES", "NAMED_SETS", "open_data"]

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
) -> Source:
    """Open pictures for training, sampling statistics or inspection.

    Args:
        spec: a folder of images (searched recursively; hidden files are passed over), a ``.zip`` of the same, an
            ``.npz`` (``arr_0``, ``arr_1``), or a data set by name: ``fashion-mnist``, ``fashion-mnist:test``.
        labels: where labels come from. "folder": the first sub-folder; "prefix": the file name before its first
            underscore; the path of a CSV, TSV or JSONL table (looked for as given, then inside the data); "none";
            "auto": a table named labels.csv, labels.tsv or labels.jsonl inside the data, else sub-folders if every
            image lies in one and there are at least two, else none. An npz and a named set bring their own ("auto" or
            "none").
        label_names: an existing class table (of the training set, of a model) to number the labels by.
        on_broken: files that cannot be read, and with a table also files without a label and entries without a file:
            "refuse" (an error names them) or "skip" (they are left out and noted in ``source.excluded``).
        on_tiny: images smaller than `min_size`: "upscale" (they stay; `scan` counts them), "refuse" or "skip".
        min_size: pixels, one number or (height, width); usually the size to train at.
        check: how closely files are looked at now: "headers", "full" (decode everything), "none", or "auto" (full for
            small sets, headers above 256 MiB or 20,000 files). What a look at headers misses is found when it is read.

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
    return screen(
        _labelled(source, labels, label_names, on_broken),
        check=check,
        on_broken=on_broken,
        on_tiny=on_tiny,
        min_size=min_size,
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
        entries = read_table(table[1], table[0])
        wrap = _wrapping_folder(names, entries)
        values = match_table([name[len(wrap) :] for name in names], entries, f"the label table {table[0]}", complain)
    elif how == "none":
        return source
    elif how == "prefix":
        values = prefix_labels(names)
        _require(values, names, "an underscore after a class name, as in cat_0012.png", source.where, complain)
    else:
        values = folder_labels(names, label_names)
        if how == "auto" and (None in values or (len(set(values)) < 2 and label_names is None)):
            return source
        _require(values, names, "a sub-folder named after its class, as in cat/0012.png", source.where, complain)
    keep = [i for i, value in enumerate(values) if value is not None]
    texts = [value for value in values if value is not None]
    where = f"{source.where} (labels: {table[0] if table else how})"
    classes = list(label_names) if label_names is not None else class_table(texts)
    excluded = [Excluded(name=names[i], reason="no label") for i, value in enumerate(values) if value is None]
    return source.labelled(keep, apply_table(texts, classes, where), classes, excluded)


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
