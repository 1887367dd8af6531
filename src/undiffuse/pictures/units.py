"""Images in the units of their data: 16-bit PNG, 32-bit float TIFF and npy beside 8-bit PNG, written and read.

Images here are float32 [H, W, C] in the units of a value range (`undiffuse.pixels.to_units`); without a range the
units are 8-bit levels, 0..255.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from undiffuse.pictures.png import RECORD_KEY, parse_json, read_png_record, record_text, save_png
from undiffuse.util.errors import ConfigError
from undiffuse.util.files import atomic_file
from undiffuse.util.limits import load_npy

__all__ = [
    "ENDINGS", "IN_UNITS", "ImageFormat", "as_stored", "check_format", "decode_image", "default_format", "format_of",
    "load_image", "preview", "preview_text", "read_record", "save_image",
]  # fmt: skip

ImageFormat = Literal["png", "png16", "tiff", "npy"]
ENDINGS = {"png": ".png", "png16": ".png", "tiff": ".tiff", "npy": ".npy"}
"""The ending of the files of each format."""
IN_UNITS = ("png16", "tiff", "npy")
"""The formats of float images in units."""
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
ValueRange = tuple[float, float]


def save_image(
    path: str | os.PathLike[str],
    image: np.ndarray | Tensor,
    format: ImageFormat = "png",
    value_range: ValueRange | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
) -> Path:
    """Writes one image.

    "png": 8 bits, the range as 0..255. "png16": 16 bits; the numbers themselves where the range is of whole numbers
    within 0..65535 and wider than 255, as of a 12-bit scan; otherwise the range as 0..65535, noted in the record.
    "tiff": 32-bit floats in the units. "npy": a float32 array [H, W, C] in the units, without a record.

    Args:
        path: The file; it appears whole or not at all.
        image: Float [H, W, C] in units, or uint8.
        format: One of the four.
        value_range: (low, high) of the units; None is 8-bit levels, (0, 255).
        record: Settings that go into the file, see `save_png`; "value_range" is added to it.
        overwrite: Replace a file that is there.
        durable: Wait for the disk.

    Returns:
        The path.

    Raises:
        ValueError: Another format, an ending that does not fit it, NaN, or channels that the format cannot hold.
        FileExistsError: The file exists and `overwrite` is false.
    """
    if format not in ENDINGS:
        raise ValueError(f"format={format!r} is unknown: use {', '.join(map(repr, ENDINGS))}.")
    target = Path(path)
    endings = {".tif", ".tiff"} if format == "tiff" else {ENDINGS[format]}
    if target.suffix.lower() not in endings:
        raise ValueError(f"{target.name!r} does not end in {ENDINGS[format]}, as format={format!r} needs.")
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim != 3 or array.dtype.kind not in "fu" or 0 in array.shape:
        raise ValueError(f"expected one image [H, W, C] of floats or uint8, got {array.dtype} {list(array.shape)}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("some values are NaN or infinite, which no file can show.")
    low, high = (0.0, 255.0) if value_range is None else (float(value_range[0]), float(value_range[1]))
    about = None if record is None else dict(record)
    if about is not None and value_range is not None:
        about["value_range"] = [low, high]
    if format.startswith("png") and array.shape[2] not in _COLOUR_TYPES:
        raise ValueError(f"a PNG file has 1 to 4 channels, not {array.shape[2]}: use format='tiff' or 'npy'.")
    if format == "png":
        levels = np.clip((array.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
        if array.shape[2] == 2:
            raise ValueError("a picture of 2 channels has no 8-bit colours here: use format='tiff' or 'npy'.")
        return save_png(target, np.floor(levels + 0.5).astype(np.uint8), about, overwrite=overwrite, durable=durable)
    if format == "png16":
        if not _whole_numbers(low, high) and value_range is not None:
            about = {**(about or {}), "value_range": [low, high], "scaled_to": [0, 65535]}
        data = _png16(_levels16(array, low, high), None if about is None else record_text(about))
    elif format == "tiff":
        data = _tiff32(array.astype(np.float32), None if about is None else record_text(about))
    else:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
        data = file.getvalue()
    with atomic_file(target, overwrite=overwrite, durable=durable) as out:
        out.write(data)
    return target


def load_image(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads what `save_image` wrote.

    Returns:
        float32 [H, W, C] in the units it was written in (8-bit PNG: up to its 256 levels), and its record ({} without
        one).

    Raises:
        ValueError: A file that `save_image` does not write.
        OSError: It cannot be read.
    """
    source = Path(path)
    return decode_image(source.read_bytes(), source)


