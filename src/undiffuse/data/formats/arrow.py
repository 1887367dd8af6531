"""Folders that `datasets.Dataset.save_to_disk` and `DatasetDict.save_to_disk` write: memory-mapped Arrow streams."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.decoding import Picture
from undiffuse.data.formats import huggingface
from undiffuse.data.formats.base import Reading, choose_part, need
from undiffuse.data.formats.stored import Handle, concatenated
from undiffuse.data.sources import Source
from undiffuse.util.limits import check_name, check_rows


def recognise(path: Path) -> bool:
    """A folder with state.json or dataset_dict.json and Arrow files, or an Arrow file."""
    if path.is_file():
        return True
    return (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow")))


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of a data set, or of the training part of several."""
    need("pyarrow", "parquet", str(path))
    if not (path / "dataset_dict.json").is_file():
        return _one(path, reading)
    splits = [str(name) for name in json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]]
    counts = {name: len(ArrowSource(path / name)) for name in splits}
    chosen = choose_part(counts, reading, str(path))
    source = concatenated([_one(path / name, reading) for name in chosen], f"save_to_disk folder {path}")
    source.where = f"save_to_disk folder {path} ({', '.join(chosen)})"
    source.held_out.update({name: count for name, count in counts.items() if name not in chosen})
    return source


def _one(path: Path, reading: Reading) -> Source:
    source = ArrowSource(path)
    source.notes.append(f"images from column {source.columns.image}")
    return huggingface.label(source, source.columns, source.column, reading)


class ArrowSource(Source):
    """Pictures in a column of Arrow files, row by row."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"save_to_disk folder {path}" if path.is_dir() else f"Arrow file {path}")
        self.path, self.files, self.indices = path, [path], None
        if path.is_dir():
            self.files, self.indices = _described(path)
        self.table = Handle(partial(_table, [str(file) for file in self.files]))
        table = self.table()
        folder = path if path.is_dir() else path.parent
        features = huggingface.stored_features(table.schema.metadata, folder / "dataset_info.json")
        self.columns = huggingface.columns_of(table.schema, features, self.where)
        lengths = [len(chunk) for chunk in table.column(self.columns.image).chunks]
        self.first = np.cumsum([0, *lengths])
        check_rows(int(self.first[-1]), self.where)
        self.count = int(self.first[-1]) if self.indices is None else len(self.indices)

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return f"{self.path.name}[{i}]"

    def _row(self, i: int) -> int:
        return i if self.indices is None else int(self.indices[i])

    def column(self, name: str) -> list[Any]:
        """A column, in the order of the pictures."""
        column = self.table().column(name)
        values: list[Any] = (
            column if self.indices is None else column.take(need("pyarrow", "parquet", "").array(self.indices))
        ).to_pylist()
        return values

    def _item(self, i: int) -> Any:
        row = self._row(i)
        chunk = int(np.searchsorted(self.first, row, side="right")) - 1
        return self.table().column(self.columns.image).chunk(chunk)[row - int(self.first[chunk])].as_py()

    def encoded(self, i: int) -> bytes | None:
        return huggingface.bytes_of(self._item(i))

    def image(self, i: int) -> Picture:
        folder = self.path if self.path.is_dir() else self.path.parent
        return huggingface.picture_of(self._item(i), self.name(i), folder, self.where)

    def _content_hash(self) -> bytes:
        sha = hashlib.sha256()
        for file in self.files:
            sha.update(f"{file.name}\0{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        if self.indices is not None:
            sha.update(self.indices.astype("<i8").tobytes())
        return sha.digest()


def _described(folder: Path) -> tuple[list[Path], NDArray[np.int64] | None]:
    """The files of a data set in their order, and the rows it takes of them where it is a selection."""
    files, indices = sorted(folder.glob("data-*.arrow")) or sorted(folder.glob("*.arrow")), None
    state_file = folder / "state.json"
    if state_file.is_file():
        state = json.loads(state_file.read_text("utf-8"))
        names = [entry["filename"] for entry in state.get("_data_files") or []]
        for name in names:
            check_name(str(name), str(state_file))
        files = [folder / name for name in names] or files
        chosen = [folder / entry["filename"] for entry in state.get("_indices_data_files") or []]
        if chosen:
            column = _table([str(file) for file in chosen]).column(0)
            indices = np.asarray(column.to_numpy(), dtype=np.int64)
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise ValueError(f"{folder} lacks its data: {', '.join(missing) or 'no .arrow file'}")
    return files, indices


def _table(files: list[str]) -> Any:
    """The rows of Arrow files, memory-mapped."""
    pyarrow = need("pyarrow", "parquet", files[0])
    tables = []
    for file in files:
        mapped = pyarrow.memory_map(file)
        try:
            tables.append(pyarrow.ipc.open_stream(mapped).read_all())
        except pyarrow.ArrowInvalid:
            try:
                tables.append(pyarrow.ipc.open_file(mapped).read_all())
            except pyarrow.ArrowInvalid as error:
                raise ValueError(f"{file} cannot be read as Arrow: {error}") from error
    return pyarrow.concat_tables(tables)
