"""Labels from folders, file-name prefixes and CSV or JSONL tables, and the class table they share.

A class is known by its name; its number is its place in the class table, which is sorted (by value where every name is
an integer) and stored with the model, so that training, validation and sampling mean the same class by the same number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TABLE_SUFFIXES",
    "apply_table",
    "class_table",
    "folder_labels",
    "listed",
    "match_table",
    "prefix_labels",
    "read_table",
]

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_FILE_KEYS = ("file", "path", "filename", "file_name", "name", "image")
_LABEL_KEYS = ("label", "class", "class_name", "category")


def listed(names: Iterable[str], limit: int = 10) -> str:
    """ "a, b, c and 4 more": at most `limit` names of what may be many."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def class_table(values: Iterable[str]) -> list[str]:
    """The distinct class names, sorted; by value where all are integers ("2" before "10")."""
    distinct = set(values)
    try:
        return sorted(distinct, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(distinct)


def apply_table(values: Sequence[str], table: Sequence[str], where: str) -> NDArray[np.int64]:
    """Class names -> numbers [N] by a class table.

    Raises:
        ValueError: names that the table does not have (they are listed), or a table with a name twice.
    """
    numbers = {name: number for number, name in enumerate(table)}
    if len(numbers) != len(table):
        raise ValueError(f"the class table names a class twice: {listed(table)}")
    unknown = class_table(value for value in values if value not in numbers)
    if unknown:
        raise ValueError(
            f"{where} has labels that are not in the class table: {listed(unknown)}. "
            f"The table has {len(table)} classes: {listed(table)}"
        )
    return np.array([numbers[value] for value in values], dtype=np.int64)


def folder_labels(names: Sequence[str], known: Sequence[str] | None = None) -> list[str | None]:
    """The first sub-folder of each path is its class; None for a file that lies in no sub-folder.

    Folders that wrap everything (a zip with one top folder) are skipped as long as all files have a sub-folder below.
    With a class table `known`, the depth is the first at which all names are in it, if there is one.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    depth = min((len(parts) for parts in folders), default=0)
    if known is not None:
        for level in range(depth):
            if all(parts[level] in known for parts in folders):
                return [parts[level] for parts in folders]
    level = 0
    while level + 1 < depth and len({parts[level] for parts in folders}) == 1:
        level += 1
    return [parts[level] if len(parts) > level else None for parts in folders]


def prefix_labels(names: Sequence[str]) -> list[str | None]:
    """The file name before its first underscore; None where there is none ("cat_0012.png" -> "cat")."""
    stems = [PurePosixPath(name).name.partition("_") for name in names]
    return [before if underscore and before else None for before, underscore, _ in stems]


def read_table(text: str, name: str) -> dict[str, str]:
    """A table of labels, by the ending of `name`: CSV or TSV (path, label) or JSONL ({"file": ..., "label": ...}).

    A CSV may have a header that names its columns (file/path/filename/..., label/class/...); without one, the first two
    columns are taken. Labels are names or integers. Returns {path: class name}, with "/" in paths and no leading "./".

    Raises:
        ValueError: a line that cannot be understood (its number is told), or a file with two different labels.
    """
    read = _read_json_lines if name.lower().endswith((".jsonl", ".ndjson")) else _read_csv
    table: dict[str, str] = {}
    for line, file, label in read(text.removeprefix("\ufeff"), name):
        path = PurePosixPath(file.strip().replace("\\", "/")).as_posix()
        if table.setdefault(path, label) != label:
            raise ValueError(f"{name}, line {line}: {path} is given two labels, {table[path]!r} and {label!r}")
    if not table:
        raise ValueError(f"{name} holds no labels")
    return table


def _read_csv(text: str, name: str) -> Iterable[tuple[int, str, str]]:
    rows = csv.reader(io.StringIO(text), delimiter="\t" if name.lower().endswith(".tsv") else ",")
    file_column, label_column = 0, 1
    first = True
    for row in _understood(rows, name):
        if not any(cell.strip() for cell in row):
            continue
        if first:
            first = False
            heads = [cell.strip().lower() for cell in row]
            files = [heads.index(key) for key in _FILE_KEYS if key in heads]
            labels = [heads.index(key) for key in _LABEL_KEYS if key in heads]
            if files and labels:
                file_column, label_column = files[0], labels[0]
                continue
        cells = [cell.strip() for cell in row]
        if len(cells) <= max(file_column, label_column) or not cells[file_column] or not cells[label_column]:
            raise ValueError(f"{name}, line {rows.line_num}: expected a path and a label, got {row}")
        yield rows.line_num, cells[file_column], cells[label_column]


def _understood(rows: Any, name: str) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:  # a field beyond 128 KiB (a quote that is never closed), a null byte
        raise ValueError(f"{name}, line {rows.line_num}: this is not a table ({error})") from error


def _read_json_lines(text: str, name: str) -> Iterable[tuple[int, str, str]]:
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}, line {line}: this is not JSON ({error.msg})") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            raise ValueError(f"{name}, line {line}: this is no JSON that can be read ({error})") from error
        record = record if isinstance(record, Mapping) else {}
        file = next((record[key] for key in _FILE_KEYS if key in record), None)
        label = next((record[key] for key in _LABEL_KEYS if key in record), None)
        if not isinstance(file, str) or isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
            raise ValueError(
                f'{name}, line {line}: expected {{"file": path, "label": name or integer}}, got {content.strip()[:80]}'
            )
        yield line, file, str(label)


def match_table(
    names: Sequence[str], table: Mapping[str, str], where: str, complain: Callable[[str], None]
) -> list[str | None]:
    """The label of each file by its path, or by its bare file name where the table lists bare names.

    `complain` hears about files without a label and entries without a file: raise there, or go on without them.

    Raises:
        ValueError: not one file is in the table.
    """
    found = [table.get(name) for name in names]
    used = {name for name in names if name in table}
    if not used:
        bare = [PurePosixPath(name).name for name in names]
        if len(set(bare)) == len(bare):
            found = [table.get(name) for name in bare]
            used = {name for name in bare if name in table}
    if not used:
        raise ValueError(
            f"{where} matches none of the {len(names):,} images: it lists {listed(table, 2)}; the images are "
            f"{listed(names, 2)}. Paths must be relative to the data folder"
        )
    missing = [name for name, label in zip(names, found, strict=True) if label is None]
    if missing:
        complain(f"{where} has no label for {len(missing):,} of {len(names):,} images: {listed(missing)}")
    absent = [name for name in table if name not in used]
    if absent:
        complain(f"{where} lists {len(absent):,} files that are not there: {listed(absent)}")
    return found
