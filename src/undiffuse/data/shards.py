"""Shards that `convert` writes: WebDataset tars and Hugging Face parquet."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from undiffuse.data.formats.base import need
from undiffuse.data.sources import Source

__all__ = ["CLASSES", "label_of", "write_parquet", "write_tars"]

CLASSES = "classes.txt"
"""The class table beside tar shards, a name a line: .cls members hold numbers, as WebDataset's decoders expect."""
_ROWS = 100
"""Pictures of a row group, as `datasets` writes them: a picture is read with its group."""


class Encoded(Protocol):
    """A picture as it is written."""

    @property
    def number(self) -> int: ...
    @property
    def file(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def name(self) -> str: ...


def write_tars(place: Path, source: Source, items: Iterator[Any], shard_size: int, count: int) -> None:
    """A folder of shards with .png or .jpg, .cls and .json members, and the class table in classes.txt."""
    names = source.label_names or (source.vector_names if source.multi_hot else None)
    if names is not None:
        (place / CLASSES).write_text("\n".join(names) + "\n", encoding="utf-8")
    total = -(-count // shard_size)
    for shard in range(total):
        with tarfile.open(place / f"shard-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for item in islice(items, shard_size):
                key = f"{item.number:08d}"
                _add(archive, key + PurePosixPath(item.file).suffix, item.data)
                number = source.label(item.number)
                if number is not None:
                    _add(archive, f"{key}.cls", str(number).encode("ascii"))
                record = {**label_of(source, item.number), "name": item.name}
                _add(archive, f"{key}.json", json.dumps(record, ensure_ascii=False).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))


def write_parquet(place: Path, single: bool, source: Source, items: Iterator[Any], shard_size: int, count: int) -> None:
    """data/train-*.parquet with the features in the schema's metadata, or one file."""
    pyarrow = need("pyarrow", "parquet", "parquet files")
    parquet = need("pyarrow.parquet", "parquet", "parquet files")
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    fields = [("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))]
    if source.label_names is not None:
        features["label"] = {"names": source.label_names, "_type": "ClassLabel"}
        fields.append(("label", pyarrow.int64()))
    if source.multi_hot and source.vector_names is not None:
        features["labels"] = {"feature": {"names": source.vector_names, "_type": "ClassLabel"}, "_type": "Sequence"}
        fields.append(("labels", pyarrow.list_(pyarrow.int64())))
    elif source.vectors is not None:
        features["vector"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
        fields.append(("vector", pyarrow.list_(pyarrow.float32())))
    features["name"] = {"dtype": "string", "_type": "Value"}
    fields.append(("name", pyarrow.string()))
    schema = pyarrow.schema(fields, {b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    total = 1 if single else -(-count // shard_size)
    if not single:
        (place / "data").mkdir(parents=True)
    for shard in range(total):
        file = place if single else place / "data" / f"train-{shard:05d}-of-{total:05d}.parquet"
        held = items if single else islice(items, shard_size)
        with parquet.ParquetWriter(file, schema) as writer:
            while rows := list(islice(held, _ROWS)):
                writer.write_table(pyarrow.Table.from_pylist([_row(source, item) for item in rows], schema))


def _row(source: Source, item: Encoded) -> dict[str, Any]:
    row: dict[str, Any] = {"image": {"bytes": item.data, "path": PurePosixPath(item.file).name}, "name": item.name}
    if source.label_names is not None:
        row["label"] = source.label(item.number)
    if source.multi_hot and source.vector_names is not None and source.vectors is not None:
        row["labels"] = [int(k) for k in source.vectors[item.number].nonzero()[0]]
    elif source.vectors is not None:
        row["vector"] = [float(x) for x in source.vectors[item.number]]
    return row


def label_of(source: Source, i: int) -> dict[str, Any]:
    """The label, the labels or the vector of a picture, by the names that tables give them."""
    out: dict[str, Any] = {}
    number = source.label(i)
    if number is not None and source.label_names is not None:
        out["label"] = source.label_names[number]
    if source.vectors is not None and source.multi_hot and source.vector_names is not None:
        out["labels"] = [source.vector_names[k] for k in source.vectors[i].nonzero()[0]]
    elif source.vectors is not None:
        out["vector"] = [float(x) for x in source.vectors[i]]
    return out
