"""Known pictures and labels, and the small writers of the formats that need no library."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undiffuse.data import Source
from undiffuse.data.formats.crc32c import masked

COUNT = 12
RNG = np.random.default_rng(13)
X = RNG.integers(0, 256, (COUNT, 10, 14, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (COUNT, 10, 14), dtype=np.uint8)
Y = np.array([7 * i % 5 for i in range(COUNT)])
NAMES = ["zebra", "ant", "bee", "cow", "dog"]
"""Not sorted: a class table keeps its own order."""


def png(image: np.ndarray, ending: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, ending)
    return file.getvalue()


def write_pngs(folder: Path, names: list[str], images: np.ndarray = X) -> Path:
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(image))
    return folder


def pixels(source: Source) -> np.ndarray:
    return np.stack([np.asarray(source.image(i)) for i in range(len(source))])


def classes(source: Source) -> list[str]:
    assert source.labels is not None and source.label_names is not None
    return [source.label_names[k] for k in source.labels]


def check(source: Source, images: np.ndarray = X, labels: Any = Y, names: list[str] | None = None) -> None:
    """The source holds exactly these pictures and labels, in this order."""
    assert len(source) == len(images)
    assert np.array_equal(pixels(source), images)
    assert source.stored_size(0) == (images.shape[2], images.shape[1])
    if labels is None:
        assert source.labels is None
    else:
        assert classes(source) == [names[k] if names else str(k) for k in labels]
        if names:
            assert source.label_names == names
    assert len({source.name(i) for i in range(len(source))}) == len(source)
    assert len(source.fingerprint) == 64


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def cifar10(images: np.ndarray, labels: Any) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], planes], axis=1).tobytes()


def record(message: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(message))
    return length + struct.pack("<I", masked(length)) + message + struct.pack("<I", masked(message))


def _varint(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def example(**features: Any) -> bytes:
    """A tf.train.Example of bytes and integers; "__" in a name is "/"."""
    entries = b""
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], bytes):
            feature = _field(1, b"".join(_field(1, v) for v in values))
        elif isinstance(values[0], float):
            feature = _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = _field(3, _field(1, b"".join(_varint(v) for v in values)))
        entries += _field(1, _field(1, name.replace("__", "/").encode()) + _field(2, feature))
    return _field(1, entries)
