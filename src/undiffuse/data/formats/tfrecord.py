"""TFRecord files of tf.train.Example messages, without TensorFlow.

A record is its length (uint64), a masked CRC-32C of the length, the message, and a masked CRC-32C of the message. The
files are indexed once; then every picture is read at random. Pictures are encoded files (``image/encoded``,
``image``), or raw bytes with a shape (StyleGAN's ``data`` and ``shape``, or ``height``, ``width`` and ``depth``).
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.decoding import PictureInfo, describe
from undiffuse.data.formats import crc32c, protobuf
from undiffuse.data.formats.base import Reading, choose_part, part_of, peek, with_labels
from undiffuse.data.formats.layout import axes_of
from undiffuse.data.formats.named import _is_file
from undiffuse.data.formats.spans import SpanSource, packed_as, read_span, unpacked
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source
from undiffuse.util import limits

_NAME = re.compile(r"\.tfrecords?\b|tfrecord|\.tfrec\b|\.tfr$|\.record$|-\d{5}-of-\d{5}$", re.IGNORECASE)
_LOD = re.compile(r"-r(\d\d)\.tfrecords?$", re.IGNORECASE)
_PICTURES = (
    "image/encoded",
    "image",
    "image_raw",
    "encoded",
    "jpeg",
    "png",
    "img",
    "image_data",
    "data",
    "x",
    "image/raw",
)
_LABELS = ("image/class/label", "label", "labels", "class/label", "class", "image/label", "target", "y", "fine_label")
_TEXTS = ("image/class/text", "image/class/name", "class/text", "class_name")
_SIDES = (("image/height", "height", "rows", "img_height", "h"), ("image/width", "width", "cols", "img_width", "w"))
_CHECKED = 256 << 20
"""Files up to this many bytes have the checksums of all messages compared; of larger ones, those of the lengths."""


@dataclass
class _Record:
    file: int
    offset: int
    size: int
    features: dict[str, protobuf.Feature]


class RawSpanSource(SpanSource):
    """Raw pictures in files, uint8, each with its own shape."""

    def __init__(self, *arguments: Any, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__(*arguments)
        self.shapes = list(shapes)

    def image(self, i: int) -> Any:
        data = read_span(self.shards[int(self.shard[i])], int(self.offsets[i]), int(self.sizes[i]))
        array = np.frombuffer(data, dtype=np.uint8).reshape(self.shapes[i])
        return array.transpose(axes_of(array.shape, self.where)[0])

    def info(self, i: int) -> PictureInfo:
        return describe(self.image(i))

    def _keep(self, keep: Sequence[int] | NDArray[np.int64]) -> None:
        super()._keep(keep)
        self.shapes = [self.shapes[i] for i in keep]


def recognise(path: Path) -> bool:
    """A file by its name and the checksum of its first length, or a folder that holds one."""
    if path.is_dir():
        return bool(_files(path))
    return bool(_NAME.search(path.name.removesuffix(".gz"))) and _framed(path)


def _framed(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
        packed = "" if _is_length(head) else packed_as(path)  # a length may begin like a packed file
        if packed == "gzip":
            with gzip.open(path) as file:
                head = file.read(12)
        elif packed == "zlib":
            with path.open("rb") as file:
                head = zlib.decompressobj().decompress(file.read(1 << 12), 12)
    except (OSError, EOFError, zlib.error):
        return False
    return _is_length(head)


def _is_length(head: bytes) -> bool:
    return len(head) == 12 and crc32c.masked(head[:8]) == struct.unpack("<I", head[8:])[0]


def _files(folder: Path) -> list[Path]:
    if not any(_NAME.search(name.removesuffix(".gz")) for name in peek(folder).files):
        return []
    return sorted(file for file in folder.iterdir() if file.is_file() and recognise(file))


def _part(path: Path) -> str:
    name = re.sub(r"-\d{5}-of-\d{5}", "", path.name)
    return next((word for word in re.split(r"[-_.]", name) if part_of(word)), "")


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of a file, or of the training files of a folder."""
    if path.is_file():
        return _open([path], f"TFRecord {path}", reading)
    files, left_out = _files(path), 0
    lods = {file: int(match[1]) for file in files if (match := _LOD.search(file.name))}
    if lods:  # StyleGAN's pyramid: the same pictures at every resolution
        left_out = len(files) - len(files := [file for file in files if lods.get(file) == max(lods.values())])
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_part(file), []).append(file)
    counts = {name: sum(1 for file in group for _ in _messages(file, False)) for name, group in parts.items()}
    chosen = choose_part(counts, reading, str(path))
    named = ", ".join(name for name in chosen if name)
    where = f"TFRecord files in {path}" + (f" ({named})" if named else "")
    source = _open([file for name in chosen for file in parts[name]], where, reading)
    source.held_out.update({name: count for name, count in counts.items() if name not in chosen})
    if left_out:
        source.left_out["TFRecords of lower resolutions"] = left_out
    return source


