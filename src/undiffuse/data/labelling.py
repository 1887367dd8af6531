"""Finds out what a label table says: which column names the files, which ones the labels, and of what kind these are.

Columns are found by their names or by their contents. What was taken is said in one line (`Labelling.said`), so that a
wrong guess is seen; `labels="FILE:FILE_COLUMN:LABEL_COLUMN"` replaces the guess.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from undiffuse.data.file_index import FileIndex, posix
from undiffuse.data.formats.base import Reading, choose_part, part_of
from undiffuse.data.label_values import LABEL_KEYS, LabelValues, interpret_values, is_nothing, number_of, simple
from undiffuse.data.labels import class_table, join_names
from undiffuse.data.tables import Table, TableSpec

__all__ = ["Labelling", "interpret"]

FILE_KEYS = (
    "file", "path", "filename", "filepath", "name", "image", "img", "imagename", "imagepath", "imageid", "imageindex",
    "imgname", "imgpath", "imgid", "id", "key",
)  # fmt: skip
SPLIT_KEYS = ("split", "subset", "partition", "set", "dataset", "phase", "part", "usage", "traintest", "datasplit")
"""Columns of these names may tell the parts of the data set."""
_WHOLE_TABLES = ("list_landmarks", "list_bbox")
"""CelebA's tables of numbers, whose columns are all taken."""
_PROBE = 500
"""Rows by which columns are judged first."""


