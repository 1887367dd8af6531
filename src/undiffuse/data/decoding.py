"""Decodes image files: which endings count as images, what a header says, and the pixels as they are stored.

Pillow decodes nearly everything. PNG files of this library whose records name a value range become floats in its units
(see `undiffuse.data.recorded`). Three things are done here because it gets them wrong or refuses them: pictures of
several channels with 16 bits (it drops the low byte), TIFF files beyond RGBA (see `undiffuse.data.tiff`), and 16-bit
TIFF files in which white is zero. Pillow's guard against decompression bombs is replaced by `max_pixels`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from undiffuse.data import recorded
from undiffuse.data.recorded import RecordedRange
from undiffuse.data.tiff import TiffPage, count_pages, is_tiff, read_page, read_pixels
from undiffuse.util.errors import reading
from undiffuse.util.limits import LIMITS, limit

__all__ = [
    "BAND", "IMAGE_SUFFIXES", "MAX_PIXELS", "Picture", "PictureInfo", "Planes", "as_stored", "bands", "check_size",
    "decode", "describe", "read_header", "without_alpha",
]  # fmt: skip

IMAGE_SUFFIXES = (
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dds", ".dib", ".gif", ".icb", ".icns", ".ico", ".j2c", ".j2k",
    ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
)  # fmt: skip
"""Endings of the pixel formats that Pillow reads. Vector formats, which need other programs, are not among them."""

MAX_PIXELS = LIMITS["UNDIFFUSE_MAX_PIXELS"]
"""Pixels of the largest picture that is decoded unless `max_pixels` or the environment variable says otherwise."""

BAND = 1 << 18
"""Pixels whose values are converted at a time, so that a large picture needs little more memory than its pixels."""
_MOST_BYTES = 8
"""Bytes of a pixel above which it counts as several; one byte counts as half a pixel."""

_FORMATS = (
    "PNG", "JPEG", "MPO", "TIFF", "WEBP", "GIF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM", "QOI", "PSD", "PCX", "SGI",
    "SUN", "DDS", "ICO", "ICNS", "XBM", "XPM", "TGA",
)  # fmt: skip
_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "RGB;16L": "RGB;16B", "RGBA;16L": "RGBA;16B"}
"""Pillow's raw modes that keep the high byte of a channel, and those that read the other byte of the same data."""


class Planes(np.ndarray):
    """An array [H, W, C] of channels without a meaning as colours: never converted to grey or RGB."""


Picture = Image.Image | NDArray[Any]
"""A picture as a source stores it: a PIL image, or an array [H, W] or [H, W, C] of any number type.

An array of 1, 2, 3 or 4 channels is grey, grey with alpha, RGB or RGBA, unless it is a `Planes`.
"""


@dataclass(frozen=True, kw_only=True)
class PictureInfo:
    """What a picture is, known from its header or from its pixels.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        mode: the stored format for people and counts: "RGB", "L", "P", "I;16", "RGB;16", "5 channels of float32", ...
        depth: "8" (also 1-bit and palettes), "16" (unsigned, white is 65535), "int" or "float" (white is unknown).
        channels: channels that are stored, alpha among them (a palette counts as RGB).
        alpha: whether something is transparent.
        planes: whether the channels have no meaning as colours.
        pages: frames or pages in the file, of which the first is taken.
        ome: whether the pages are the channels and slices of an OME-TIFF.
        value_range: the values of black and white that the record of a picture of this library names.
    """

    width: int
    height: int
    mode: str
    depth: str = "8"
    channels: int = 3
    alpha: bool = False
    planes: bool = False
    pages: int = 1
    ome: bool = False
    value_range: tuple[float, float] | None = None


def decode(file: IO[bytes], max_pixels: int = MAX_PIXELS) -> Picture:
    """The first picture of a file, exactly as stored: a loaded PIL image, or an upright array where Pillow has none.

    Raises:
        ValueError: the file has more than `max_pixels` pixels, or damaged pixels.
        OSError: it cannot be decoded (PIL.UnidentifiedImageError: it is no image).
    """
    with _content("the picture"):
        return _picture(file, max_pixels)