def _messages(path: Path, check: bool) -> Iterator[tuple[int, bytes]]:
    """(offset, message) of every record of an unpacked file.

    Raises:
        ValueError: a checksum differs, or the file was cut short.
    """
    if _is_packed(path):
        path = unpacked(path)
    at = 0
    with path.open("rb") as file:
        while head := file.read(12):
            if len(head) < 12 or crc32c.masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise ValueError(f"{path}: the record at byte {at:,} is damaged (the checksum of its length differs)")
            (length,) = struct.unpack("<Q", head[:8])
            if check:
                message = file.read(length)
                tail = file.read(4)
                if len(message) < length or len(tail) < 4:
                    raise ValueError(f"{path}: the record at byte {at:,} was cut short")
                if path.stat().st_size <= _CHECKED and crc32c.masked(message) != struct.unpack("<I", tail)[0]:
                    raise ValueError(f"{path}: the record at byte {at:,} is damaged (its checksum differs)")
            else:
                message = b""
                file.seek(length + 4, io.SEEK_CUR)
            yield at + 12, message
            at += 16 + length


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return not _is_length(head) and bool(packed_as(path))


def _open(files: Sequence[Path], where: str, reading: Reading) -> Source:
    paths = [str(unpacked(file) if _is_packed(file) else file) for file in files]
    records, left_out, key = [], Counter[str](), None
    shapes: list[tuple[int, ...]] = []
    seen: Counter[str] = Counter()
    for number, file in enumerate(files):
        for offset, message in _messages(file, True):
            try:
                features = protobuf.example(message)
            except ValueError as error:
                raise ValueError(f"{file}: the message at byte {offset:,} is no tf.train.Example: {error}") from error
            seen.update(features)
            key = key if key is not None and key in features else _picture(features)
            content = features.get(key or "")
            data = content[0] if content else b""
            shape = _shape(features, len(data)) if isinstance(data, bytes) and not _is_file(data) else None
            if not isinstance(data, bytes) or not data or (shape is None and not _is_file(data)):
                left_out["records without a picture"] += 1
                continue
            small = {name: value for name, value in features.items() if name != key and _is_small(value)}
            records.append(_Record(number, offset + message.find(data), len(data), small))
            shapes.append(shape or ())
    if not records:
        raise ValueError(
            f"{where} holds no images: {sum(left_out.values()):,} records with the features {join_names(seen)}"
        )
    arguments = (
        where,
        paths,
        np.array([record.file for record in records], dtype=np.int32),
        np.array([record.offset for record in records], dtype=np.int64),
        [record.size for record in records],
        _names(records, files),
    )
    raw = any(shapes)
    source: SpanSource = RawSpanSource(*arguments, shapes=shapes) if raw else SpanSource(*arguments)
    source.left_out.update(left_out)
    source.notes.append(f"images from the feature {key}")
    if raw and not any(
        {"shape", "image/shape"} & set(record.features) or _sides(record.features) for record in records
    ):
        source.notes.append(f"no feature gives the shape of its raw pixels: taken as squares of {shapes[0][0]} pixels")
    return _labelled(source, records, files, reading, key or "")


def _names(records: Sequence[_Record], files: Sequence[Path]) -> list[str]:
    counts: Counter[int] = Counter()
    names = []
    for record in records:
        names.append(f"{files[record.file].name}[{counts[record.file]}]")
        counts[record.file] += 1
    return names


