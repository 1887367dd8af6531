"""Reads label tables of every common form into rows: CSV with any separator, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undiffuse.util.limits import check_rows, check_table

__all__ = ["TABLE_SUFFIXES", "Table", "TableSpec", "parse_spec", "read_table"]

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
_SPEC = re.compile(
    r"(?P<file>.*?(?:\.csv|\.tsv|\.jsonl|\.ndjson|\.json|\.parquet|\.txt))"
    r"(?::(?P<first>[^:]*))?(?::(?P<second>[^:]*))?",
    re.IGNORECASE | re.DOTALL,
)


_DECLARED = re.compile(r"\ufeff?sep=(.)\r?\n")
"""A first line by which a spreadsheet says its separator."""


@dataclass(frozen=True)
class TableSpec:
    """A table as `labels=` names it: FILE, FILE:LABEL_COLUMNS or FILE:FILE_COLUMN:LABEL_COLUMNS (columns by commas)."""

    file: str
    file_column: str | None = None
    label_columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a table.

    Attributes:
        name: what messages call it.
        columns: the names in its header; None if it may not have one (the first row of a CSV can be either).
        rows: cells; text, or what JSON and Parquet hold.
        lines: the line of each row in the file, from 1.
        separator: of a CSV: ",", ";", tab, "|" or " " (any white space); "" for other forms.
    """

    name: str
    columns: tuple[str, ...] | None
    rows: list[list[Any]]
    lines: list[int]
    separator: str = ""


def parse_spec(text: str) -> TableSpec | None:
    """What `labels=` says, if it names a table; None for any other text."""
    found = _SPEC.fullmatch(text)
    if found is None:
        return None
    first, second = found["first"], found["second"]
    if second is None:
        first, second = None, first
    columns = tuple(part.strip() for part in (second or "").split(",") if part.strip())
    return TableSpec(found["file"], first or None, columns)


def read_table(data: bytes, name: str) -> Table:
    """A table, read by the ending of its name; everything that is no JSON or Parquet is read as CSV.

    Raises:
        ValueError: it cannot be understood; the line is named.
    """
    check_table(len(data), name)
    check_rows(data.count(b"\n"), name)
    lower = name.lower()
    if lower.endswith(".parquet"):
        return _parquet(data, name)
    text = _text(data)
    if lower.endswith((".jsonl", ".ndjson")):
        return _json_lines(text, name)
    if lower.endswith(".json"):
        return _json(text, name)
    return _csv(text, name)