@contextmanager
def _content(what: str) -> Iterator[None]:
    """Damaged content is a ValueError, and so is what Pillow takes for an attack."""
    with reading(what):
        try:
            yield
        except Image.DecompressionBombError as error:
            raise ValueError(f"{what} is too large: {error}") from error


def _picture(file: IO[bytes], max_pixels: int) -> Picture:
    start = file.read(16)
    file.seek(0)
    page = read_page(file) if is_tiff(start) else None
    if page is not None and page.beyond_pillow:
        check_size(page.width, page.height, max_pixels, page.samples * page.bits // 8)
        # Pillow unpacks LZW faster, and knows compressions that are not read here.
        colours = page.photometric == 2 and page.bits == 16 and page.kind == "u" and page.samples in (3, 4)
        if not colours or page.planar or page.compression in (1, 8, 32946):
            values = as_stored(read_pixels(file, page), page)
            return values if recorded.of_tiff(page) is None else without_alpha(values)
        return as_stored(_sixteen_bits(file, max_pixels), page)
    image = _open(file, max_pixels)
    rawmode = _rawmode(image)
    ours = recorded.of_png(image) if image.format == "PNG" else None
    if image.format == "PNG" and rawmode in ("RGB;16B", "RGBA;16B", "LA;16B"):
        image.load()  # what is stored behind the pixels
        orientation = _orientation(image)
        del image  # whose pixels take as much memory as the values
        values = _sixteen_bits(file, max_pixels)
        return _in_units(values, ours) if ours is not None else _turned(values, orientation)
    image.load()
    if ours is not None:
        return _in_units(np.asarray(image), ours)
    if page is not None and page.photometric == 0 and image.mode.startswith("I;16"):
        most = (1 << page.bits) - 1 if 8 < page.bits <= 16 else 65535
        inverted = Image.fromarray(np.where(np.asarray(image) > most, 0, most - np.minimum(np.asarray(image), most)))
        inverted.info, inverted.format = dict(image.info), image.format
        return inverted
    return image


def read_header(file: IO[bytes], max_pixels: int = MAX_PIXELS) -> PictureInfo:
    """What a file says of its first picture, without decoding the pixels.

    Raises:
        ValueError: as `decode`.
        OSError: as `decode`.
    """
    with _content("the picture's header"):
        return _header(file, max_pixels)


def _header(file: IO[bytes], max_pixels: int) -> PictureInfo:
    start = file.read(16)
    file.seek(0)
    page = read_page(file) if is_tiff(start) else None
    if page is not None and page.beyond_pillow:
        check_size(page.width, page.height, max_pixels, page.samples * page.bits // 8)
        wide = page.orientation in (5, 6, 7, 8)
        width, height = (page.height, page.width) if wide else (page.width, page.height)
        sample = np.zeros((1, 1, page.samples), f"{page.kind}{page.bits // 8}")
        one, ours = as_stored(sample, page), recorded.of_tiff(page)
        named = describe(one if ours is None else without_alpha(one))
        declared = None if ours is None else (ours.low, ours.high)
        return replace(
            named, width=width, height=height, pages=_count_pages(file), ome=_is_ome(page), value_range=declared
        )
    with _open(file, max_pixels) as image:
        info = describe(image)
        rawmode = _rawmode(image)
        ours = recorded.of_png(image) if image.format == "PNG" else None
        if ours is not None:
            channels = {"LA;16B": 2, "RGBA;16B": 4, "RGB;16B": 3}.get(rawmode, len(image.getbands()))
            one = _in_units(np.zeros((1, 1, channels), np.uint8), ours)
            return replace(describe(one), width=info.width, height=info.height, value_range=(ours.low, ours.high))
        if image.format == "PNG" and rawmode in ("RGB;16B", "RGBA;16B", "LA;16B"):
            mode = rawmode.replace("16B", "16")
            info = replace(info, mode=mode, depth="16", channels=2 if mode == "LA;16" else info.channels)
        # A phone's MPO holds previews and depth maps, no further pictures.
        pages = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        return replace(info, pages=pages, ome=page is not None and _is_ome(page))


def describe(picture: Picture) -> PictureInfo:
    """What a picture is; a PIL image need not be loaded. Its pages are counted by `read_header` only."""
    if isinstance(picture, np.ndarray):
        channels = 1 if picture.ndim == 2 else int(picture.shape[2])
        planes = isinstance(picture, Planes) or channels > 4
        depth = _depth(picture.dtype)
        name = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(channels, "")
        kind = f"{channels} channels" if planes or not name else name
        if picture.dtype not in (np.uint8, np.bool_):
            short = depth == "16" and not planes
            kind = ("I;16" if channels == 1 else f"{name};16") if short else f"{kind} of {picture.dtype.name}"
            kind = picture.dtype.name if channels == 1 and not short else kind
        return PictureInfo(width=int(picture.shape[1]), height=int(picture.shape[0]), mode=kind, depth=depth,
                           channels=channels, alpha=channels in (2, 4) and not planes, planes=planes)  # fmt: skip
    mode, depth = picture.mode, "8"
    if mode == "F":
        depth = "float"
    elif mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        depth = "16"
    elif mode == "I":
        depth = "int"
    transparent = "transparency" in picture.info
    alpha = mode in ("LA", "La", "PA", "RGBA", "RGBa") or transparent
    grey = mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16")
    width, height = picture.size
    # A PNG keeps its EXIF block behind the pixels; asking for it would decode them.
    turned = picture.format in ("JPEG", "MPO", "TIFF", "WEBP") and _orientation(picture) in (5, 6, 7, 8)
    tags = getattr(picture, "tag_v2", None)
    if tags is not None and picture.format == "TIFF" and tags.get(256) != width:
        turned = False  # newer versions of Pillow give the upright size of a TIFF
    if turned:
        width, height = height, width
    return PictureInfo(width=width, height=height, mode=mode, depth=depth, channels=(1 if grey else 3) + alpha,
                       alpha=alpha)  # fmt: skip


def _in_units(values: NDArray[Any], ours: RecordedRange) -> NDArray[np.float32]:
    """float32 [H, W, C] of a picture of this library; 2 and 4 channels are no colours with alpha."""
    units = ours.in_units(values[..., None] if values.ndim == 2 else values)
    return units.view(Planes) if units.shape[2] in (2, 4) else units


def without_alpha(values: NDArray[Any]) -> NDArray[Any]:
    """An array from a file of numbers: 2 channels, and 4 that are not uint8, have no meaning as colours."""
    channels = values.shape[2] if values.ndim == 3 else 1
    plain = channels == 4 and values.dtype in (np.uint8, np.bool_)
    return values.view(Planes) if channels in (2, 4) and not plain else values


def _depth(dtype: np.dtype) -> str:
    if dtype in (np.uint8, np.bool_):
        return "8"
    if dtype == np.uint16:
        return "16"
    return "float" if dtype.kind == "f" else "int"


def _open(file: IO[bytes], max_pixels: int) -> Image.Image:
    """What PIL.Image.open does, for pixel formats only and within our own limit, which no global setting changes."""
    Image.preinit()
    if any(name not in Image.OPEN for name in _FORMATS[:6]):
        Image.init()
    file.seek(0)
    start, reasons = file.read(16), []
    for again in (False, True):
        for name in _FORMATS:
            if name not in Image.OPEN:
                continue
            factory, accept = Image.OPEN[name]
            try:
                accepted = True if accept is None else accept(start)
                if isinstance(accepted, str):
                    reasons.append(accepted)
                if not accepted or isinstance(accepted, str):
                    continue
                file.seek(0)
                image = factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
            check_size(*image.size, max_pixels, 1 if image.mode in ("1", "L", "P") else 4)
            return image
        if again:
            break
        Image.init()
    if reasons:
        raise OSError(f"this installation of Pillow cannot decode it ({reasons[0]})")
    raise UnidentifiedImageError("cannot identify image file")


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS, bytes_each: int = 4) -> None:
    """Raises ValueError if a picture is too large.

    Args:
        width: pixels.
        height: pixels.
        max_pixels: the limit; the usual one gives way to the environment variable UNDIFFUSE_MAX_PIXELS.
        bytes_each: bytes of a pixel as it is decoded. More than eight count as several pixels, one as half.
    """
    most = limit("UNDIFFUSE_MAX_PIXELS") if max_pixels == MAX_PIXELS else max_pixels
    count = width * height * max(1, -(-bytes_each // _MOST_BYTES))
    if (count + 1) // 2 > most if bytes_each == 1 else count > most:
        each = f" of {bytes_each:,} bytes" if bytes_each > _MOST_BYTES else ""
        raise ValueError(
            f"the picture has {width * height:,} pixels{each} ({height}x{width}, height x width), more than the limit "
            f"of {most:,}; raise it with max_pixels={count}"
        )


def _rawmode(image: Image.Image) -> str:
    """Pillow's name for the layout of the stored pixels; "" where it has none."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    arguments = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return arguments if isinstance(arguments, str) else ""


def _sixteen_bits(file: IO[bytes], max_pixels: int) -> NDArray[Any]:
    """uint16 [H, W, C] of a picture that Pillow reads with 8 bits: the high and the low bytes are decoded in turn."""
    image = _open(file, max_pixels)
    rawmode, colour = _rawmode(image), image.info.get("transparency")
    channels = {"LA;16B": 2}.get(rawmode, 4 if rawmode.startswith("RGBA") else 3)
    values = np.empty((image.height, image.width, channels), np.uint16)
    if rawmode == "LA;16B":  # two channels of two bytes have the layout of four channels of one byte
        for rows, part in _decoded(image, "RGBA"):
            values[rows] = (part[..., 0::2].astype(np.uint16) << 8) | part[..., 1::2]
        return values
    rawmode = rawmode.replace(";16N", ";16L" if np.little_endian else ";16B")
    for rows, part in _decoded(image, rawmode):
        values[rows] = part.astype(np.uint16) << 8
    del image
    for rows, part in _decoded(_open(file, max_pixels), _LOW_BYTES[rawmode]):
        values[rows] |= part
    if isinstance(colour, tuple):  # one colour is transparent
        alpha = np.where((values == np.array(colour, np.uint16)).all(-1), 0, 65535).astype(np.uint16)
        values = np.concatenate([values, alpha[..., None]], axis=-1)
    return values


def _decoded(image: Image.Image, rawmode: str) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """The picture read as another raw mode, some rows at a time."""

    def changed(arguments: Any) -> Any:
        return (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode

    tiled: Any = image
    tiled.tile = [tile._replace(args=changed(tile.args)) for tile in tiled.tile]
    image.load()
    for rows in bands(image.width, image.height):
        yield rows, np.asarray(image.crop((0, rows.start, image.width, rows.stop)))


def bands(width: int, height: int) -> Iterator[slice]:
    """Rows of a picture in pieces of about `BAND` pixels."""
    step = max(1, BAND // max(1, width))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def as_stored(values: NDArray[Any], page: TiffPage) -> NDArray[Any]:
    """Values of a TIFF page, upright, with white as the largest value."""
    if page.photometric == 0:
        values = np.iinfo(values.dtype).max - values if values.dtype.kind == "u" else -values
    colours = 3 if page.photometric == 2 else 1
    if page.samples > colours and not page.alpha:
        values = values.view(Planes)
    return _turned(values, page.orientation)


def _count_pages(file: IO[bytes]) -> int:
    """The directories of a TIFF file."""
    try:
        return count_pages(file)
    except ValueError:
        return 1


def _is_ome(page: TiffPage) -> bool:
    text = page.tags.get(270)
    return text is not None and b"<OME" in text.tobytes()[:4096]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return 1


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turned and mirrored as EXIF's orientation says."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
