"""Parquet as Hugging Face has it: shards with a column of encoded pictures and class names in the schema's metadata.

A picture is read with its row group; the groups read last are kept, up to 256 MiB in each process.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.decoding import Picture
from undiffuse.data.formats import huggingface
from undiffuse.data.formats.base import Reading, choose_part, need, part_of, peek
from undiffuse.data.formats.slices import Kept
from undiffuse.data.formats.stored import Handle
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source
from undiffuse.util.limits import check_rows, check_unpacked


def recognise(path: Path) -> bool:
    """A parquet file, or a folder that holds some but no pictures beside them."""
    if path.is_file():
        return True
    entries = peek(path)
    here = any(name.endswith(".parquet") for name in entries.files)
    return (here or (len(entries.folders) < 64 and _none_but_texts(entries.files))) and bool(_files(path))


def _none_but_texts(names: tuple[str, ...]) -> bool:
    return all(name.lower().endswith((".md", ".txt", ".json", ".yaml", ".yml", "license")) for name in names)


def _files(folder: Path) -> list[Path]:
    """The shards, in order; a table metadata.parquet belongs to an imagefolder."""
    files = [file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}.parquet")]
    files = [file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts)]
    return [] if any(file.name == "metadata.parquet" for file in files) else sorted(files)


def _part(file: Path, root: Path) -> str:
    """ "data/train-00000-of-00002.parquet" and "train/0000.parquet" are of the part "train"."""
    stem = re.sub(r"-\d+-of-\d+$", "", file.stem)
    names = [stem, *re.split(r"[-_.]", stem), *(p for p in reversed(file.relative_to(root).parts[:-1]))]
    known = next((name for name in names if part_of(name)), None)
    return known or (stem if re.search(r"-\d+-of-\d+$", file.stem) else "")


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of a file, or of the training shards of a folder."""
    parquet = need("pyarrow.parquet", "parquet", str(path))
    files, where, held = [path], f"parquet {path}", {}
    if path.is_dir():
        parts: dict[str, list[Path]] = {}
        for file in _files(path):
            parts.setdefault(_part(file, path), []).append(file)
        _one_configuration(path, parts)
        counts = {name: sum(parquet.read_metadata(file).num_rows for file in group) for name, group in parts.items()}
        chosen = choose_part(counts, reading, str(path))
        files = [file for name in chosen for file in parts[name]]
        held = {name: count for name, count in counts.items() if name not in chosen}
        named = ", ".join(name for name in chosen if name)
        where = f"parquet files in {path}" + (f" ({named})" if named else "")
    source = ParquetSource(files, path if path.is_dir() else path.parent, where)
    source.held_out.update(held)
    source.notes.append(
        f"images from column {source.columns.image} of {len(files):,} file{'s' if len(files) > 1 else ''}"
    )
    return huggingface.label(source, source.columns, source.column, reading)


def _one_configuration(path: Path, parts: dict[str, list[Path]]) -> None:
    """Refuse a folder of several configurations of a data set, whose columns differ."""
    folders = {file.relative_to(path).parts[:-1] for files in parts.values() for file in files}
    tops = {parts[0] for parts in folders if parts and not part_of(parts[0])}
    if len(tops) > 1:
        raise ValueError(
            f"{path} holds several data sets, {join_names(sorted(tops))}: name one, as in {path / min(tops)}"
        )


