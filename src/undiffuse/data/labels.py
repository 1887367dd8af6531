"""Labels from folders and file-name prefixes, and the class table that all labels share.

A class is known by its name; its number is its place in the class table, which is sorted (by value where every name is
an integer) and stored with the model, so that training, validation and sampling mean the same class by the same number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.names import Runs
from undiffuse.util import text

__all__ = ["apply_table", "class_table", "folder_labels", "join_names", "prefix_labels", "shelved"]

_SHELF = re.compile(r"\d{4,}")
_STEM = re.compile(r"[a-zA-Z_-]{0,12}(\d{1,18})\.\w+")
_OF_TOOL = re.compile(r"img\d{8}\.\w+")


def join_names(names: Iterable[str], limit: int = 10) -> str:
    """ "a, b, c and 4 more": at most `limit` names of what may be many."""
    return text.join_names(names, limit)


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
        raise ValueError(f"the class table names a class twice: {join_names(table)}")
    unknown = class_table(value for value in values if value not in numbers)
    if unknown:
        raise ValueError(
            f"{where} has labels that are not in the class table: {join_names(unknown)}. "
            f"The table has {len(table)} classes: {join_names(table)}"
        )
    return np.array([numbers[value] for value in values], dtype=np.int64)


def folder_labels(runs: Runs, known: Sequence[str] | None = None) -> list[str | None]:
    """The first sub-folder of each path is its class; None for a file that lies in no sub-folder.

    Folders that wrap everything (a zip with one top folder) are skipped as long as all files have a sub-folder below.
    With a class table `known`, the depth is the first at which all names are in it, if there is one.
    """
    folders = [tuple(folder.split("/")) if folder else () for folder in runs.folders]
    depth = min((len(parts) for parts in folders), default=0)
    level = 0
    while level + 1 < depth and len({parts[level] for parts in folders}) == 1:
        level += 1
    if known is not None:
        table = set(known)
        level = next((k for k in range(depth) if all(parts[k] in table for parts in folders)), level)
    labels: list[str | None] = []
    for parts, count in zip(folders, runs.counts.tolist(), strict=True):
        labels += [parts[level] if len(parts) > level else None] * count
    return labels


def shelved(names: Sequence[str], runs: Runs) -> bool:
    """Whether the folders are shelves, which hold a number of pictures each, and not classes.

    Shelves are those of NVIDIA's dataset_tool (00000/img00000000.png), and folders that are numbered with leading zeros
    after the pictures in them, as in FFHQ (01000/01000.png to 01000/01999.png).

    Args:
        names: of the pictures.
        runs: their folders, without those of parts.
    """
    folders = [tuple(folder.split("/")) for folder in runs.folders]
    level = 0
    while folders and all(len(parts) > level + 1 for parts in folders) and len({p[level] for p in folders}) == 1:
        level += 1
    shelves = ["/".join(parts[level:]) for parts in folders]
    if not shelves or len(set(map(len, shelves))) > 1 or not all(_SHELF.fullmatch(shelf) for shelf in shelves):
        return False
    files = (name.rpartition("/")[2] for name in names)
    if len(shelves[0]) == 5 and all(map(_OF_TOOL.fullmatch, files)):
        return True
    steps = {100, 1000, 10_000}
    for shelf, first, last in zip(map(int, shelves), runs.starts[:-1].tolist(), runs.starts[1:].tolist(), strict=True):
        for name in names[first:last]:
            match = _STEM.fullmatch(name.rpartition("/")[2])
            number = int(match[1]) if match else -1
            steps = {step for step in steps if shelf in (number // step, number // step * step)}
            if not steps:
                return False
    return len(set(shelves)) > 1


def prefix_labels(names: Sequence[str]) -> list[str | None]:
    """The file name before its first underscore; None where there is none ("cat_0012.png" -> "cat")."""
    stems = [PurePosixPath(name).name.partition("_") for name in names]
    return [before if underscore and before else None for before, underscore, _ in stems]
