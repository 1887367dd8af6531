"""The few messages of Protocol Buffers that hold pictures, read by hand: tf.train.Example and Caffe's Datum.

References:
    https://protobuf.dev/programming-guides/encoding/: varints, and fields as (number << 3) | wire type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Datum", "Feature", "datum", "example", "fields", "try_datum"]

Feature = list[bytes] | list[float] | list[int]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a message of Protocol Buffers is cut short")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes, int]]:
    """(number, wire type, value, offset of the value) of every field of a message.

    Raises:
        ValueError: it is none.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a message of Protocol Buffers has a field without a number")
        start = at
        if kind == 0:
            value, at = _varint(data, at)
            yield number, kind, value, start
            continue
        if kind == 2:
            length, start = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a message of Protocol Buffers has a field of wire type {kind}")
        at = start + length
        if at > len(data):
            raise ValueError("a message of Protocol Buffers is cut short")
        yield number, kind, data[start:at], start


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _integers(data: bytes) -> list[int]:
    out, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        out.append(_signed(value))
    return out


def example(data: bytes) -> dict[str, Feature]:
    """The features of a tf.train.Example: {name: list of bytes, of floats or of integers}.

    Raises:
        ValueError: it is none.
    """
    found: dict[str, Feature] = {}
    for number, _, features, _ in fields(data):
        if number != 1 or not isinstance(features, bytes):
            continue
        for one, _, entry, _ in fields(features):
            if one != 1 or not isinstance(entry, bytes):
                continue
            name, feature = "", b""
            for key, _, value, _ in fields(entry):
                if key == 1 and isinstance(value, bytes):
                    name = value.decode("utf-8", "replace")
                elif key == 2 and isinstance(value, bytes):
                    feature = value
            found[name] = _feature(feature)
    return found


def _feature(data: bytes) -> Feature:
    for number, _, content, _ in fields(data):
        if not isinstance(content, bytes):
            continue
        items = list(fields(content))
        if number == 1:
            return [value for _, _, value, _ in items if isinstance(value, bytes)]
        if number == 2:  # packed, or one by one
            raw = b"".join(value for _, _, value, _ in items if isinstance(value, bytes))
            return [float(x) for x in np.frombuffer(raw, dtype="<f4")]
        if number == 3:
            out: list[int] = []
            for _, kind, value, _ in items:
                out += [_signed(value)] if kind == 0 and isinstance(value, int) else _integers(bytes(value))  # type: ignore[arg-type]
            return out
    return []


@dataclass(frozen=True)
class Datum:
    """Caffe's picture: planes of bytes and a label."""

    channels: int
    height: int
    width: int
    data: bytes
    label: int
    encoded: bool


def datum(data: bytes) -> Datum:
    """A Datum message.

    Raises:
        ValueError: it is none, or its planes have another size than it says.
    """
    numbers: dict[int, int] = {}
    content = b""
    for number, kind, value, _ in fields(data):
        if number == 4 and isinstance(value, bytes):
            content = value
        elif kind == 0 and number in (1, 2, 3, 5, 7) and isinstance(value, int):
            numbers[number] = _signed(value)
        elif number != 6:
            raise ValueError(f"field {number} is not Datum's")
    found = Datum(
        numbers.get(1, 0), numbers.get(2, 0), numbers.get(3, 0), content, numbers.get(5, -1), bool(numbers.get(7, 0))
    )
    if not found.data or found.encoded or found.channels * found.height * found.width != len(found.data):
        raise ValueError("the planes of a Datum have another size than it says")
    return found


def try_datum(data: bytes) -> Datum | None:
    """A Datum message, or None."""
    try:
        return datum(data)
    except ValueError:
        return None