class ParquetSource(Source):
    """Pictures in a column of parquet files, row by row."""

    def __init__(self, files: list[Path], base: Path, where: str) -> None:
        super().__init__(where)
        parquet = need("pyarrow.parquet", "parquet", where)
        self.files, self.base = files, base
        self.containers = tuple(map(str, files))
        try:
            metadata = [parquet.read_metadata(file) for file in files]
            schemas = [parquet.read_schema(file) for file in files]
        except Exception as error:
            raise ValueError(f"{where} cannot be read as parquet: {error}") from error
        features = [huggingface.stored_features(schema.metadata) for schema in schemas]
        self.columns = huggingface.columns_of(schemas[0], features[0], where)
        self._orders = self._orders_of([huggingface.class_names(one) for one in features])
        check_rows(sum(m.num_rows for m in metadata), where)
        groups = [(k, g, m.row_group(g)) for k, m in enumerate(metadata) for g in range(m.num_row_groups)]
        self.groups = [(k, g) for k, g, _ in groups]
        self.first = np.cumsum([0, *(group.num_rows for *_, group in groups)])
        self.rows = np.cumsum([0, *(m.num_rows for m in metadata)])
        self._check_groups(groups)
        self._sizes = [(group.num_rows, group.total_byte_size) for *_, group in groups]
        self._kept = Handle(Kept)

    def _check_groups(self, groups: list[tuple[int, int, Any]]) -> None:
        """ValueError if the pictures of a group, which is read as a whole, unpack to too much."""
        for k, number, group in groups:
            for j in range(group.num_columns):
                column = group.column(j)
                if column.path_in_schema.split(".")[0] == self.columns.image:
                    where = f"{self.files[k]}: {column.path_in_schema} of row group {number}"
                    check_unpacked(column.total_uncompressed_size, column.total_compressed_size, where)

    def __len__(self) -> int:
        return int(self.first[-1])

    def name(self, i: int) -> str:
        k = int(np.searchsorted(self.rows, i, side="right")) - 1
        return f"{self.files[k].name}[{i - int(self.rows[k])}]"

    def _orders_of(self, tables: list[dict[str, list[str]]]) -> dict[str, list[list[str]]]:
        """{column: the class names of each file} for columns whose numbers mean other classes in other files.

        The classes of such a column become the names of all files.
        """
        orders = {}
        for column in dict.fromkeys(name for table in tables for name in table):
            found = [table.get(column) for table in tables]
            distinct = list(dict.fromkeys(tuple(names) for names in found if names is not None))
            if None in found and len(distinct) > 1:
                raise ValueError(
                    f"{self.where}: the files number the classes of {column} in different orders, and "
                    f"{self.files[found.index(None)].name} does not say which it uses"
                )
            if len(distinct) > 1:
                orders[column] = [list(names or ()) for names in found]
                self.notes.append(f"the files number the classes of {column} in different orders: names were compared")
            names = {**self.columns.names, column: list(dict.fromkeys(name for names in distinct for name in names))}
            self.columns = replace(self.columns, names=names)
        return orders

    def column(self, name: str) -> list[Any]:
        """A column of all files; classes that files number differently as names."""
        parquet = need("pyarrow.parquet", "parquet", self.where)
        out: list[Any] = []
        for number, file in enumerate(self.files):
            values = parquet.read_table(file, columns=[name]).column(0).to_pylist()
            orders = self._orders.get(name)
            out += values if orders is None else huggingface.named(values, orders[number], f"{file}: column {name}")
        return out

    def _item(self, i: int) -> Any:
        group = int(np.searchsorted(self.first, i, side="right")) - 1
        column = self._kept().get(group, lambda: self._read(group))
        return column[i - int(self.first[group])].as_py()

    def encoded(self, i: int) -> bytes | None:
        return huggingface.bytes_of(self._item(i))

    def image(self, i: int) -> Picture:
        return huggingface.picture_of(self._item(i), self.name(i), self.base, self.where)

    def _read(self, group: int) -> Any:
        parquet = need("pyarrow.parquet", "parquet", self.where)
        k, number = self.groups[group]
        with parquet.ParquetFile(self.files[k]) as file:
            table = file.read_row_group(number, columns=[self.columns.image])
        return table.column(0).combine_chunks() if table.column(0).num_chunks == 1 else table.column(0)

    def _content_hash(self) -> bytes:
        sha = hashlib.sha256()
        for file in self.files:
            sha.update(file.name.encode("utf-8", "surrogateescape") + b"\0")
        sha.update(repr(self._sizes).encode())
        return sha.digest()