@dataclass(kw_only=True)
class Labelling:
    """What a table says of the pictures.

    Attributes:
        kind: "class" (one each), "multi" (any number of tags each) or "numbers".
        values: by picture: a class name, a tuple of tags, or a tuple of numbers; None without an entry.
        names: the tags, or the columns of numbers; () for classes.
        said: one line about what was taken from where.
        unlabelled: (file, why) of rows without a usable label.
        absent: files of the table that are not there.
        doubt: a question that the labels raise, or "".
        parts: {picture: part} of pictures that a column of the table puts into parts that are not wanted.
    """

    kind: Literal["class", "multi", "numbers"]
    values: list[Any]
    names: tuple[str, ...] = ()
    said: str = ""
    unlabelled: list[tuple[str, str]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    doubt: str = ""
    parts: dict[int, str] = field(default_factory=dict)


def interpret(
    table: Table,
    names: Sequence[str],
    spec: TableSpec,
    complain: Callable[[str], None] | None = None,
    held: Collection[str] = (),
    part: str | None = None,
) -> Labelling:
    """What a table says of the pictures with these names.

    Args:
        table: the rows.
        names: the pictures.
        spec: the columns to take, where they are named.
        complain: hears about pictures without a label and rows without a picture; it may raise.
        held: pictures that are there but not wanted; rows about them are passed over.
        part: the part of the data set that is wanted, if a column ("split") tells the parts; None is the training part.

    Raises:
        ValueError: the table has no such columns, its columns are ambiguous, or it names none of the pictures.
    """
    index = FileIndex(names)
    header, rows, lines = header_of(table, index, spec)
    if table.columns is None and table.separator != " ":
        _check_widths(table, header, rows, lines)
    width = max((len(row) for row in rows), default=0)
    columns = list(header) if header is not None else [f"column {k + 1}" for k in range(width)]
    columns += [f"column {k + 1}" for k in range(len(columns), width)]
    if not rows:
        raise ValueError(f"{table.name} holds no labels")
    for line, row in zip(lines, rows, strict=True):
        if len(row) < 2:
            raise ValueError(f"{table.name}, line {line}: expected a path and a label, got {row}")
    file_column = file_column_of(table, columns, rows, index, spec, header is not None)
    others = [k for k in range(len(columns)) if k != file_column]
    chosen = [named_column(table, columns, name) for name in spec.label_columns]
    if not chosen:
        chosen = _label_columns(table, columns, rows, others, header is not None)
    split = None if held or header is None else _split_column(columns, rows, [k for k in others if k not in chosen])
    result = _read(table, names, index, rows, lines, columns, file_column, chosen)
    if split is not None:
        result.parts = _other_parts(table, rows, index, file_column, split, part)
        for i in result.parts:
            result.values[i] = None
        result.unlabelled = [item for item in result.unlabelled if index.find(item[0]) not in result.parts]
    if held and result.absent:
        elsewhere = FileIndex(list(held))
        result.absent = [file for file in result.absent if elsewhere.find(file) is None]
    if held:
        _refuse_either_part(table, names, held, [row[file_column] for row in rows])
    matched = sum(value is not None for value in result.values)
    shown = [f"column {columns[k]!r}" if header is not None else columns[k] for k in (file_column, *chosen[:1])]
    labels = shown[1] if len(chosen) == 1 else f"columns {join_names((columns[k] for k in chosen), 6)}"
    kind = {"class": "class", "multi": "several labels", "numbers": "numbers"}[result.kind]
    form = f" ({result.said})" if result.said else ""
    form += f", parts in column {columns[split]!r}" if split is not None else ""
    result.said = (
        f"{table.name}: files in {shown[0]}, {kind} in {labels}{form}, {matched:,} of "
        f"{len(names) - len(result.parts):,} pictures matched"
    )
    if complain is not None:
        _complain(table, names, result, complain)
    return result


def _check_widths(table: Table, header: Sequence[str] | None, rows: list[list[Any]], lines: list[int]) -> None:
    """ValueError if a row has more cells than the header has, or than most rows: its text is not in quotes."""
    widths = [len(row) for row in rows]
    wanted = len(header) if header is not None else max(set(widths), key=widths.count, default=0)
    for line, row in zip(lines, rows, strict=True):
        if len(row) > wanted and any(not is_nothing(cell) for cell in row[wanted:]):
            raise ValueError(
                f"{table.name}, line {line}: {len(row)} cells, but {wanted} columns: put text that contains "
                f"{table.separator!r} in quotes"
            )


def _split_column(columns: Sequence[str], rows: list[list[Any]], others: Sequence[int]) -> int | None:
    """The column that puts each row into a part of the data set ("train", "test"); None without one."""
    for k in others:
        if simple(columns[k]) in SPLIT_KEYS:
            found = {part_of(str(row[k]).strip()) for row in rows if k < len(row) and not is_nothing(row[k])}
            if "train" in found and len(found) > 1 and None not in found:
                return k
    return None


def _other_parts(
    table: Table, rows: list[list[Any]], index: FileIndex, file_column: int, split: int, part: str | None
) -> dict[int, str]:
    """{picture: part} of the pictures of the parts that are not wanted."""
    found = {}
    for row in rows:
        i = index.find(row[file_column])
        if i is not None and split < len(row) and not is_nothing(row[split]):
            found[i] = str(row[split]).strip()
    chosen = choose_part(Counter(found.values()), Reading(part=part), table.name)
    return {i: name for i, name in found.items() if name not in chosen}


def header_of(table: Table, index: FileIndex, spec: TableSpec) -> tuple[list[str] | None, list[list[Any]], list[int]]:
    """The names of the columns if there are any, and the rows below them."""
    if table.columns is not None:
        return list(table.columns), table.rows, table.lines
    rows, lines = table.rows, table.lines
    if not rows:
        raise ValueError(f"{table.name} holds no labels")
    first = [str(cell) for cell in rows[0]]
    words = {simple(cell) for cell in first}
    named = {spec.file_column, *spec.label_columns} - {None} <= set(first) and bool(spec.label_columns)
    known = bool(words & set(FILE_KEYS)) and bool(words & set(LABEL_KEYS))
    files = any(index.find(cell) is not None for cell in first)
    others = any(index.find(cell) is not None for row in rows[1:_PROBE] for cell in row)
    if files or not (named or known or others):
        return None, rows, lines
    if len(rows) > 1 and len(first) + 1 == len(rows[1]):
        first = ["file", *first]  # CelebA's header leaves out the column of the files
    return first, rows[1:], lines[1:]


def named_column(table: Table, columns: Sequence[str], name: str) -> int:
    """The place of a column by its name, in any case, or by its number from 1. ValueError if there is none."""
    for same in (lambda a, b: a == b, lambda a, b: simple(a) == simple(b) != ""):
        for k, column in enumerate(columns):
            if same(column, name):
                return k
    if name.isdecimal() and 1 <= int(name) <= len(columns):
        return int(name) - 1
    raise ValueError(f"{table.name} has no column {name!r}; its columns are {join_names(columns, 20)}")


def file_column_of(
    table: Table, columns: Sequence[str], rows: list[list[Any]], index: FileIndex, spec: TableSpec, header: bool
) -> int:
    """The place of the column that names files: the named one, or that whose cells are names of the data."""
    if spec.file_column is not None:
        return named_column(table, columns, spec.file_column)
    taken = {named_column(table, columns, name) for name in spec.label_columns}
    for probe, by_number in ((rows[:_PROBE], False), (rows[:_PROBE], True), (rows, True)):
        hits = [
            sum(k < len(row) and index.find(row[k], by_number) is not None for row in probe)
            for k in range(len(columns))
        ]
        best = max((k for k in range(len(columns)) if k not in taken), key=lambda k: (hits[k], -k), default=0)
        if hits and hits[best]:
            return best
    for key in FILE_KEYS if header else ():
        for k, column in enumerate(columns):
            if simple(column) == key:
                return k
    return 0


def _label_columns(
    table: Table, columns: Sequence[str], rows: list[list[Any]], others: list[int], header: bool
) -> list[int]:
    """The columns that hold the labels, by name or by contents."""
    if not header:
        binary = [k for k in others if _binary(rows, k)]
        if len(others) > 1 and PurePosixPath(table.name).name.startswith(_WHOLE_TABLES):
            return others
        return others if len(others) > 1 and len(binary) == len(others) else others[:1]
    if PurePosixPath(table.name).name.startswith(_WHOLE_TABLES):
        return others
    others = [k for k in others if not _counts_rows(columns[k], rows, k)] or others
    for key in LABEL_KEYS:
        for k in others:
            if simple(columns[k]) == key:
                return [k]
    binary = [k for k in others if _binary(rows, k)]
    if len(binary) > 1:
        return binary
    if len(others) == 1:
        return others
    names = [columns[k] for k in others if columns[k]] or [str(k + 1) for k in others]
    raise ValueError(
        f"{table.name} has the columns {join_names(columns, 20)}, and none is known to hold the labels: name one with "
        f'labels="{table.name}:{names[0]}"'
        + (f', or several with labels="{table.name}:{names[0]},{names[1]}"' if len(names) > 1 else "")  # fmt: skip
        if names
        else f"{table.name} has no column of labels, only {join_names(columns)}"
    )


def _counts_rows(column: str, rows: list[list[Any]], k: int) -> bool:
    """Whether a column is the index that pandas writes: without a name, and counting the rows."""
    if simple(column) not in ("", "index", "unnamed0") and not column.startswith("Unnamed"):
        return False
    return all(k < len(row) and number_of(row[k]) in (n, n + 1) for n, row in enumerate(rows[:_PROBE]))


def _binary(rows: list[list[Any]], k: int) -> bool:
    """Whether a column holds 0 and 1, or -1 and 1, or parts of these, and nothing else but gaps."""
    seen: set[float | None] = set()
    for row in rows:
        seen.add(number_of(row[k]) if k < len(row) and not is_nothing(row[k]) else 0.0)
        if not seen <= {0.0, 1.0, -1.0}:
            return False
    return True


def _read(
    table: Table, names: Sequence[str], index: FileIndex, rows: list[list[Any]], lines: list[int],
    columns: Sequence[str], file_column: int, chosen: list[int],
) -> Labelling:  # fmt: skip
    """The labels of all rows, put to their pictures."""
    files: list[str] = []
    cells: list[list[Any]] = []
    for line, row in zip(lines, rows, strict=True):
        file = row[file_column] if file_column < len(row) else None
        if is_nothing(file) or isinstance(file, (dict, list)) or len(row) <= max(chosen):
            raise ValueError(f"{table.name}, line {line}: expected a path and a label, got {_shown(row)}")
        files.append(posix(str(file)))
        cells.append([row[k] for k in chosen])
    heads = [columns[k] for k in chosen]
    if len(chosen) > 1:
        found = _of_columns(table, files, cells, heads)
    else:
        found = _of_one_column(table, lines, [cell[0] for cell in cells], heads[0])
    values = found.values
    result = Labelling(
        kind=found.kind, values=[None] * len(names), names=found.names, said=found.said, doubt=found.doubt
    )
    places = [index.find(row[file_column]) for row in rows]
    values = _gathered(table, lines, rows, files, places, found, columns, result)
    for line, file, i, value, row in zip(lines, files, places, values, rows, strict=True):
        if i is None:
            result.absent.append(file)
        elif value is None:
            cell = next((row[k] for k in chosen if is_nothing(row[k]) or len(chosen) == 1), None)
            result.unlabelled.append((names[i], f"line {line}: {'nothing' if cell in (None, '') else cell}"))
        else:
            result.values[i] = value
    if len(result.absent) == len(files):
        raise ValueError(
            f"the label table {table.name} matches none of the {len(names):,} images: it lists {join_names(files, 2)}; "
            f"the images are {join_names(names, 2)}. Its column of files is taken to be {columns[file_column]!r}, and "
            "paths are relative to the data folder"
        )
    return result


def _gathered(
    table: Table, lines: list[int], rows: list[list[Any]], files: list[str], places: Sequence[int | None],
    found: LabelValues, columns: Sequence[str], result: Labelling,
) -> list[Any]:  # fmt: skip
    """The value of each row, where tables with a row for each label give all rows of a picture its labels.

    Raises:
        ValueError: A few pictures have two rows that contradict each other.
    """
    keys = [file if i is None else i for file, i in zip(files, places, strict=True)]
    labels: dict[str | int, dict[Any, int]] = {}
    for key, value, line in zip(keys, found.values, lines, strict=True):
        labels.setdefault(key, {}).setdefault(value, line)
    several = {key: values for key, values in labels.items() if len(values) > 1}
    if not several:
        return found.values
    if found.kind != "class" or None in found.values or len(several) < max(2, len(labels) / 10):
        key, both = next(iter(several.items()))
        (first, _), (second, line) = list(both.items())[:2]
        file = files[keys.index(key)]
        raise ValueError(
            f"{table.name}, line {line}: {file} is given two labels, {first!r} and {second!r}; several labels "
            'of one picture go into one row ("a|b")'
        )
    sure = next((k for k, name in enumerate(columns) if simple(name) == "confidence"), None)  # Open Images
    tags: dict[str | int, list[str]] = {key: [] for key in labels}
    for key, value, row in zip(keys, found.values, rows, strict=True):
        if sure is None or number_of(row[sure]) != 0:
            tags[key].append(value)
    result.kind, result.names = "multi", tuple(class_table(set(found.values)))
    result.said, result.doubt = "a row for each label", ""
    result.said += "" if sure is None else f", none where {columns[sure]!r} is 0"
    return [tuple(dict.fromkeys(tags[key])) for key in keys]


def _of_columns(table: Table, files: list[str], cells: list[list[Any]], heads: list[str]) -> LabelValues:
    """One-hot classes, several labels, or numbers: what several columns hold."""
    numbers = [[None if is_nothing(cell) else number_of(cell) for cell in row] for row in cells]
    for row, raw, file in zip(numbers, cells, files, strict=True):
        for value, cell in zip(row, raw, strict=True):
            if value is None and not is_nothing(cell):
                raise ValueError(
                    f"{table.name}: several columns ({join_names(heads, 6)}) must hold numbers, or 0 and 1, and "
                    f"{file} has {cell!r}: name one column of classes"
                )
    seen = {value for row in numbers for value in row if value is not None}
    blank = any(value is None for row in numbers for value in row)
    if not seen <= {0.0, 1.0, -1.0}:
        values = [
            None if None in row or not all(math.isfinite(v) for v in row if v is not None) else tuple(row)
            for row in numbers
        ]
        return LabelValues(kind="numbers", values=list(values), names=tuple(heads))
    if -1.0 in seen and (0.0 in seen or blank):
        raise ValueError(
            f"{table.name}: the columns {join_names(heads, 6)} hold -1 beside 1 and {'0' if 0.0 in seen else 'gaps'}, "
            "so that it is unknown what -1 means (uncertain, as in CheXpert, or no): replace -1 by 0, 1 or nothing"
        )
    sums = [sum(value == 1 for value in row) for row in numbers]
    gaps = [all(value is None for value in row) for row in numbers]
    if -1.0 not in seen and all(total == 1 for total, gap in zip(sums, gaps, strict=True) if not gap):
        chosen = [None if gap else heads[row.index(1.0)] for row, gap in zip(numbers, gaps, strict=True)]
        return LabelValues(kind="class", values=list(chosen), said="one-hot")
    tags = [
        None if gap else tuple(head for head, value in zip(heads, row, strict=True) if value == 1)
        for row, gap in zip(numbers, gaps, strict=True)
    ]
    said = f"{len(heads)} columns of {'-1' if -1.0 in seen else '0'} and 1"
    return LabelValues(kind="multi", values=list(tags), names=tuple(heads), said=said)


def _of_one_column(table: Table, lines: list[int], cells: list[Any], head: str) -> LabelValues:
    """Classes, several labels, or numbers: what one column holds."""
    for line, cell in zip(lines, cells, strict=True):
        if isinstance(cell, dict):
            raise ValueError(f"{table.name}, line {line}: expected a label (a name or a number), got {_shown(cell)}")
    return interpret_values(cells, head, table.name)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse_either_part(table: Table, names: Sequence[str], held: Collection[str], files: Sequence[Any]) -> None:
    """ValueError if files that the table names without their part are in this one and in another one."""
    place = PurePosixPath(table.name)
    said = {part_of(word) for word in re.split(r"[\W_]+", f"{place.parent.name} {place.stem}")}
    ours = next((part_of(folder) for folder in PurePosixPath(names[0]).parts[:-1] if part_of(folder)), None)
    if ours in said:
        return  # its name says that it is of this part
    elsewhere = sorted(held)
    own, others, exact = FileIndex(names), FileIndex(elsewhere), set(names)
    for file in files:
        here, there = own.find(file), others.find(file)
        if here is not None and there is not None and str(file) not in exact:
            raise ValueError(
                f"{table.name} names {file}, which may be {names[here]} or {elsewhere[there]}: give the paths with "
                "their part, or a table for each part, such as train.csv"
            )


def _complain(table: Table, names: Sequence[str], result: Labelling, complain: Callable[[str], None]) -> None:
    what = f"the label table {table.name}"
    if result.unlabelled:
        named = join_names(f"{file} ({why})" for file, why in result.unlabelled)
        complain(f"{what} says NaN or nothing for {len(result.unlabelled):,} images: {named}")
    known = {file for file, _ in result.unlabelled}
    missing = [
        name
        for i, (name, value) in enumerate(zip(names, result.values, strict=True))
        if value is None and name not in known and i not in result.parts
    ]
    if missing:
        complain(f"{what} has no label for {len(missing):,} of {len(names):,} images: {join_names(missing)}")
    if result.absent:
        complain(f"{what} lists {len(result.absent):,} files that are not there: {join_names(result.absent)}")
