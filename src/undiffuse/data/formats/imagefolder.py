"""Hugging Face imagefolder: image files with metadata.jsonl, metadata.csv or metadata.parquet beside them.

Each table lists the pictures of its own folder by ``file_name`` (or ``image_file_name`` and the like), relative to it.
Parts are folders: ``train/metadata.jsonl``, ``test/metadata.jsonl``.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from undiffuse.data.formats import files
from undiffuse.data.formats.base import Reading, need, peek, with_labels
from undiffuse.data.labels import folder_labels, join_names
from undiffuse.data.sources import Source

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FOLDERS = 2000
LABELS = (
    "label",
    "labels",
    "class",
    "class_name",
    "classname",
    "category",
    "target",
    "targets",
    "class_label",
    "cls",
    "fine_label",
    "y",
    "vector",
    "vectors",
    "condition",
)


def recognise(path: Path) -> bool:
    """A folder or zip with a metadata table, at the top or in a sub-folder near it."""
    return bool(_tables_near(path))


def _tables_near(path: Path) -> list[str]:
    if not path.is_dir():
        if not zipfile.is_zipfile(path):
            return []
        return [name for name in files.members(path) if _is_table(name) and not name.startswith("__MACOSX")]
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
        named = f"{path}: {join_names(tables)} list {len(absent):,} files that are not there: {join_names(absent, 5)}"
        if reading.on_broken == "refuse":
            raise ValueError(f'{named}. Correct that, or go on with what fits by on_broken="skip"')
        source.left_out[f"entries of {join_names(tables, 2)} without a file"] = len(absent)
    columns = list(dict.fromkeys(key for record in records.values() for key in record if not _is_file_key(key)))
    column = None
    if not reading.of_files:
        column = reading.field(f"{path}: {join_names(tables, 2)}", columns, LABELS)
    unused = [name for name in columns if name != column]
    if unused:
        source.notes.append(f"columns of {join_names(tables, 2)} that are not used: {join_names(unused)}")
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
        source, values, reading, names=_names_of(path, column), field=f"column {column} of {join_names(tables, 2)}"
    )


def _names_of(path: Path, column: str) -> list[str] | None:
    """Class names that a README.md or dataset_info.json beside the pictures declares for the column."""
    info = path / "dataset_info.json"
    if not info.is_file():
        return None
    try:
        feature = json.loads(info.read_text("utf-8"))["features"][column]
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


def _read(path: Path, table: str) -> Iterable[dict[str, Any]]:
    content = files.read_member(path, table)
    if table.endswith(".parquet"):
        parquet = need("pyarrow.parquet", "parquet", table)
        rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(content)).to_pylist()
        return rows
    text = content.decode("utf-8-sig")
    if table.endswith(".csv"):
        return [{key: value for key, value in row.items() if key} for row in csv.DictReader(io.StringIO(text))]
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: {table}, line {number}: this is not JSON ({error})") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}: {table}, line {number}: expected an object, got {line[:60]}")
            records.append(record)
    return records
