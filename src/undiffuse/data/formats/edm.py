"""Data sets of NVIDIA's dataset_tool.py (StyleGAN2-ADA, StyleGAN3, EDM, EDM2): a zip or a folder with dataset.json.

Pictures lie in shelf folders of 1,000 (``00000/img00000000.png``), which are no classes. ``dataset.json`` has
``{"labels": [[name, label], ...]}`` or ``{"labels": null}``; a label is an integer (a class) or a list of numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from undiffuse.data.formats import files
from undiffuse.data.formats.base import Reading, with_labels
from undiffuse.data.sources import Source
from undiffuse.util.limits import is_zip

TABLE = "dataset.json"


def recognise(path: Path) -> bool:
    """A folder or zip with dataset.json that holds "labels"."""
    table = _table(path)
    if table is None:
        return False
    try:
        head = files.read_member(path, table)
    except (OSError, ValueError, RuntimeError):
        return False
    return b'"labels"' in head[:65536] or b'"labels"' in head


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures with the labels of dataset.json: classes, or vectors."""
    table = _table(path)
    assert table is not None
    top = table.removesuffix(TABLE)
    try:
        content: Any = json.loads(files.read_member(path, table))
        pairs = content["labels"]
        labels = {} if pairs is None else {top + str(name).replace("\\", "/"): label for name, label in pairs}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f'{path}: {table} cannot be read: expected {{"labels": [[name, label], ...]}} ({error})'
        ) from error
    listing = files.list_files(path)
    _used(listing, table)
    source = files.source_of(path, listing, Reading(part=reading.part))
    if reading.labels == "none":
        return source
    if pairs is None or not labels:
        source.notes.append(f"{table} has no labels (null): the shelf folders are no classes")
        source.labels_settled = True
        return source
    names = set(source.names)
    absent = [name for name in labels if name not in names]
    if absent and not source.held_out:
        source.left_out[f"labels in {table} of pictures that are not there"] = len(absent)
    if len(absent) == len(labels):
        raise ValueError(f"{path}: {table} labels {absent[0]!r} and others, none of which is there")
    values = [labels.get(name) for name in source.names]
    return with_labels(source, values, reading, names=content.get("class_names"), field=f"{table} of dataset_tool")


def _table(path: Path) -> str | None:
    """The name of dataset.json in a folder or zip, which may lie in the one folder that a zip wraps."""
    if path.is_dir():
        return TABLE if (path / TABLE).is_file() else None
    if not is_zip(path):
        return None
    names = [name for name in files.tables_in(path) if name == TABLE or name.endswith(f"/{TABLE}")]
    return min(names, key=len) if names and min(name.count("/") for name in names) <= 1 else None


def _used(listing: files.Listing, table: str) -> None:
    """A table that is read is not left out."""
    if table in listing.tables:
        listing.tables.remove(table)
        listing.others[files.kind_of(table)] -= 1
        listing.others = +listing.others
