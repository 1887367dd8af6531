"""What parquet files and save_to_disk folders of Hugging Face share: features, the image column, the label column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.decoding import Picture
from undiffuse.data.formats.base import Reading, need, with_labels
from undiffuse.data.formats.imagefolder import LABELS
from undiffuse.data.formats.layout import axes_of, picture_shape
from undiffuse.data.formats.stored import decoded
from undiffuse.data.labels import join_names
from undiffuse.data.sources import BrokenImageError, Source

__all__ = ["Columns", "bytes_of", "columns_of", "label", "picture_of", "stored_features"]

_IMAGES = ("image", "img", "images", "jpg", "png", "jpeg", "picture", "image_bytes", "pixels", "bytes", "pixel_values")


_STARTS = tuple(list(start) for start in (b"\x89PNG", b"RIFF", b"GIF8", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1",
                                           b"\xff\xd8\xff\xdb", b"II*\0", b"MM\0*"))  # fmt: skip
"""How image files begin that are stored as lists of numbers."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table: the one of the pictures, the others, and the class names of label columns."""

    image: str
    others: tuple[str, ...]
    names: Mapping[str, list[str]]


def stored_features(metadata: Mapping[bytes, bytes] | None, info: Path | None = None) -> dict[str, Any]:
    """The features in a schema's metadata under "huggingface", else in dataset_info.json; empty without either."""
    if metadata and b"huggingface" in metadata:
        content = json.loads(metadata[b"huggingface"])
        features = (content.get("info") or {}).get("features")
        if isinstance(features, dict):
            return features
    if info is not None and info.is_file():
        features = json.loads(info.read_text("utf-8")).get("features")
        return features if isinstance(features, dict) else {}
    return {}


def columns_of(schema: Any, features: Mapping[str, Any], where: str) -> Columns:
    """Which columns of an Arrow schema hold what.

    Raises:
        ValueError: no column of pictures, or several.
    """
    pyarrow = need("pyarrow", "parquet", where)
    types = {field.name: field.type for field in schema}
    declared = [name for name in types if _type_of(features.get(name)) in ("Image", "Array2D", "Array3D")]
    stored = [
        name for name, kind in types.items()
        if pyarrow.types.is_struct(kind) and {"bytes"} <= {kind.field(k).name for k in range(kind.num_fields)}
    ]  # fmt: skip
    binary = [
        name
        for name, kind in types.items()
        for stored_kind in [kind.value_type if pyarrow.types.is_dictionary(kind) else kind]
        if pyarrow.types.is_binary(stored_kind) or pyarrow.types.is_large_binary(stored_kind)
        or pyarrow.types.is_fixed_size_binary(stored_kind)
    ]  # fmt: skip
    nested = [name for name, kind in types.items() if _depth(kind) in (2, 3)]
    flat = [name for name, kind in types.items() if name in _IMAGES and _depth(kind) == 1]
    for found in (declared, stored, binary, nested, flat):
        usual = [name for name in _IMAGES if name in found]
        if usual or len(found) == 1:
            image = usual[0] if usual else found[0]
            break
        if len(found) > 1:
            raise ValueError(f"{where} has several columns of pictures: {join_names(found)}")
    else:
        raise ValueError(
            f"{where} has no column of pictures; its columns are {join_names(f'{n} ({t})' for n, t in types.items())}"
        )
    return Columns(image, tuple(name for name in types if name != image), class_names(features))


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The class names of the columns whose feature is a ClassLabel or a list of them."""
    found = {}
    for name, feature in features.items():
        while isinstance(feature, list) and feature:
            feature = feature[0]
        while isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        if _type_of(feature) == "ClassLabel" and feature.get("names"):
            found[name] = [str(n) for n in feature["names"]]
    return found


def named(values: Sequence[Any], names: Sequence[str], where: str) -> list[Any]:
    """Numbers of classes, alone or in lists, as names; negative ones, which mean "no label", as None.

    Raises:
        ValueError: A number beyond the names.
    """

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(item) for item in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if value >= len(names):
            raise ValueError(f"{where}: {value} does not fit the {len(names)} class names {join_names(names, 4)}")
        return names[value] if value >= 0 else None

    return [name(value) for value in values]


def _type_of(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _depth(kind: Any) -> int:
    depth = 0
    while hasattr(kind, "value_type") and not hasattr(kind, "index_type"):
        kind, depth = kind.value_type, depth + 1
    return depth


def bytes_of(item: Any) -> bytes | None:
    """The image file in a cell, if its bytes are there."""
    item = item.get("bytes") if isinstance(item, Mapping) else item
    return item if isinstance(item, bytes) else None


def picture_of(item: Any, name: str, base: Path, where: str) -> Picture:
    """A picture from a cell: {"bytes": ..., "path": ...}, bytes, a path, or nested lists of numbers.

    Raises:
        BrokenImageError: it is empty, cannot be decoded, or names a file that is not there.
    """
    if isinstance(item, Mapping):
        item = item["bytes"] if item.get("bytes") is not None else item.get("path")
    if isinstance(item, str):
        file = base / item
        if not file.is_file():
            raise BrokenImageError(
                name, f"the table has no bytes for it, only the path {item}, and there is no such file"
            )
        item = file.read_bytes()
    if item is None:
        raise BrokenImageError(name, "the table has nothing for it")
    if isinstance(item, bytes):
        return decoded(item, name)
    if isinstance(item, list) and item and item[:4] in _STARTS:
        return decoded(bytes(item), name)
    array = np.asarray(item)
    if array.ndim == 1 and array.dtype.kind in "uif":
        try:
            array = array.reshape(picture_shape(len(array), where)[0])
        except ValueError as error:
            raise BrokenImageError(name, str(error)) from error
    if array.dtype == object or array.ndim not in (2, 3):
        raise BrokenImageError(name, f"nested lists of shape {list(array.shape)} are no picture")
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    return array.transpose(axes_of(array.shape, where)[0])


def label(source: Source, columns: Columns, read: Any, reading: Reading) -> Source:
    """The source with the labels of its table.

    Args:
        columns: of the table.
        read: a function from the name of a column to its values [N].
    """
    field = reading.field(source.where, columns.others, (*LABELS, *columns.names))
    unused: Sequence[str] = [name for name in columns.others if name != field]
    if unused:
        source.notes.append(f"columns that are not used: {join_names(unused)}")
    source.labels_settled = True
    if field is None:
        return source
    values, names = read(field), columns.names.get(field)
    values = values if names is None else named(values, names, f"{source.where}: column {field}")
    return with_labels(source, values, reading, names=names, field=f"column {field}", head=field)
