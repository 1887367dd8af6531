"""Labels the image files of a source: by a table, by folders or by file names."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np

from undiffuse.data.formats.base import PARTS, part_of, with_tags
from undiffuse.data.formats.files import read_table_member
from undiffuse.data.formats.imagenet import translated
from undiffuse.data.formats.spans import SpanSource
from undiffuse.data.labelling import Labelling, interpret
from undiffuse.data.labels import apply_table, class_table, folder_labels, join_names, prefix_labels, shelved
from undiffuse.data.names import Runs
from undiffuse.data.screening import OnBroken
from undiffuse.data.sources import Excluded, FileSource, FolderSource, Source
from undiffuse.data.tables import TABLE_SUFFIXES, TableSpec, parse_spec, read_table
from undiffuse.data.zips import ZipSource
from undiffuse.util.limits import open_zip

__all__ = ["label_files", "own_tables", "table_bytes"]

_OWN_TABLES = ("labels.csv", "labels.tsv", "labels.jsonl", "labels.json", "labels.parquet")
_KNOWN_TABLES = (
    "metadata.jsonl", "metadata.csv", "metadata.parquet", "dataset.json", "list_attr_celeba.txt",
    "list_attr_celeba.csv", "identity_CelebA.txt",
)  # fmt: skip
"""Tables of other programs; one that says nothing of these pictures is passed over, with a note."""
_HOW = ("auto", "none", "folder", "prefix")
_TRIED = 3
"""Tables of other names that are tried, to suggest them."""
Complain = Callable[[str], None]


def label_files(
    source: FileSource,
    how: str,
    label_names: Sequence[str] | None = None,
    on_broken: OnBroken = "refuse",
    folders: Runs | None = None,
    part: str | None = None,
) -> Source:
    """The source with labels; files without one are refused or left out.

    Args:
        source: image files.
        how: "auto", "none", "folder", "prefix", or a table: FILE, FILE:LABEL_COLUMNS or FILE:FILE_COLUMN:LABEL_COLUMNS.
        label_names: an existing class table.
        on_broken: what to do with files without a label and with rows of a table without a file.
        folders: the folders that name the classes, if they are not those of the files.
        part: the part of the data set that is wanted, where a column of a table tells the parts.

    Returns:
        The labelled source. Several labels of a picture become `vectors` of 0 and 1, numbers become `vectors` too.

    Raises:
        ValueError: labels that do not fit.
        FileNotFoundError: there is no such table.
    """
    names = source.names
    spec = parse_spec(how)

    def complain(text: str) -> None:
        if on_broken == "refuse":
            raise ValueError(f'{text}. Correct that, or leave out what does not fit with on_broken="skip"')

    if spec is not None:
        spec = _of_this_part(source, spec)
        data = _outside(spec.file) or _inside(source, spec.file)
        if data is None:
            raise FileNotFoundError(f"there is no label table {spec.file}, neither as given nor inside {source.where}")
        found = interpret(read_table(data, spec.file), names, spec, complain, source.held, part)
        return _by_table(source, found, spec.file, label_names, absent=True)
    if how not in _HOW:
        raise ValueError(
            f"labels={how!r}: expected {', '.join(_HOW)}, or a table ending in {', '.join(TABLE_SUFFIXES)}"
        )
    if how == "none":
        return source
    if how == "auto":
        own = _own_part(source)
        of_part = [f"{own}/{name}" for name in _OWN_TABLES] if own else []
        for name in (*of_part, *_OWN_TABLES, *_KNOWN_TABLES):
            data = _inside(source, name)
            if data is None:
                continue
            extra: list[str] = []
            # The folder may hold a part of the set that a known table lists.
            ours = name not in _KNOWN_TABLES
            heard = complain if ours else partial(_all_but_absent, complain, extra)
            try:
                found = interpret(read_table(data, name), names, TableSpec(name), heard, source.held, part)
            except ValueError as error:
                passed = ("matches none", "is known to hold", "holds no labels", "has no column of labels")
                if ours or not any(words in str(error) for words in passed):
                    raise
                source.notes.append(f"{name} is not used: {error}")
                continue
            source.notes += extra
            labelled = _by_table(source, found, name, label_names, absent=ours)
            if found.kind == "class" or not isinstance(labelled, FileSource):
                return labelled
            source, names, folders = labelled, labelled.names, None  # classes may still come from folders
            break
    if how == "prefix":
        values = prefix_labels(names)
        _require(values, names, "an underscore after a class name, as in cat_0012.png", source.where, complain)
    else:
        if how == "auto" and shelved(names, folders or source.names.runs):
            source.notes.append('the numbered folders are shelves of a fixed number of images, not classes; '
                                'labels="folder" makes them classes')  # fmt: skip
            return source
        values = folder_labels(folders or source.names.runs, label_names)
        loose = sum(value is None for value in values) if None in values else 0
        if how == "auto" and 0 < loose < len(values):
            source.notes.append(
                f"{loose:,} of {len(values):,} images lie in no sub-folder, so the folders are not taken as classes"
            )
        if how == "auto" and (None in values or (len(set(values)) < 2 and label_names is None)):
            source.notes += _unused_tables(source) if source.table is None else []
            return source
        _require(values, names, "a sub-folder named after its class, as in cat/0012.png", source.where, complain)
    return _with_classes(source, values, f"{source.where} (labels: {how})", label_names,
                         "classes from the names of files" if how == "prefix" else "")  # fmt: skip


def _all_but_absent(complain: Complain, notes: list[str], text: str) -> None:
    """Complains, except about rows without a file, which are noted."""
    if "files that are not there" in text:
        notes.append(text)
    else:
        complain(text)


def _with_classes(
    source: FileSource,
    values: Sequence[str | None],
    where: str,
    label_names: Sequence[str] | None,
    note: str,
    why: Mapping[str, str] | None = None,
) -> FileSource:
    whole = None not in values
    keep = np.arange(len(values)) if whole else np.flatnonzero([value is not None for value in values])
    texts = cast(list[str], values) if whole else [value for value in values if value is not None]
    classes = list(label_names) if label_names is not None else class_table(texts)
    texts = translated(texts, label_names)
    excluded = _unlabelled(source, values, why or {})
    labelled = source.labelled(keep, apply_table(texts, classes, where), classes, excluded)
    labelled.notes += [note] if note else []
    return labelled


def _unlabelled(source: FileSource, values: Sequence[object], why: Mapping[str, str]) -> list[Excluded]:
    """The files without a label, with what the table says in its place."""
    if None not in values:
        return []
    names = [source.names[i] for i, value in enumerate(values) if value is None]
    return [Excluded(name=name, reason=f"no label, {why[name]}" if name in why else "no label") for name in names]


def _by_table(
    source: FileSource, found: Labelling, table: str, label_names: Sequence[str] | None, absent: bool
) -> FileSource:
    """The source with what a table says; with `absent`, files of the table that are not there count as left out."""
    source.table = table
    if found.parts:
        keep = [i for i in range(len(source)) if i not in found.parts]
        held = Counter(found.parts.values())
        source = source.labelled(keep, None, None, [])
        source.held_out.update(sorted(held.items()))
        found = replace(found, values=[found.values[i] for i in keep], parts={})
    ending = f"files ending in {PurePosixPath(table).suffix.lower()}"
    if source.left_out.get(ending) and _inside(source, _relative(source, table)) is not None:
        left = {**source.left_out, ending: source.left_out[ending] - 1}  # a table that is used is not left out
        source.left_out = {kind: count for kind, count in left.items() if count}
    why = dict(found.unlabelled)
    reason = f"in {PurePosixPath(table).name}, but not there"
    gone = [Excluded(name=name, reason=reason) for name in found.absent] if absent else []
    notes = [found.said, *([found.doubt] if found.doubt else [])]
    if found.kind == "class":
        where = f"{source.where} (labels: {table})"
        labelled = _with_classes(source, found.values, where, label_names, notes[0], why)
        labelled.notes += notes[1:]
        labelled.excluded += gone
        return labelled
    keep = [i for i, value in enumerate(found.values) if value is not None]
    excluded = [*_unlabelled(source, found.values, why), *gone]
    labelled = source.labelled(keep, None, None, excluded)
    values = [found.values[i] for i in keep]
    if found.kind == "multi":
        with_tags(labelled, values, list(label_names if label_names is not None else found.names))
    else:
        labelled.vectors = np.array(values, dtype=np.float32).reshape(len(keep), len(found.names))
        labelled.vector_names = list(found.names)
    labelled.notes += notes
    return labelled


def _own_part(source: FileSource) -> str | None:
    """The folder of the part that was opened, if there are others; None otherwise."""
    if not len(source.held) or not len(source.names):
        return None
    return next((folder for folder in PurePosixPath(source.names[0]).parts[:-1] if part_of(folder)), None)


def _of_this_part(source: FileSource, spec: TableSpec) -> TableSpec:
    """The table of the part that was opened, where the name of the given one says that it is another part's.

    With train.csv for the training images, test.csv holds the labels of the test images.
    """
    own, path = _own_part(source), PurePosixPath(spec.file)
    said = next((word for word in re.split(r"[\W_]+", path.stem) if part_of(word)), None)
    if own is None or said is None or part_of(said) == part_of(own):
        return spec
    for word in dict.fromkeys((own, *PARTS[str(part_of(own))])):
        file = str(path.with_name(path.name.replace(said, word, 1)))
        if _outside(file) or _inside(source, file):
            source.notes.append(f"labels of the part {own} are in {file}")
            return replace(spec, file=file)
    raise ValueError(
        f"{spec.file} is the table of another part, by its name, and the images are those of {own}: expected "
        f"{path.name.replace(said, own, 1)} beside it. Name the data and table of each part apart"
    )


def _unused_tables(source: FileSource) -> list[str]:
    """Names tables inside the data that would give labels."""
    if not isinstance(source, FolderSource):
        return []
    notes = []
    files = (file for file in source.root.iterdir() if file.suffix.lower() in TABLE_SUFFIXES and file.is_file())
    for file in sorted(files)[:_TRIED]:
        try:
            found = interpret(
                read_table(file.read_bytes(), file.name), source.names, TableSpec(file.name), None, source.held
            )
        except (OSError, ValueError):
            continue
        taken = found.said.partition(": ")[2]
        notes.append(f'{file.name} is not used, but names the images; labels="{file.name}" takes it: {taken}')
    return notes


def _relative(source: FileSource, table: str) -> str:
    """The name of a table inside the data, if it was given by its whole path."""
    path = Path(table).expanduser()
    if isinstance(source, FolderSource) and path.resolve().is_relative_to(source.root.resolve()):
        return path.resolve().relative_to(source.root.resolve()).as_posix()
    return table


def table_bytes(source: Source, name: str) -> bytes | None:
    """A table by its path, or inside the data; None if there is none."""
    data = _outside(name)
    return data if data is not None or not isinstance(source, FileSource) else _inside(source, name)


def own_tables(source: Source, labels: str) -> Iterator[tuple[TableSpec, bytes]]:
    """The tables that may speak of the pictures: the one that `labels` names, or those of known names in the data."""
    spec = parse_spec(labels)
    if spec is not None:
        data = table_bytes(source, spec.file)
        if data is not None:
            yield spec, data
        return
    part = _own_part(source) if isinstance(source, FileSource) else None
    for name in (*(f"{part}/{name}" for name in _OWN_TABLES if part), *_OWN_TABLES, *_KNOWN_TABLES):
        data = _inside(source, name) if isinstance(source, FileSource) else None
        if data is not None:
            yield TableSpec(name), data


def _outside(name: str) -> bytes | None:
    path = Path(name).expanduser()
    return path.read_bytes() if path.is_file() else None


def _inside(source: FileSource, name: str) -> bytes | None:
    """A label table inside the data, or None."""
    if isinstance(source, ZipSource):
        if source.tables is not None and not any(table.endswith(name) for table in source.tables):
            return None
        with open_zip(source.path) as archive:
            held = set(archive.namelist())
            # A zip of one folder has its table in that folder.
            tops = {folder.partition("/")[0] for folder in source.names.runs.folders}
            inner = f"{next(iter(tops))}/{name}" if len(tops) == 1 and "" not in tops else name
            found = name if name in held else inner if inner in held else None
            try:
                return read_table_member(archive, found, str(source.path)) if found else None
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise ValueError(f"{source.path}: {found} in it cannot be read: {error}") from error
    if isinstance(source, SpanSource):
        return source.table_in(name)
    if not isinstance(source, FolderSource):
        return None
    # A folder with nothing but one folder of images may have its table in that folder.
    below = {folder.partition("/")[0] for folder in source.names.runs.folders if folder}
    only = source.root / next(iter(below), "") / name
    for file in (source.root / name, *([only] if len(below) == 1 else [])):
        if file.is_file():
            return file.read_bytes()
    return None


def _require(values: Sequence[str | None], names: Sequence[str], what: str, where: str, complain: Complain) -> None:
    """Every image must have a label: none at all is always an error, a few missing are reported to `complain`."""
    missing = [name for name, value in zip(names, values, strict=True) if value is None] if None in values else []
    if len(missing) == len(names):
        raise ValueError(f"{where}: no image has {what}. The names are {join_names(names, 3)}")
    if missing:
        complain(f"{where}: {len(missing):,} of {len(names):,} images lack {what}: {join_names(missing)}")