def _picture(features: dict[str, protobuf.Feature]) -> str | None:
    encoded = [name for name, value in features.items() if value and isinstance(value[0], bytes) and _is_file(value[0])]
    usual = [name for name in _PICTURES if name in encoded] or encoded
    if usual:
        return usual[0]
    raw = [name for name in _PICTURES if features.get(name) and isinstance(features[name][0], bytes)]
    return raw[0] if raw else None


def _shape(features: dict[str, protobuf.Feature], length: int) -> tuple[int, ...] | None:
    """The shape of a raw picture, by "shape" or by height, width and depth."""

    def number(*names: str) -> int | None:
        for name in names:
            value = features.get(name)
            if value and isinstance(value[0], int):
                return value[0]
        return None

    shape = features.get("shape") or features.get("image/shape")
    if shape and all(isinstance(n, int) for n in shape) and math.prod(shape) == length:  # type: ignore[arg-type]
        found = tuple(int(n) for n in shape)
        return found[:2] if len(found) == 3 and found[2] == 1 else found
    height, width = (number(*names) for names in _SIDES)
    if not height and not width:  # squares need no description
        side, colour = math.isqrt(length), math.isqrt(length // 3)
        return (side, side) if side * side == length else (colour, colour, 3) if 3 * colour**2 == length else None
    if not height or not width or length % (height * width):
        return None
    channels = length // (height * width)
    return (height, width) if channels == 1 else (height, width, channels)


def _sides(features: dict[str, protobuf.Feature]) -> bool:
    return any(name in features for names in _SIDES for name in names)


def _is_small(value: protobuf.Feature) -> bool:
    return len(value) <= 4096 and all(not isinstance(x, bytes) or len(x) < 4096 for x in value)


def _labelled(
    source: SpanSource, records: Sequence[_Record], files: Sequence[Path], reading: Reading, key: str
) -> Source:
    fields = list(dict.fromkeys(name for record in records for name in record.features if name != key))
    field = reading.field(source.where, fields, _LABELS)
    names = _tables(files)
    text = next((name for name in _TEXTS if name in fields and name != field), None)
    unused = [name for name in fields if name not in (field, text)]
    if unused:
        source.notes.append(f"features that are not used: {join_names(unused)}")
    source.labels_settled = True
    if field is None:
        beside = None if reading.labels == "none" else _numpy_labels(files)
        return source if beside is None else with_labels(source, beside, reading, field="the file .labels")
    values = [_value(record.features.get(field)) for record in records]
    if text is not None and names is None and all(isinstance(value, int) for value in values):
        texts = [str(_value(record.features.get(text))) for record in records]
        pairs = dict(zip(values, texts, strict=True))
        if len(pairs) == len(set(pairs.values())) and all(pairs[v] == t for v, t in zip(values, texts, strict=True)):
            names = [pairs[value] for value in sorted(pairs)]
            source.notes.append(f"class names from the feature {text}")
            return with_labels(source, texts, reading, names=names, field=f"the feature {field}")
    head = field.rpartition("/")[2]
    return with_labels(source, values, reading, names=names, field=f"the feature {field}", head=head)


def _value(feature: protobuf.Feature | None) -> Any:
    if not feature:
        return None
    first = [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in feature]
    return first[0] if len(first) == 1 else first


def _tables(files: Sequence[Path]) -> list[str] | None:
    """Class names from NAME.labels.txt beside the files, as TensorFlow Datasets writes it."""
    tables = sorted(files[0].parent.glob("*label.labels.txt")) or sorted(files[0].parent.glob("*.labels.txt"))
    if not tables:
        return None
    return [line.strip() for line in tables[0].read_text("utf-8").splitlines() if line.strip()]


def _numpy_labels(files: Sequence[Path]) -> NDArray[Any] | None:
    """StyleGAN's labels: an npy array called NAME-rxx.labels beside the files."""
    found = sorted(files[0].parent.glob("*.labels"))
    return limits.load_npy(found[0], str(found[0])) if len(found) == 1 else None
