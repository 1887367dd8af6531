"""Reads the first page of TIFF files whose pixels Pillow cannot hold: many channels, or several channels of many bits.

Strips and tiles, interleaved and planar, 8 to 64 bits, integers and floats, both byte orders, BigTIFF; uncompressed,
Deflate, LZW and PackBits with either predictor. References: Adobe, "TIFF Revision 6.0" (1992); Adobe Photoshop TIFF
Technical Note 3 (2005), for the floating-point predictor.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

__all__ = ["TiffPage", "count_pages", "is_tiff", "read_page", "read_pixels"]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPES = {1: "u1", 2: "S1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 13: "u4",
          16: "u8", 17: "i8", 18: "u8"}  # fmt: skip
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_MOST_VALUES = 1 << 24
"""The largest count of values in one tag; a damaged file may claim more than memory holds."""


@dataclass(frozen=True, kw_only=True)
class TiffPage:
    """The layout of one page.

    Attributes:
        width: pixels.
        height: pixels.
        samples: channels.
        bits: bits of one value; all channels have the same, else 0.
        kind: "u" unsigned, "i" signed, "f" float.
        planar: each channel is stored as a plane of its own.
        photometric: tag 262 (0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr).
        extra: tag 338, the meaning of channels beyond the colours (1 and 2 are alpha, 0 is unspecified).
        compression: tag 259.
        predictor: tag 317.
        orientation: tag 274.
        order: "<" or ">".
        tags: all numeric tags by number.
    """

    width: int
    height: int
    samples: int
    bits: int
    kind: str
    planar: bool
    photometric: int
    extra: tuple[int, ...]
    compression: int
    predictor: int
    orientation: int
    order: str
    tags: dict[int, NDArray[np.generic]]

    @property
    def alpha(self) -> bool:
        """Whether the last channel is an alpha channel."""
        colours = {0: 1, 1: 1, 2: 3}.get(self.photometric)
        return colours is not None and self.samples == colours + 1 and self.extra[:1] in ((1,), (2,))

    @property
    def beyond_pillow(self) -> bool:
        """Whether Pillow would refuse the page, drop bits of it or scramble it."""
        if self.photometric not in (0, 1, 2) or self.bits not in (8, 16, 32, 64):
            return False
        if self.samples == 1:
            # Pillow 13 swaps no bytes of compressed big-endian values other than unsigned ones of 16 bits.
            return self.bits > 8 and (self.bits, self.kind) != (16, "u")
        plain = (1, 2) if self.photometric < 2 else (3, 4)
        return self.bits > 8 or self.samples not in plain or (self.samples in (2, 4) and not self.alpha)


def is_tiff(start: bytes) -> bool:
    """Whether a file begins as a TIFF or BigTIFF does."""
    return start[:4] in _MAGIC


def read_page(file: IO[bytes], number: int = 0) -> TiffPage:
    """The layout of a page, counted from 0.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return _page(file, number)
    except (struct.error, KeyError, IndexError, OverflowError, TypeError) as error:
        raise ValueError(f"the TIFF directory is damaged ({error})") from error


def count_pages(file: IO[bytes]) -> int:
    """How many pages (directories) the file has; a chain that goes round in a circle is followed once.

    Raises:
        ValueError: the file is damaged.
    """
    return len(_offsets(file))


def _offsets(file: IO[bytes]) -> list[int]:
    """Where the directories of the pages are."""
    file.seek(0)
    start = file.read(16)
    order, big = ("<" if start[:2] == b"II" else ">"), start[2:4] in (b"+\0", b"\0+")
    offset_type, count_type, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    try:
        offset = struct.unpack_from(order + offset_type, start, 8 if big else 4)[0]
        seen: dict[int, None] = {}  # in order
        while offset and offset not in seen:
            seen[offset] = None
            file.seek(offset)
            count = struct.unpack(order + count_type, file.read(struct.calcsize(count_type)))[0]
            file.seek(count * size, 1)
            offset = struct.unpack(order + offset_type, file.read(struct.calcsize(offset_type)))[0]
    except (struct.error, OverflowError) as error:
        raise ValueError(f"the TIFF directory is damaged ({error})") from error
    return list(seen)


