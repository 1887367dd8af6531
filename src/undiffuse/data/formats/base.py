"""What all formats share: how a container is to be read, its parts, its classes, and libraries that may be missing."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.imagenet import translated
from undiffuse.data.label_values import LabelValues, interpret_values, is_nothing, simple
from undiffuse.data.labels import apply_table, class_table, join_names
from undiffuse.data.sources import Excluded, Source
from undiffuse.data.tables import parse_spec

__all__ = [
    "PARTS",
    "Entries",
    "Frames",
    "Layout",
    "Reading",
    "choose_part",
    "is_folder",
    "kind_of",
    "need",
    "part_of",
    "peek",
    "with_labels",
    "with_tags",
    "with_vectors",
]

Frames = Literal["first", "all"]
Layout = Literal["auto", "HWC", "CHW"]

PARTS = {
    "train": ("train", "training", "trn", "imagestr"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst", "imagests"),
}
"""The parts of a data set, with the names that folders, files and arrays give them (imagesTr: nnU-Net)."""
_PART_OF = {name: part for part, names in PARTS.items() for name in names}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a container is to be read.

    Attributes:
        part: the part of the data set to open ("train", "validation", "test", "all", or a name that the format gives);
            None opens the training part where there are parts.
        labels: "auto", "none", or the name of the field that holds the labels.
        label_names: an existing class table to number the labels by; None makes one.
        frames: "first" or "all" frames of files that hold several pictures.
        layout: the order of the axes of arrays of pictures; "auto" finds out or refuses.
        on_broken: what to do with pictures without a label: "refuse" or "skip".
    """

    part: str | None = None
    labels: str = "auto"
    label_names: Sequence[str] | None = None
    frames: Frames = "first"
    layout: Layout = "auto"
    on_broken: Literal["refuse", "skip"] = "refuse"

    @property
    def of_files(self) -> bool:
        """Whether the labels come from the names of files or from a table, not from the format."""
        return self.labels in ("folder", "prefix") or parse_spec(self.labels) is not None

    def field(self, where: str, fields: Sequence[str], usual: Sequence[str] = ()) -> str | None:
        """The field to take labels from: the one that was named, else the first `usual` one that is there, else None.

        Raises:
            ValueError: the field that was named is not among `fields`.
        """
        if self.labels == "none":
            return None
        if self.labels != "auto":
            if self.labels not in fields:
                raise ValueError(
                    f"{where} has no label field {self.labels!r}: expected "
                    + (f"one of {join_names(fields)}, " if fields else "")
                    + '"auto" or "none"'
                )
            return self.labels
        plain = {simple(name): name for name in reversed(fields)}
        return next((plain[simple(name)] for name in usual if simple(name) in plain), None)


def need(module: str, extra: str, what: str) -> Any:
    """Import a library that a format needs.

    Raises:
        ValueError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"reading {what} needs the package {module.partition('.')[0]}: pip install 'undiffuse[{extra}]' ({error})"
        ) from error


def part_of(name: str) -> str | None:
    """The part that a name means: "val" -> "validation"; None for other names."""
    return _PART_OF.get(name.lower())


@dataclass(frozen=True)
class Entries:
    """Names in a folder that are not hidden: of files, and of folders."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


_PEEKED = 10_000


def peek(folder: Path) -> Entries:
    """The first 10,000 entries of a folder, sorted: enough to tell a format, and fast where there are millions."""
    return _peek(os.fspath(folder), os.stat(folder).st_mtime_ns)