def decode_image(data: bytes, source: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads the contents of a file as `load_image` does; `source` is its name for messages."""
    if data[:6] == b"\x93NUMPY":
        return load_npy(io.BytesIO(data), str(source)).astype(np.float32), {}
    if data[:4] == b"II*\0":
        return _read_tiff32(data, source)
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{source} is no PNG, TIFF or npy file of undiffuse.")
    record, deep = _png_record(data, source), data[24]
    if deep == 16:
        values = _unpacked_png16(data, source).astype(np.float64)
        if "scaled_to" in record:
            low, high = record["value_range"]
            values = low + values * ((high - low) / 65535)
        elif "value_range" not in record:
            values = values / 257
        return values.astype(np.float32), record
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        levels = np.asarray(picture).astype(np.float64)
    levels = levels[..., None] if levels.ndim == 2 else levels
    low, high = record.get("value_range", (0, 255))
    return (low + levels * ((high - low) / 255)).astype(np.float32), record


def as_stored(image: np.ndarray, format: ImageFormat, value_range: ValueRange | None = None) -> np.ndarray:
    """Rounds a float image as `save_image` does, so that it equals what `load_image` reads from its file.

    Args:
        image: Float [H, W, C] in units.
        format: One of `IN_UNITS`.
        value_range: (low, high) of the units; None is (0, 255).

    Returns:
        float32 [H, W, C] in units.
    """
    if format != "png16":
        return image.astype(np.float32)
    low, high = (0.0, 255.0) if value_range is None else (float(value_range[0]), float(value_range[1]))
    values = _levels16(image, low, high).astype(np.float64)
    if not _whole_numbers(low, high):
        values = values / 257 if value_range is None else low + values * ((high - low) / 65535)
    return values.astype(np.float32)


def format_of(path: str | os.PathLike[str]) -> ImageFormat:
    """The format of a file that `save_image` wrote, by its first bytes.

    Raises:
        ValueError: A file that `save_image` does not write.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(26)
    if head[:6] == b"\x93NUMPY":
        return "npy"
    if head[:4] == b"II*\0":
        return "tiff"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png16" if head[24:25] == b"\x10" else "png"
    raise ValueError(f"{path} is no PNG, TIFF or npy file of undiffuse.")


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the record of a PNG, TIFF or GIF that this library wrote.

    Raises:
        ValueError: The file carries none, as every npy file, and images that another program saved again; or it is
            damaged.
        OSError: It cannot be read.
    """
    source = Path(path)
    if source.suffix.lower() == ".npy":
        raise ValueError(
            f"{path} carries no undiffuse record, because npy files have no place for one: the settings are in the "
            "run.json beside it. The formats png, png16 and tiff keep a record in every file."
        )
    if source.suffix.lower() not in (".tif", ".tiff"):
        return read_png_record(source)
    record = load_image(source)[1]
    if not record:
        raise ValueError(f"{path} carries no undiffuse record: it was not written by undiffuse, or was saved again.")
    return record


def default_format(channels: int) -> ImageFormat:
    """The format of images when none is given: "png", or "tiff" for numbers of channels that 8-bit PNG cannot hold."""
    return "png" if channels in (1, 3, 4) else "tiff"


def check_format(format: str, channels: int) -> None:
    """Refuses a format that cannot hold images of so many channels, before they are made.

    Args:
        format: One of `pictures.writer.FORMATS`.
        channels: Of an image.

    Raises:
        ConfigError: It cannot ("format").
    """
    holds = {"png": (1, 3, 4), "both": (1, 3, 4), "png16": (1, 2, 3, 4)}.get(format)
    if holds is not None and channels not in holds:
        kind = "16-bit PNG" if format == "png16" else "8-bit PNG"
        raise ConfigError(
            "format",
            f"{format!r} is not possible for images of {channels} channels, because {kind} holds "
            f"{', '.join(map(str, holds[:-1]))} or {holds[-1]}: take 'tiff', 'npy' or 'npz'",
        )


def preview_text(channels: int, value_range: ValueRange | None = None) -> str:
    """Says how `preview` shows images that are not 8-bit grey, RGB or RGBA; "" for those that are."""
    parts = []
    if channels not in (1, 3, 4):
        parts.append(f"channel 0 of {channels}" if channels == 2 else f"channels 0, 1, 2 of {channels} as R, G, B")
    if value_range is not None:
        parts.append(f"{value_range[0]:g}..{value_range[1]:g} from black to white")
    return ", ".join(parts)


def preview(
    images: np.ndarray, value_range: ValueRange | None = None, bands: tuple[int, ...] | None = None
) -> np.ndarray:
    """Images of any number of channels as 8-bit pictures to look at.

    Args:
        images: uint8, or float in units, [N, H, W, C].
        value_range: (low, high) of the units, black and white; None is (0, 255).
        bands: Channels to show, one as grey or three as R, G, B. By default: 1 channel grey; 3 RGB; 4 RGBA; of 2 the
            first as grey; of 5 and more the first three as R, G, B.

    Returns:
        uint8 [N, H, W, 1, 3 or 4].

    Raises:
        ValueError: Another shape, or bands that are not there.
    """
    if images.ndim != 4:
        raise ValueError(f"expected images [N, H, W, C], got {list(images.shape)}.")
    channels = images.shape[-1]
    if bands is None:
        bands = {1: (0,), 2: (0,), 3: (0, 1, 2), 4: (0, 1, 2, 3)}.get(channels, (0, 1, 2))
    if len(bands) not in (1, 3, 4) or not all(0 <= band < channels for band in bands):
        raise ValueError(f"bands={bands}: expected one or three of the channels 0..{channels - 1}.")
    chosen = images[..., list(bands)]
    if chosen.dtype == np.uint8 and value_range is None:
        return np.ascontiguousarray(chosen)
    low, high = value_range or (0.0, 255.0)
    levels = np.clip((chosen.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    return np.floor(levels + 0.5).astype(np.uint8)


def _whole_numbers(low: float, high: float) -> bool:
    """Whether 16-bit numbers can be the units themselves: whole, not negative, and more than 8 bits apart."""
    return low == int(low) and high == int(high) and 0 <= low < high <= 65535 and high - low > 255


def _levels16(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint16: the numbers themselves where they can be the units, otherwise the range as 0..65535."""
    scale, offset = (1.0, 0.0) if _whole_numbers(low, high) else (65535 / (high - low), low)
    return np.floor(np.clip((array.astype(np.float64) - offset) * scale, 0, 65535) + 0.5).astype(np.uint16)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png16(values: np.ndarray, record: str | None) -> bytes:
    """A PNG file of uint16 [H, W, C]; Pillow writes 16 bits in grey only."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.zeros((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # "up": each byte as its difference to the one above
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    head = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    text = b"" if record is None else _chunk(b"tEXt", f"{RECORD_KEY}\0{record}".encode("latin-1"))
    body = _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + text + body + _chunk(b"IEND", b"")


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png_record(data: bytes, path: Path) -> dict[str, Any]:
    prefix = f"{RECORD_KEY}\0".encode()
    texts = [
        content[len(prefix) :]
        for kind, content in _chunks(data)
        if kind == b"tEXt" and content[: len(prefix)] == prefix
    ]
    return _record(texts[0], path) if texts else {}


def _record(text: bytes, path: Path) -> dict[str, Any]:
    try:
        record = parse_json(text, f"the record of {path}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _unpacked_png16(data: bytes, path: Path) -> np.ndarray:
    """uint16 [H, W, C] of a PNG written by `_png16`."""
    chunks = _chunks(data)
    width, height, _, kind = struct.unpack_from(">IIBB", chunks[0][1])
    channels = {number: count for count, number in _COLOUR_TYPES.items()}.get(kind, 0)
    try:
        raw = np.frombuffer(zlib.decompress(b"".join(c for k, c in chunks if k == b"IDAT")), np.uint8)
        rows = raw.reshape(height, width * channels * 2 + 1)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    if not (rows[:, 0] == 2).all():
        raise ValueError(f"{path} is a 16-bit PNG of another program; read it with undiffuse.data.decode.")
    values = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    return np.ascontiguousarray(values).view(">u2").reshape(height, width, channels).astype(np.uint16)


def _tiff32(values: np.ndarray, record: str | None) -> bytes:
    """A TIFF file of one strip, float32 [H, W, C], uncompressed and little-endian (TIFF 6.0, sections 2 and 19)."""
    height, width, channels = values.shape
    pixels = np.ascontiguousarray(values, dtype="<f4").tobytes()
    text = b"" if record is None else record.encode("ascii") + b"\0"
    colours = 3 if channels in (3, 4) else 1
    extra = [2 if channels == 4 else 0] * (channels - colours)
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [32] * channels), (259, 3, [1]),
        (262, 3, [2 if colours == 3 else 1]), (273, 4, [8]), (277, 3, [channels]), (278, 4, [height]),
        (279, 4, [len(pixels)]), (284, 3, [1]), (339, 3, [3] * channels),
    ]  # fmt: skip
    tags += [(270, 2, text)] if text else []
    tags += [(338, 3, extra)] if extra else []
    start = 8 + len(pixels) + len(pixels) % 2
    tail = start + 2 + 12 * len(tags) + 4
    directory, more = struct.pack("<H", len(tags)), b""
    for number, kind, given in sorted(tags, key=lambda tag: tag[0]):
        content = (
            given if isinstance(given, bytes) else b"".join(struct.pack({3: "<H", 4: "<I"}[kind], v) for v in given)
        )
        if len(content) > 4:
            more += b"\0" * (len(more) % 2)
            where = struct.pack("<I", tail + len(more))
            more += content
        else:
            where = content.ljust(4, b"\0")
        directory += struct.pack("<HHI", number, kind, len(given)) + where
    return b"II*\0" + struct.pack("<I", start) + pixels + b"\0" * (len(pixels) % 2) + directory + b"\0" * 4 + more


def _read_tiff32(data: bytes, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The array and record of a TIFF written by `_tiff32`."""
    try:
        start = struct.unpack_from("<I", data, 4)[0]
        tags = {}
        for k in range(struct.unpack_from("<H", data, start)[0]):
            number, kind, count, value = struct.unpack_from("<HHII", data, start + 2 + 12 * k)
            tags[number] = (kind, count, value)
        width, height, channels = tags[256][2], tags[257][2], tags[277][2]
        if tags[259][2] != 1 or tags[273][2] != 8 or tags[339][0] != 3:
            raise ValueError("it is of another program")
        values = np.frombuffer(data, "<f4", width * height * channels, 8).reshape(height, width, channels)
        record: dict[str, Any] = {}
        if 270 in tags:
            _, count, where = tags[270]
            record = _record(data[where : where + count].rstrip(b"\0"), path)
    except (struct.error, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no TIFF file of undiffuse ({error}); read it with undiffuse.data.decode."
        ) from error
    return values.astype(np.float32), record