def _page(file: IO[bytes], number: int) -> TiffPage:
    file.seek(0)
    start = file.read(16)
    if not is_tiff(start):
        raise ValueError("this is not a TIFF file")
    order, big = ("<" if start[:2] == b"II" else ">"), start[2:4] in (b"+\0", b"\0+")
    offset_type, count_type, inline = ("Q", "Q", 8) if big else ("I", "H", 4)
    first = struct.unpack_from(order + offset_type, start, 8 if big else 4)[0]
    offset = first if number == 0 else _offsets(file)[number]
    entry = struct.Struct(f"{order}HH{offset_type}{inline}s")
    file.seek(offset)
    count = struct.unpack(order + count_type, file.read(struct.calcsize(count_type)))[0]
    if count > 4096:
        raise ValueError(f"the TIFF directory is damaged (it claims {count:,} entries)")
    entries = file.read(entry.size * count)
    tags: dict[int, NDArray[np.generic]] = {}
    for number, kind, length, value in entry.iter_unpack(entries[: len(entries) // entry.size * entry.size]):
        if kind not in _TYPES or number == 700 or length > _MOST_VALUES:
            continue
        dtype = np.dtype(order + _TYPES[kind])
        size = dtype.itemsize * length
        if size > inline:
            file.seek(struct.unpack(order + offset_type, value)[0])
            value = file.read(size)
        if len(value) >= size:
            tags[number] = np.frombuffer(value[:size], dtype)

    def one(number: int, default: int | None = None) -> int:
        values = tags.get(number)
        if values is None or not len(values):
            if default is None:
                raise ValueError(f"the TIFF directory is damaged (tag {number} is missing)")
            return default
        return int(values[0])

    samples = one(277, 1)
    bits = {int(b) for b in tags.get(258, np.array([1]))}
    formats = {int(f) for f in tags.get(339, np.array([1]))}
    if formats & {5, 6}:
        raise ValueError("its pixels are complex numbers: store a real part, a phase or a magnitude")
    same = len(bits) == len(formats) == 1
    return TiffPage(
        width=one(256), height=one(257), samples=samples, bits=bits.pop() if same else 0,
        kind=_KINDS.get(formats.pop(), "u"), planar=one(284, 1) == 2 and samples > 1, photometric=one(262, 1),
        extra=tuple(int(e) for e in tags.get(338, np.array([], int))), compression=one(259, 1), predictor=one(317, 1),
        orientation=one(274, 1), order=order, tags=tags,
    )  # fmt: skip


def read_pixels(file: IO[bytes], page: TiffPage) -> NDArray[np.generic]:
    """The stored values [H, W, C] of a page, in the machine's byte order.

    Raises:
        ValueError: a compression that is not read here, or a damaged file.
    """
    if page.compression not in (1, 5, 8, 32773, 32946):
        raise ValueError(
            f"this TIFF of {page.samples} channels of {page.bits} bits has compression {page.compression}, which is "
            "not read; store it uncompressed, or with Deflate or LZW"
        )
    dtype = np.dtype(f"{page.order}{page.kind}{page.bits // 8}")
    tiled = 322 in page.tags
    try:
        wide, high = (int(page.tags[322][0]), int(page.tags[323][0])) if tiled else (page.width, page.height)
        if not tiled and 278 in page.tags:
            high = min(page.height, int(page.tags[278][0]))
        offsets = [int(o) for o in page.tags[324 if tiled else 273]]
        lengths = [int(n) for n in page.tags[325 if tiled else 279]]
    except KeyError as error:
        raise ValueError(f"the TIFF directory is damaged (tag {error} is missing)") from error
    if wide < 1 or high < 1:
        raise ValueError("the TIFF directory is damaged (tiles or strips without pixels)")
    across, down = -(-page.width // wide), -(-page.height // high)
    planes, deep = (page.samples, 1) if page.planar else (1, page.samples)
    if len(offsets) < across * down * planes or len(lengths) < len(offsets):
        raise ValueError("the TIFF directory is damaged (pieces are missing)")
    out = np.zeros((page.height, page.width, page.samples), dtype.newbyteorder("="))
    for k in range(across * down * planes):
        plane, place = divmod(k, across * down)
        top, left = (place // across) * high, (place % across) * wide
        rows = high if tiled else min(high, page.height - top)
        file.seek(offsets[k])
        size = rows * wide * deep * dtype.itemsize
        data = _unpacked(file.read(lengths[k]), page.compression, size)
        if len(data) < size:
            raise ValueError(f"the file is cut short (piece {k} has {len(data):,} of {size:,} bytes)")
        piece = _unpredicted(data[:size], page.predictor, (rows, wide, deep), dtype)
        channels = slice(plane, plane + 1) if page.planar else slice(None)
        target = out[top : top + rows, left : left + wide, channels]
        target[...] = piece[: target.shape[0], : target.shape[1]]
    return out


def _unpacked(data: bytes, compression: int, size: int) -> bytes:
    if compression in (8, 32946):
        try:
            return zlib.decompressobj().decompress(data, size)
        except zlib.error as error:
            raise ValueError(f"its pixels are damaged ({error})") from error
    if compression == 5:
        return _lzw(data, size)
    return _packbits(data, size) if compression == 32773 else data


def _packbits(data: bytes, size: int) -> bytes:
    out, at = bytearray(), 0
    while at < len(data) and len(out) < size:
        code = data[at]
        if code < 128:
            out += data[at + 1 : at + 2 + code]
            at += 2 + code
        else:
            out += data[at + 1 : at + 2] * (257 - code) if code != 128 else b""
            at += 2 if code != 128 else 1
    return bytes(out)


def _lzw(data: bytes, size: int) -> bytes:
    """TIFF's LZW: codes of 9 to 12 bits, high bit first; 256 clears the table, 257 ends."""
    table: list[bytes] = [bytes([i]) for i in range(256)] + [b"", b""]
    out, width, held, bits, previous = bytearray(), 9, 0, 0, b""
    for byte in data:
        held, bits = (held << 8) | byte, bits + 8
        if bits < width:
            continue
        bits -= width
        code = held >> bits
        held &= (1 << bits) - 1
        if code == 257 or len(out) >= size:
            break
        if code == 256:
            del table[258:]
            width, previous = 9, b""
            continue
        if code < len(table):
            word = table[code]
        elif previous and code == len(table):
            word = previous + previous[:1]
        else:
            raise ValueError("its pixels are damaged (an LZW code that does not exist)")
        out += word
        if previous:
            table.append(previous + word[:1])
        previous = word
        # The code's width grows one entry early, an oddity of the format since its first writer.
        width = min(12, (len(table) + 1).bit_length())
    return bytes(out)


def _unpredicted(data: bytes, predictor: int, shape: tuple[int, int, int], dtype: np.dtype) -> NDArray[np.generic]:
    rows, wide, deep = shape
    if predictor == 3 and dtype.kind == "f":
        # A row's bytes are stored in planes, the most significant first, each as its difference to the one before.
        stored = np.frombuffer(data, np.uint8).reshape(rows, wide * dtype.itemsize, deep)
        summed = np.cumsum(stored, axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, wide * deep)
        whole = np.ascontiguousarray(summed.transpose(0, 2, 1))
        return whole.view(dtype.newbyteorder(">")).reshape(shape)
    values = np.frombuffer(data, dtype).reshape(shape)
    if predictor == 2:
        native = values.astype(dtype.newbyteorder("="))
        unsigned = native.view(f"u{dtype.itemsize}")
        return np.cumsum(unsigned, axis=1, dtype=unsigned.dtype).view(native.dtype)
    if predictor not in (1, 2):
        raise ValueError(f"its predictor {predictor} is not read")
    return values
