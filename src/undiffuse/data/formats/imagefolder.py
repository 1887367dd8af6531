"""Hugging Face imagefolder: image files with metadata.jsonl, metadata.csv or metadata.parquet beside them.

Each table lists the pictures of its own folder by ``file_name`` (or ``image_file_name`` and the like), relative to it.
Parts are folders: ``train/metadata.jsonl``, ``test/metadata.jsonl``.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from undiffuse.data.formats import files
from undiffuse.data.formats.base import Reading, peek, with_labels
from undiffuse.data.label_values import LABEL_KEYS, is_nothing, number_of, simple
from undiffuse.data.labels import folder_labels, join_names
from undiffuse.data.sources import Excluded, Source
from undiffuse.data.tables import read_table
from undiffuse.util.limits import is_zip

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FOLDERS = 2000
LABELS = (*LABEL_KEYS, "vector", "vectors", "condition")
"""Names of the fields of records that hold labels."""
_CAPTIONS = ("text", "caption", "captions", "prompt", "description", "alttext", "url", "name", "id")
"""Columns that are no labels even if there is no other column."""
_HEAD = 1 << 16
"""Bytes of a table that are read to find the names of its columns."""


def recognise(path: Path) -> bool:
    """A folder or zip with a metadata table that names files, at the top or in a sub-folder near it."""
    tables = _tables_near(path)
    return bool(tables) and _names_files(path, tables[0])


def _names_files(path: Path, table: str) -> bool:
    """Whether a table has a column file_name, as Hugging Face's tables do."""
    if table.endswith(".parquet"):
        return True
    try:
        first = files.read_head(path, table, _HEAD).decode("utf-8-sig", "replace").strip().split("\n")[0]
        keys = json.loads(first) if table.endswith(".jsonl") else re.split(r"[,;\t|]", first)
    except (OSError, ValueError, RecursionError):
        return True  # the error is raised where the table is read
    return any(_is_file_key(str(key).strip().strip("\"'")) for key in keys)


def _tables_near(path: Path) -> list[str]:
    if not path.is_dir():
        if not is_zip(path):
            return []
        return [name for name in files.tables_in(path) if _is_table(name) and not name.startswith("__MACOSX")]
    found = []
    entries = peek(path)
    found = [table for table in TABLES if table in entries.files]
    for name in entries.folders[:_FOLDERS] if not found else ():
        found += [f"{name}/{table}" for table in TABLES if (path / name / table).is_file()]
    return found


def _is_table(name: str) -> bool:
    return posixpath.basename(name) in TABLES


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures with the labels of the tables; without a label column, labels are found as for any folder."""
    listing = files.list_files(path)
    tables = sorted(name for name in listing.tables if _is_table(name))
    records: dict[str, dict[str, Any]] = {}
    for table in tables:
        listing.tables.remove(table)
        listing.others[files.kind_of(table)] -= 1
        for record in _read(path, table):
            file = _file_of(record, f"{path}: {table}")
            records[posixpath.normpath(posixpath.join(posixpath.dirname(table), file))] = record
    if "dataset_info.json" in listing.tables:  # which names the classes
        listing.others[files.kind_of("dataset_info.json")] -= 1
    listing.others = +listing.others
    source = files.source_of(path, listing, reading)
    here = set(listing.names)
    absent = [name for name in records if name not in here]
    if absent:
        named = f"{path}: {len(absent):,} files of {join_names(tables)} are not there: {join_names(absent, 5)}"
        if reading.on_broken == "refuse":
            raise ValueError(f'{named}. Correct that, or leave them out with on_broken="skip"')
        source.excluded += [Excluded(name=name, reason=f"in {join_names(tables, 2)}, but not there") for name in absent]
    columns = list(dict.fromkeys(key for record in records.values() for key in record if not _is_file_key(key)))
    column = None
    if not reading.of_files:
        column = reading.field(f"{path}: {join_names(tables, 2)}", columns, LABELS)
        if column is None and reading.labels == "auto" and len(columns) == 1:
            column = columns[0] if _holds_labels(columns[0], [r.get(columns[0]) for r in records.values()]) else None
    unused = [name for name in columns if name != column]
    if unused:
        source.notes.append(f"columns of {join_names(tables, 2)} that are not used: {join_names(unused)}")
    if column is None and reading.labels == "auto":
        few = next((name for name in columns if _few([r.get(name) for r in records.values()])), None)
        source.notes += [f'labels="{few}" takes the column {few!r} as classes'] if few else []
    if reading.of_files or reading.labels == "none":
        return source
    if column is None:  # captions and the like are no labels; folders may be
        folders = folder_labels(files.without_part(source.names.runs), reading.label_names)
        source.labels_settled = True
        if None in folders or (len(set(folders)) < 2 and reading.label_names is None):
            return source
        return with_labels(source, folders, reading, field="the names of folders")
    values = [records.get(name, {}).get(column) for name in source.names]
    return with_labels(
        source,
        values,
        reading,
        names=_names_of(path, column),
        field=f"column {column} of {join_names(tables, 2)}",
        head=column,
    )


def _few(values: list[Any]) -> bool:
    """Whether many pictures share each of the values, which are texts or numbers."""
    present = [str(value) for value in values if not is_nothing(value)]
    plain = not any(isinstance(value, (dict, list)) for value in values)
    return plain and 1 < len(set(present)) <= len(present) / 2


def _holds_labels(column: str, values: list[Any]) -> bool:
    """Whether the only column of a table holds labels: numbers, or texts of which many pictures share each."""
    if simple(column) in _CAPTIONS or any(isinstance(value, (dict, list)) for value in values):
        return False
    present = [value for value in values if not is_nothing(value)]
    numeric = bool(present) and all(number_of(value) is not None for value in present)
    return numeric or _few(values)


def _names_of(path: Path, column: str) -> list[str] | None:
    """Class names that a README.md or dataset_info.json beside the pictures declares for the column."""
    info = path / "dataset_info.json"
    if not info.is_file():
        return None
    try:
        feature = json.loads(info.read_text("utf-8"))["features"][column]
        feature = feature["feature"] if "names" not in feature else feature
        return [str(name) for name in feature["names"]]
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _is_file_key(key: str) -> bool:
    return key == "file_name" or key.endswith("_file_name") or key == "file_names"


def _file_of(record: dict[str, Any], where: str) -> str:
    keys = [key for key in record if _is_file_key(key)]
    first = next((key for key in ("file_name", "image_file_name") if key in keys), keys[0] if len(keys) == 1 else None)
    if first is None or not isinstance(record[first], str):
        raise ValueError(
            f"{where}: expected a column file_name with the path of a picture, got {join_names(record, 6)}"
        )
    return record[first].replace("\\", "/")


def _read(path: Path, name: str) -> Iterable[dict[str, Any]]:
    table = read_table(files.read_member(path, name), name)
    if table.columns is None:  # the first row of a CSV file
        rows, columns = table.rows[1:], table.rows[0] if table.rows else []
        for line, row in zip(table.lines[1:], rows, strict=True):
            if len(row) > len(columns):
                raise ValueError(
                    f"{path}: {name}, line {line}: {len(row)} cells, but {len(columns)} columns: put text that "
                    "contains the separator in quotes"
                )
        return [{key: cell for key, cell in zip(columns, row, strict=False) if key} for row in rows]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
