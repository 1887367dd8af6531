"""Reads columns of a label table picture by picture: numbers, or the names of partner pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.file_index import FileIndex
from undiffuse.data.label_values import is_nothing, number_of
from undiffuse.data.labelling import file_column_of, header_of, named_column
from undiffuse.data.labels import join_names
from undiffuse.data.tables import Table, TableSpec

__all__ = ["Columns", "read_columns"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a table, put to pictures.

    Attributes:
        names: of the columns, as the table has them.
        cells: a row of cells for each picture; None for a picture that the table does not name.
        where: the name of the table.
    """

    names: tuple[str, ...]
    cells: list[list[Any] | None]
    where: str

    @property
    def missing(self) -> list[int]:
        """Pictures that the table does not name, or of which a cell is empty."""
        return [i for i, row in enumerate(self.cells) if row is None or any(is_nothing(cell) for cell in row)]

    def numbers(self) -> NDArray[np.float32]:
        """The cells as numbers [N, K]; NaN where there is nothing.

        Raises:
            ValueError: A cell holds something that is no finite number.
        """
        out = np.full((len(self.cells), len(self.names)), np.nan, dtype=np.float32)
        for i, row in enumerate(self.cells):
            for k, cell in enumerate(row or ()):
                value = None if is_nothing(cell) else number_of(cell)
                if value is None and is_nothing(cell):
                    continue
                if value is None or not math.isfinite(value):
                    raise ValueError(f"{self.where}: the column {self.names[k]!r} must hold numbers, and has {cell!r}")
                out[i, k] = value
        return out


def read_columns(table: Table, names: Sequence[str], spec: TableSpec) -> Columns:
    """Finds the named columns of a table and the pictures that its rows are about.

    Args:
        table: The rows.
        names: Names of the pictures.
        spec: The columns to take, and the column of files where it is named.

    Raises:
        ValueError: There is no such column, no row names a picture, or two rows about one picture differ.
    """
    index = FileIndex(names)
    header, rows, lines = header_of(table, index, spec)
    width = max((len(row) for row in rows), default=0)
    columns = list(header) if header is not None else [f"column {k + 1}" for k in range(width)]
    chosen = [named_column(table, columns, name) for name in spec.label_columns]
    file_column = file_column_of(table, columns, rows, index, spec, header is not None)
    cells: list[list[Any] | None] = [None] * len(names)
    for line, row in zip(lines, rows, strict=True):
        i = index.find(row[file_column]) if file_column < len(row) else None
        if i is None:
            continue
        found = [row[k] if k < len(row) else None for k in chosen]
        if cells[i] is not None and cells[i] != found:
            raise ValueError(f"{table.name}, line {line}: {names[i]} has two rows that differ, {cells[i]} and {found}")
        cells[i] = found
    if all(row is None for row in cells):
        shown = join_names((str(row[file_column]) for row in rows if file_column < len(row)), 2)
        raise ValueError(
            f"{table.name} names none of the {len(names):,} images: its column of files is taken to be "
            f"{columns[file_column]!r} ({shown}); the images are {join_names(names, 2)}"
        )
    return Columns(names=tuple(columns[k] for k in chosen), cells=cells, where=table.name)