@lru_cache(maxsize=64)
def _peek(folder: str, changed: int) -> Entries:
    del changed  # it is there to notice that the folder has
    with os.scandir(folder) as entries:
        some = [entry for entry in islice(entries, _PEEKED) if not entry.name.startswith(".")]
        folders = {entry.name for entry in some if is_folder(entry)}
    files = (entry.name for entry in some if entry.name not in folders)
    return Entries(tuple(sorted(files)), tuple(sorted(folders)))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def choose_part(parts: Mapping[str, int], reading: Reading, where: str) -> list[str]:
    """The names of the parts to open, of those that a data set has.

    Args:
        parts: the names that the data set gives its parts, with the number of images in each.
        reading: `reading.part` says which is wanted.

    Raises:
        ValueError: there is no such part, or none is for training and none was named.
    """
    names = list(parts)
    wanted = reading.part
    if wanted == "all" or not names:
        return names
    if wanted is None:
        if len(names) == 1:
            return names
        training = [name for name in names if part_of(name) == "train"]
        if training:
            return training
        raise ValueError(
            f"{where} has the parts {join_names(names)}, none of them for training: name one, as in {where}:{names[0]}"
        )
    exact = [name for name in names if name == wanted]
    meant = exact or [name for name in names if (part_of(name) or name) == (part_of(wanted) or wanted)]
    if not meant:
        raise ValueError(f"{where} has no part {wanted!r}: expected one of {join_names(names)}, or all")
    return meant


def kind_of(name: str) -> str:
    """ "files ending in .txt": what a file that is not taken is counted as."""
    suffix = PurePosixPath(name).suffix.lower()
    return f"files ending in {suffix}" if suffix else "files without an ending"


def with_labels(
    source: Source,
    values: Sequence[Any] | NDArray[Any],
    reading: Reading,
    *,
    names: Sequence[str] | None = None,
    field: str = "label",
    head: str = "label",
) -> Source:
    """The source with labels, from values as a format stores them.

    Args:
        source: the pictures, N of them, without labels.
        values: N labels as `label_values` knows them: integers, text, lists of either, or None where there is none.
            Where `names` is given, integers are indices into it, and negative ones mean "no label".
        names: the class table of the format, in its own order.
        field: what holds the labels, for messages.
        head: the name of the field alone, which tells numbers ("age") from classes.

    Raises:
        ValueError: another number of labels than of pictures, labels outside the class table, or pictures without a
            label where `reading.on_broken` is "refuse".
    """
    if len(values) != len(source):
        raise ValueError(f"{source.where}: {len(source):,} images but {len(values):,} labels ({field})")
    source.labels_settled = True
    if reading.labels == "none":
        return source
    kinds = _kinds(values, names, field, head, source.where)
    missing = [i for i, value in enumerate(kinds.values) if value is None]
    if len(missing) == len(kinds.values):
        source.notes.append(f"every {field} is empty or negative, which means no label")
        return source
    if missing:
        named = join_names((source.name(i) for i in missing), 5)
        if reading.on_broken == "refuse":
            raise ValueError(
                f"{source.where} has no label ({field}) for {len(missing):,} of {len(source):,} images: {named}. Leave "
                'them out with on_broken="skip", or all labels with labels="none"'
            )
        keep = [i for i, value in enumerate(kinds.values) if value is not None]
        source = source.subset(keep, [Excluded(name=source.name(i), reason="no label") for i in missing])
    found = [value for value in kinds.values if value is not None]
    said = f" ({kinds.said})" if kinds.said else ""
    if kinds.kind == "numbers":
        columns = kinds.names if names or len(kinds.names) > 1 or head not in ("label", "labels", "vector") else None
        source = with_vectors(source, np.array(found, dtype=np.float32).reshape(len(found), -1), field, columns)
    elif kinds.kind == "multi":
        with_tags(source, found, list(reading.label_names or kinds.names))
        source.notes.append(f"several labels a picture from {field}{said}")
    else:
        table = list(reading.label_names if reading.label_names is not None else names or class_table(found))
        source.labels = apply_table(translated(found, table, names), table, source.where)
        source.label_names = table
        source.notes.append(f"labels from {field}{said}")
        if len(table) == len(source) > 20:
            source.notes.append(
                f"every image has a class of its own: {field} looks like a name or a number of the image"
            )
    return source


def with_tags(source: Source, tags: Sequence[Sequence[str]], names: list[str]) -> None:
    """Sets the vectors of a source from the labels of each picture: 1 for those it has, 0 for the others.

    Raises:
        ValueError: A label that is not among `names`.
    """
    number = {name: k for k, name in enumerate(names)}
    unknown = sorted({tag for picture in tags for tag in picture if tag not in number})
    if unknown:
        raise ValueError(f"{source.where} has labels that are not in the class table: {join_names(unknown)}")
    hot = np.zeros((len(tags), len(names)), dtype=np.float32)
    for row, picture in enumerate(tags):
        hot[row, [number[tag] for tag in picture]] = 1
    source.vectors, source.vector_names, source.multi_hot = hot, names, True