def _text(data: bytes) -> str:
    """UTF-8, UTF-16 with its mark, or else Western European, as spreadsheets write them."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _csv(text: str, name: str) -> Table:
    if "\r" in text and "\n" not in text:
        text = text.replace("\r", "\n")  # as old spreadsheets end their lines
    declared = _DECLARED.match(text)
    if declared:
        text = "\n" + text[declared.end() :]  # the number of a line stays
    usual = "\t" if name.lower().endswith(".tsv") else ","
    separator = declared[1] if declared else _separator(text, usual)
    rows, lines = [], []
    if separator == " ":
        for line, content in enumerate(text.splitlines(), 1):
            if content.strip():
                rows.append(content.split())
                lines.append(line)
    else:
        reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
        except csv.Error as error:  # a field beyond 128 KiB (a quote that is never closed), a null byte
            raise ValueError(f"{name}, line {reader.line_num}: this is not a table ({error})") from error
    while len(rows) > 1 and len(rows[0]) == 1 and len(rows[1]) > 1 and (rows[0][0].isdigit() or rows[0][0][:1] == "#"):
        del rows[0], lines[0]  # CelebA's tables begin with the number of their rows, others with a remark
    return Table(name=name, columns=None, rows=list(rows), lines=lines, separator=separator)


def _separator(text: str, usual: str) -> str:
    """The separator by which the first lines have the same number of cells, and more than one."""
    sample = [line for line in text.splitlines()[:51] if line.strip()]
    if len(sample) > 1 and sample[0].strip().isdigit():
        del sample[0]
    if any(len(line) > csv.field_size_limit() for line in sample):
        return usual  # the reader will say what is wrong
    best, most = usual, (0.0, 1)
    for separator in dict.fromkeys((usual, ",", ";", "\t", " ", "|")):
        try:
            widths = [
                len(line.split()) if separator == " " else len(next(csv.reader([line], delimiter=separator), []))
                for line in sample
            ]
        except csv.Error:
            continue
        if not widths or max(widths) < 2:
            continue
        common = max(set(widths), key=widths.count)
        if common < 2:
            continue
        score = (widths.count(common) / len(widths), common if separator not in (" ", "|") else 2)
        # White space and bars also occur within cells, so they must do better than what was found before.
        if score[0] > most[0] + (0.25 if separator in (" ", "|") else 0) or (
            score[0] == most[0] and score[1] > most[1] and separator not in (" ", "|")
        ):
            best, most = separator, score
    return best


def _json_lines(text: str, name: str) -> Table:
    records, lines = [], []
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        record = _parsed(content, f"{name}, line {line}")
        if not isinstance(record, Mapping):
            raise ValueError(f'{name}, line {line}: expected an object such as {{"file": ..., "label": ...}}, '
                             f"got {content.strip()[:80]}")  # fmt: skip
        records.append(record)
        lines.append(line)
    return _of_records(records, lines, name)


def _json(text: str, name: str) -> Table:
    """A list of records or pairs, {"labels": [[file, label], ...]}, {file: label}, or columns of equal length."""
    value = _parsed(text, name)
    if isinstance(value, Mapping) and "labels" in value and (value["labels"] is None or _pairs(value["labels"])):
        value = value["labels"] or []  # dataset.json of StyleGAN and EDM
    if isinstance(value, Mapping):
        columns = list(value.values())
        if columns and all(isinstance(column, (list, Mapping)) for column in columns) and len(columns) > 1:
            lists = [list(column.values()) if isinstance(column, Mapping) else column for column in columns]
            if all(len(column) == len(lists[0]) for column in lists) and len(lists[0]) != len(lists):
                rows = [list(row) for row in zip(*lists, strict=True)]
                return Table(name=name, columns=tuple(map(str, value)), rows=rows, lines=list(range(1, len(rows) + 1)))
        value = [[file, label] for file, label in value.items()]
    if not isinstance(value, list):
        raise ValueError(f"{name}: expected a list of records, or an object of files and labels")
    if value and not _pairs(value):
        if not all(isinstance(record, Mapping) for record in value):
            raise ValueError(f"{name}: expected a list of records, or of pairs of a file and a label")
        return _of_records(value, list(range(1, len(value) + 1)), name)
    return Table(name=name, columns=("file", "label"), rows=[list(pair) for pair in value],
                 lines=list(range(1, len(value) + 1)))  # fmt: skip


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)


def _of_records(records: Sequence[Mapping[str, Any]], lines: list[int], name: str) -> Table:
    columns = tuple(dict.fromkeys(str(key) for record in records for key in record))
    return Table(name=name, columns=columns, rows=[[r.get(key) for key in columns] for r in records], lines=lines)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: this is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise ValueError(f"{where}: this is no JSON that can be read ({error})") from error


def _parquet(data: bytes, name: str) -> Table:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(f"{name}: reading Parquet needs pyarrow: pip install 'undiffuse[parquet]'") from error
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        check_rows(file.metadata.num_rows, name)
        groups = (file.metadata.row_group(k) for k in range(file.metadata.num_row_groups))
        check_table(sum(group.total_byte_size for group in groups), name)
        table = file.read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as Parquet: {error}") from error
    plain = [field.name for field in table.schema if not pyarrow.types.is_nested(field.type) or
             pyarrow.types.is_list(field.type)]  # fmt: skip
    columns = [table.column(column).to_pylist() for column in plain]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Table(name=name, columns=tuple(plain), rows=rows, lines=list(range(1, len(rows) + 1)))
