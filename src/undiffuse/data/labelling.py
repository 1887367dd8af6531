"""Finds out what a label table says: which column names the files, which ones the labels, and of what kind these are.

Columns are found by their names or by their contents. What was taken is said in one line (`Labelling.said`), so that a
wrong guess is seen; `labels="FILE:FILE_COLUMN:LABEL_COLUMN"` replaces the guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from undiffuse.data.file_index import FileIndex
from undiffuse.data.formats.base import part_of
from undiffuse.data.labels import join_names
from undiffuse.data.tables import Table, TableSpec

__all__ = ["Labelling", "interpret"]

FILE_KEYS = (
    "file", "path", "filename", "filepath", "name", "image", "img", "imagename", "imagepath", "imageid", "imageindex",
    "imgname", "imgpath", "imgid", "id", "key",
)  # fmt: skip
LABEL_KEYS = (
    "label", "class", "classname", "category", "labels", "classes", "target", "classid", "labelid", "labelname",
    "categoryname", "y", "dx", "diagnosis", "findinglabels", "tags", "species", "breed", "identity",
)  # fmt: skip
NUMBER_KEYS = (
    "age", "ageapprox", "patientage", "angle", "yaw", "pitch", "roll", "year", "weight", "height", "length", "width",
    "temperature", "score", "brightness", "redshift", "mass", "latitude", "longitude", "price", "time",
)  # fmt: skip
"""Columns of these names hold numbers, even if few different ones."""
_NOTHING = {"", "nan", "null", "n/a", "<na>", "#n/a", "#na"}
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
    """

    kind: Literal["class", "multi", "numbers"]
    values: list[Any]
    names: tuple[str, ...] = ()
    said: str = ""
    unlabelled: list[tuple[str, str]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    doubt: str = ""


def interpret(
    table: Table,
    names: Sequence[str],
    spec: TableSpec,
    complain: Callable[[str], None] | None = None,
    held: Collection[str] = (),
) -> Labelling:
    """What a table says of the pictures with these names.

    Args:
        table: the rows.
        names: the pictures.
        spec: the columns to take, where they are named.
        complain: hears about pictures without a label and rows without a picture; it may raise.
        held: pictures that are there but not wanted; rows about them are passed over.

    Raises:
        ValueError: the table has no such columns, its columns are ambiguous, or it names none of the pictures.
    """
    index = FileIndex(names)
    header, rows, lines = _header(table, index, spec)
    width = max((len(row) for row in rows), default=0)
    columns = list(header) if header is not None else [f"column {k + 1}" for k in range(width)]
    columns += [f"column {k + 1}" for k in range(len(columns), width)]
    if not rows:
        raise ValueError(f"{table.name} holds no labels")
    for line, row in zip(lines, rows, strict=True):
        if len(row) < 2:
            raise ValueError(f"{table.name}, line {line}: expected a path and a label, got {row}")
    file_column = _file_column(table, columns, rows, index, spec, header is not None)
    others = [k for k in range(len(columns)) if k != file_column]
    chosen = [_named(table, columns, name) for name in spec.label_columns]
    if not chosen:
        chosen = _label_columns(table, columns, rows, others, header is not None)
    result = _read(table, names, index, rows, lines, columns, file_column, chosen, bool(spec.label_columns))
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
    result.said = (
        f"{table.name}: files in {shown[0]}, {kind} in {labels}{form}, {matched:,} of {len(names):,} pictures matched"
    )
    if complain is not None:
        _complain(table, names, result, complain)
    return result


def _header(table: Table, index: FileIndex, spec: TableSpec) -> tuple[list[str] | None, list[list[Any]], list[int]]:
    """The names of the columns if there are any, and the rows below them."""
    if table.columns is not None:
        return list(table.columns), table.rows, table.lines
    rows, lines = table.rows, table.lines
    if not rows:
        raise ValueError(f"{table.name} holds no labels")
    first = [str(cell) for cell in rows[0]]
    simple = [_simple(cell) for cell in first]
    named = {spec.file_column, *spec.label_columns} - {None} <= set(first) and bool(spec.label_columns)
    known = bool(set(simple) & set(FILE_KEYS)) and bool(set(simple) & set(LABEL_KEYS))
    files = any(index.find(cell) is not None for cell in first)
    others = any(index.find(cell) is not None for row in rows[1:_PROBE] for cell in row)
    if files or not (named or known or others):
        return None, rows, lines
    if len(rows) > 1 and len(first) + 1 == len(rows[1]):
        first = ["file", *first]  # CelebA's header leaves out the column of the files
    return first, rows[1:], lines[1:]


def _simple(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _named(table: Table, columns: Sequence[str], name: str) -> int:
    for same in (lambda a, b: a == b, lambda a, b: _simple(a) == _simple(b) != ""):
        for k, column in enumerate(columns):
            if same(column, name):
                return k
    if name.isdecimal() and 1 <= int(name) <= len(columns):
        return int(name) - 1
    raise ValueError(f"{table.name} has no column {name!r}; its columns are {join_names(columns, 20)}")


def _file_column(
    table: Table, columns: Sequence[str], rows: list[list[Any]], index: FileIndex, spec: TableSpec, header: bool
) -> int:
    if spec.file_column is not None:
        return _named(table, columns, spec.file_column)
    taken = {_named(table, columns, name) for name in spec.label_columns}
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
            if _simple(column) == key:
                return k
    return 0


def _label_columns(
    table: Table, columns: Sequence[str], rows: list[list[Any]], others: list[int], header: bool
) -> list[int]:
    """The columns that hold the labels, by name or by contents."""
    if not header:
        binary = [k for k in others if _binary(rows, k)]
        return others if len(others) > 1 and len(binary) == len(others) else others[:1]
    for key in LABEL_KEYS:
        for k in others:
            if _simple(columns[k]) == key:
                return [k]
    binary = [k for k in others if _binary(rows, k)]
    if len(binary) > 1:
        return binary
    if len(others) == 1:
        return others
    names = [columns[k] for k in others]
    raise ValueError(
        f"{table.name} has the columns {join_names(columns, 20)}, and none is known to hold the labels: name one with "
        f'labels="{table.name}:{names[0]}"'
        + (f', or several with labels="{table.name}:{names[0]},{names[1]}"' if len(names) > 1 else "")  # fmt: skip
        if names
        else f"{table.name} has no column of labels, only {join_names(columns)}"
    )


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return float(cell)
    if isinstance(cell, (int, float)):
        return float(cell)
    if not isinstance(cell, str):
        return None
    text = cell.strip()
    lowered = text.lower()
    if lowered in ("true", "false"):
        return float(lowered == "true")
    try:
        return float(text)
    except ValueError:
        try:
            return float(text.replace(",", ".")) if text.count(",") == 1 else None  # decimal commas
        except ValueError:
            return None


def _binary(rows: list[list[Any]], k: int) -> bool:
    """Whether a column holds 0 and 1, or -1 and 1, or parts of these, and nothing else but gaps."""
    seen: set[float | None] = set()
    for row in rows:
        seen.add(_number(row[k]) if k < len(row) and not _is_nothing(row[k]) else 0.0)
        if not seen <= {0.0, 1.0, -1.0}:
            return False
    return True


def _is_nothing(cell: Any) -> bool:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return isinstance(cell, str) and cell.strip().lower() in _NOTHING


def _read(
    table: Table, names: Sequence[str], index: FileIndex, rows: list[list[Any]], lines: list[int],
    columns: Sequence[str], file_column: int, chosen: list[int], named: bool,
) -> Labelling:  # fmt: skip
    """The labels of all rows, put to their pictures."""
    files: list[str] = []
    cells: list[list[Any]] = []
    for line, row in zip(lines, rows, strict=True):
        file = row[file_column] if file_column < len(row) else None
        if _is_nothing(file) or isinstance(file, (dict, list)) or len(row) <= max(chosen):
            raise ValueError(f"{table.name}, line {line}: expected a path and a label, got {_shown(row)}")
        files.append(PurePosixPath(str(file).strip().replace("\\", "/")).as_posix())
        cells.append([row[k] for k in chosen])
    heads = [columns[k] for k in chosen]
    if len(chosen) > 1:
        result, values = _of_columns(table, files, cells, heads)
    else:
        result, values = _of_one_column(table, lines, files, [cell[0] for cell in cells], heads[0], named)
    result.values = [None] * len(names)
    known: dict[str, Any] = {}
    for line, file, value, row in zip(lines, files, values, rows, strict=True):
        if known.setdefault(file, value) != value:
            raise ValueError(
                f"{table.name}, line {line}: {file} is given two labels, {known[file]!r} and {value!r}; several labels "
                'of one picture go into one row ("a|b")'
            )
        i = index.find(row[file_column])
        if i is None:
            result.absent.append(file)
        elif value is None:
            cell = next((row[k] for k in chosen if _is_nothing(row[k]) or len(chosen) == 1), None)
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


def _of_columns(
    table: Table, files: list[str], cells: list[list[Any]], heads: list[str]
) -> tuple[Labelling, list[Any]]:
    """One-hot classes, several labels, or numbers: what several columns hold."""
    numbers = [[None if _is_nothing(cell) else _number(cell) for cell in row] for row in cells]
    for row, raw, file in zip(numbers, cells, files, strict=True):
        for value, cell in zip(row, raw, strict=True):
            if value is None and not _is_nothing(cell):
                raise ValueError(
                    f"{table.name}: several columns ({join_names(heads, 6)}) must hold numbers, or 0 and 1, and "
                    f"{file} has {cell!r}: name one column of classes"
                )
    seen = {value for row in numbers for value in row if value is not None}
    blank = any(value is None for row in numbers for value in row)
    if not seen <= {0.0, 1.0, -1.0}:
        return Labelling(kind="numbers", values=[], names=tuple(heads)), [
            None if None in row or not all(math.isfinite(v) for v in row if v is not None) else tuple(row)
            for row in numbers
        ]
    if -1.0 in seen and (0.0 in seen or blank):
        raise ValueError(
            f"{table.name}: the columns {join_names(heads, 6)} hold -1 beside 1 and {'0' if 0.0 in seen else 'gaps'}, "
            "so that it is unknown what -1 means (uncertain, as in CheXpert, or no): replace -1 by 0, 1 or nothing"
        )
    sums = [sum(value == 1 for value in row) for row in numbers]
    gaps = [all(value is None for value in row) for row in numbers]
    if -1.0 not in seen and all(total == 1 for total, gap in zip(sums, gaps, strict=True) if not gap):
        chosen = [None if gap else heads[row.index(1.0)] for row, gap in zip(numbers, gaps, strict=True)]
        return Labelling(kind="class", values=[], said="one-hot"), list(chosen)
    tags = [
        None if gap else tuple(head for head, value in zip(heads, row, strict=True) if value == 1)
        for row, gap in zip(numbers, gaps, strict=True)
    ]
    said = f"{len(heads)} columns of {'-1' if -1.0 in seen else '0'} and 1"
    return Labelling(kind="multi", values=[], names=tuple(heads), said=said), list(tags)


def _of_one_column(
    table: Table, lines: list[int], files: list[str], cells: list[Any], head: str, named: bool
) -> tuple[Labelling, list[Any]]:
    """Classes, several labels, or numbers: what one column holds."""
    present = [cell for cell in cells if not _is_nothing(cell)]
    for line, cell in zip(lines, cells, strict=True):
        if isinstance(cell, dict):
            raise ValueError(f"{table.name}, line {line}: expected a label (a name or a number), got {_shown(cell)}")
    if any(isinstance(cell, list) for cell in present):
        return _of_lists(table, cells)
    numbers = [_number(cell) if not isinstance(cell, bool) else None for cell in present]
    count, distinct = len(present), len({str(cell) for cell in present})
    if present and None not in numbers:
        whole = all(value is not None and math.isfinite(value) and value == int(value) for value in numbers)
        key = _simple(head) in LABEL_KEYS or head.startswith("column ")
        binary = {value for value in numbers if value is not None} <= {0.0, 1.0, -1.0}
        many = count >= 4 and distinct > max(2, count // 2)
        if not whole or (not key and many) or (_simple(head) in NUMBER_KEYS and not binary):
            values = [None if _is_nothing(cell) or not math.isfinite(_number(cell) or 0.0) else (_number(cell),)
                      for cell in cells]  # fmt: skip
            return Labelling(kind="numbers", values=[], names=(head,)), list(values)
        negative = sorted({int(value) for value in numbers if value is not None and value < 0})
        if negative == [-1] and {int(value) for value in numbers if value is not None} == {-1, 1}:
            pair = [None if _is_nothing(cell) else head if _number(cell) == 1 else f"not {head}" for cell in cells]
            return Labelling(kind="class", values=[], said=f"1 is {head!r}, -1 is 'not {head}'"), list(pair)
        if -1 in negative:
            cells = [None if not _is_nothing(cell) and _number(cell) == -1 else cell for cell in cells]
            distinct -= 1
        texts = [None if _is_nothing(cell) else _plain(cell) for cell in cells]
    else:
        texts = [None if _is_nothing(cell) else _plain(cell) for cell in cells]
        for separator in ("|", ";"):
            parts = [part.strip() for text in texts if text for part in text.split(separator)]
            joined = sum(separator in text for text in texts if text)
            if joined and len({part for part in parts if part}) < len({text for text in texts if text}) + joined:
                split = [None if text is None else tuple(dict.fromkeys(p.strip() for p in text.split(separator) if
                         p.strip())) for text in texts]  # fmt: skip
                names = tuple(sorted({tag for tags in split if tags for tag in tags}))
                return Labelling(kind="multi", values=[], names=names, said=f"separated by {separator!r}"), list(split)
    doubt = ""
    if count >= 10 and distinct >= 0.9 * count:
        doubt = (
            f"{table.name}: {distinct:,} classes for {count:,} pictures: nearly every picture has a class of its own. "
            f"Is {head!r} the column of the labels?"
        )
    return Labelling(kind="class", values=[], doubt=doubt), list(texts)


def _of_lists(table: Table, cells: list[Any]) -> tuple[Labelling, list[Any]]:
    """Lists in cells (JSON): vectors of numbers, or names of several labels."""
    lists = [None if _is_nothing(cell) else cell if isinstance(cell, list) else [cell] for cell in cells]
    flat = [item for cell in lists if cell for item in cell]
    if all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in flat):
        lengths = {len(cell) for cell in lists if cell is not None}
        if len(lengths) == 1:
            wide = lengths.pop()
            values = [None if cell is None else tuple(float(v) for v in cell) for cell in lists]
            return Labelling(kind="numbers", values=[], names=tuple(f"label[{k}]" for k in range(wide))), list(values)
    split = [None if cell is None else tuple(dict.fromkeys(_plain(item) for item in cell)) for cell in lists]
    names = tuple(sorted({tag for tags in split if tags for tag in tags}))
    return Labelling(kind="multi", values=[], names=names, said="lists"), list(split)


def _plain(cell: Any) -> str:
    """A label as text; "2.0" is 2, as tables with gaps write whole numbers."""
    text = str(cell).strip()
    if isinstance(cell, bool) or text.lower() in ("true", "false"):
        return text.lower()
    value = _number(cell)
    whole = value is not None and math.isfinite(value) and value == int(value)
    return str(int(value)) if whole and value is not None and not text.lstrip("-").isdigit() else text


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
    missing = [n for n, value in zip(names, result.values, strict=True) if value is None and n not in known]
    if missing:
        complain(f"{what} has no label for {len(missing):,} of {len(names):,} images: {join_names(missing)}")
    if result.absent:
        complain(f"{what} lists {len(result.absent):,} files that are not there: {join_names(result.absent)}")