def with_vectors(source: Source, vectors: NDArray[Any], field: str, names: Sequence[str] | None = None) -> Source:
    """The source with a condition vector for every picture.

    Args:
        vectors: numbers [N, D].
        field: where they come from, for messages.
        names: [D], the names of the columns.

    Raises:
        ValueError: numbers that are not finite.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{source.where}: {field} is not a finite number for {len(broken):,} of {len(vectors):,} images: "
            f"{join_names((source.name(int(i)) for i in broken), 5)}"
        )
    source.vectors, source.vector_names = vectors, None if names is None else list(names)
    source.labels_settled = True
    source.notes.append(f"a vector of {vectors.shape[1]} number{'s' if vectors.shape[1] != 1 else ''} from {field}")
    return source


def _kinds(
    values: Sequence[Any] | NDArray[Any], names: Sequence[str] | None, field: str, head: str, where: str
) -> LabelValues:
    """What labels mean that a format stores as integers, text, lists or an array of numbers."""
    cells = _cells(values)
    rows = _matrix(cells)
    if rows is not None and (names is None or rows.shape[1] == len(names)):
        binary = bool(np.isin(rows, (0, 1)).all())
        if binary and rows.shape[1] > 1 and (rows.sum(axis=1) == 1).all():
            classes = list(names or map(str, range(rows.shape[1])))
            return LabelValues(
                kind="class", values=[classes[k] for k in rows.argmax(axis=1)], said=f"one-hot, {len(classes)} classes"
            )
        columns = tuple(names or (f"{head}[{k}]" for k in range(rows.shape[1])))
        if binary and rows.shape[1] > 1:
            tags = [tuple(columns[k] for k in np.flatnonzero(row)) for row in rows]
            return LabelValues(
                kind="multi", values=list(tags), names=columns, said=f"{len(columns)} columns of 0 and 1"
            )
        numbers = [tuple(row) if all(map(math.isfinite, row)) else None for row in rows.tolist()]
        return LabelValues(kind="numbers", values=list(numbers), names=columns)
    if any(isinstance(cell, list) for cell in cells):
        return interpret_values(cells, head, where, names)
    if names is None and any(isinstance(cell, (str, float)) for cell in cells):
        return interpret_values(cells, head, where)
    return LabelValues(kind="class", values=[_text(cell, names, f"{where}: {field}") for cell in cells])


def _cells(values: Sequence[Any] | NDArray[Any]) -> list[Any]:
    """Python's own texts, numbers and lists; a list of one item, as [N, 1] arrays have them, as that item."""
    if isinstance(values, np.ndarray):
        values = (values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values).tolist()
    cells = [
        cell.tolist() if isinstance(cell, (np.ndarray, np.generic)) else list(cell) if isinstance(cell, tuple) else cell
        for cell in values
    ]
    alone = all(isinstance(cell, list) and len(cell) == 1 for cell in cells)
    if alone and not any(isinstance(cell[0], float) for cell in cells):  # [20.0] is a vector
        cells = [cell[0] for cell in cells]
    return [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in cells]


def _matrix(cells: Sequence[Any]) -> NDArray[np.float64] | None:
    """[N, D] if every label is a list of D numbers."""
    first = cells[0] if cells else None
    if not isinstance(first, list) or not first:
        return None
    numeric = all(
        isinstance(cell, list) and len(cell) == len(first) and all(isinstance(x, (bool, int, float)) for x in cell)
        for cell in cells
    )
    return np.asarray(cells, dtype=np.float64) if numeric else None


def _text(value: Any, names: Sequence[str] | None, where: str) -> str | None:
    """A label as the name of its class; None where there is none."""
    if is_nothing(value):
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        if value < 0:
            return None
        if names is None:
            return str(value)
        if value >= len(names):
            raise ValueError(f"{where}: {value} does not fit the {len(names)} class names {join_names(names, 4)}")
        return names[value]
    if isinstance(value, str):
        return value
    raise ValueError(f"{where}: expected integers or text, got {type(value).__name__} {value!r}")
