"""Pixels as stored: 16 bits, floats, many channels, declared ranges, limits and patches, against known values."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import DataConfig, ImageDataset, open_data, prepare, scan
from undiffuse.data.array_source import ArraySource
from undiffuse.data.channels import check_value_range, to_levels
from undiffuse.data.decoding import Planes, decode, describe, read_header
from undiffuse.data.patches import TiledSource
from undiffuse.data.ranges import declared_for, find_value_range
from undiffuse.pictures import save_image
from undiffuse.pixels import from_pixels, from_uint8, to_units

RNG = np.random.default_rng(0)


def png(values: np.ndarray, transparent: bytes | None = None) -> bytes:
    """A 16-bit PNG of uint16 [H, W, C], by hand."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    extra = chunk(b"tRNS", transparent) if transparent else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, *, order: str = "<", photometric: int = 1, planar: bool = False, deflate: bool = False,
         predictor: int = 1, tile: tuple[int, int] | None = None, extra: tuple[int, ...] = ()) -> bytes:  # fmt: skip
    """A TIFF file of [H, W, C], by hand, in strips of 3 rows or in tiles."""
    height, width, channels = values.shape
    pieces = []
    planes = [values[..., k : k + 1] for k in range(channels)] if planar else [values]
    for plane in planes:
        if tile is not None:
            for top in range(0, height, tile[0]):
                for left in range(0, width, tile[1]):
                    block = np.zeros((*tile, plane.shape[2]), values.dtype)
                    part = plane[top : top + tile[0], left : left + tile[1]]
                    block[: part.shape[0], : part.shape[1]] = part
                    pieces.append(block)
        else:
            pieces += [plane[top : top + 3] for top in range(0, height, 3)]
    coded = []
    for piece in pieces:
        if predictor == 2:
            piece = np.concatenate([piece[:, :1], np.diff(piece, axis=1)], axis=1).astype(values.dtype)
        data = piece.astype(values.dtype.newbyteorder(order)).tobytes()
        coded.append(zlib.compress(data) if deflate else data)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    offsets, at = [], 8
    for data in coded:
        offsets.append(at)
        at += len(data)
    tags: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (values.dtype.itemsize * 8,) * channels),
        259: ("H", (8 if deflate else 1,)), 262: ("H", (photometric,)), 277: ("H", (channels,)),
        284: ("H", (2 if planar else 1,)), 317: ("H", (predictor,)), 339: ("H", (kind,) * channels),
    }  # fmt: skip
    lengths = tuple(len(data) for data in coded)
    if tile is not None:
        tags |= {322: ("I", (tile[1],)), 323: ("I", (tile[0],)), 324: ("I", tuple(offsets)), 325: ("I", lengths)}
    else:
        tags |= {273: ("I", tuple(offsets)), 278: ("I", (3,)), 279: ("I", lengths)}
    if extra:
        tags[338] = ("H", extra)
    directory, more, tail = b"", b"", at + 2 + 12 * len(tags) + 4
    for number in sorted(tags):
        letter, given = tags[number]
        content = struct.pack(f"{order}{len(given)}{letter}", *given)
        where = content.ljust(4, b"\0")
        if len(content) > 4:
            where, more = struct.pack(order + "I", tail + len(more)), more + content
        directory += struct.pack(order + "HHI", number, {"H": 3, "I": 4}[letter], len(given)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return head + b"".join(coded) + struct.pack(order + "H", len(tags)) + directory + b"\0" * 4 + more


def decoded(data: bytes) -> Any:
    return decode(io.BytesIO(data))


def numbers(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype[0] == "f":
        return (RNG.standard_normal(shape) * 100).astype(dtype)
    return RNG.integers(0, 120 if dtype[1] == "1" else 30_000, shape).astype(dtype)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_keeps_all_16_bits_of_several_channels(channels: int) -> None:
    values = RNG.integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    assert np.array_equal(decoded(png(values)), values)
    assert read_header(io.BytesIO(png(values))).depth == "16"
    if channels == 3:  # and becomes the nearest of 256 levels
        levels = ((values.astype(int) + 128) // 257).astype(np.uint8)
        assert np.array_equal(prepare(decoded(png(values)), (5, 7)), levels)


def test_transparent_values_of_16_bit_png() -> None:
    values = np.full((4, 4, 3), 1000, np.uint16)
    values[0, 0] = (300, 400, 500)
    clear = prepare(decoded(png(values, struct.pack(">HHH", 300, 400, 500))), 4, background=(9, 8, 7))
    assert tuple(clear[0, 0]) == (9, 8, 7) and tuple(clear[1, 1]) == (4, 4, 4)
    grey = np.full((4, 4, 1), 40000, np.uint16)
    grey[2, 2] = 77
    assert prepare(decoded(png(grey, struct.pack(">H", 77))), 4, 1, background=0)[2, 2, 0] == 0
    assert prepare(decoded(png(grey, struct.pack(">H", 77))), 4, 1)[2, 2, 0] == 255
    assert prepare(decoded(png(grey, struct.pack(">H", 77))), 4, 4)[2, 2, 3] == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_tiff_of_any_numbers_and_channels(order: str, dtype: str, channels: int) -> None:
    values = numbers(dtype, (7, 10, channels))
    ways: list[dict[str, Any]] = [
        {}, {"deflate": True}, {"tile": (16, 16)}, {"planar": channels > 1}, {"deflate": True, "tile": (16, 16)},
        {"deflate": True, "predictor": 2 if dtype[0] != "f" else 1},
    ]  # fmt: skip
    for way in ways:
        picture = decoded(tiff(values, order=order, photometric=2 if channels == 3 else 1, **way))
        assert np.array_equal(np.asarray(picture).reshape(values.shape), values), way


def test_planar_16_bit_rgb_is_right() -> None:
    values = numbers("u2", (7, 10, 3))
    out = prepare(decoded(tiff(values, photometric=2, planar=True)), (7, 10))
    assert np.array_equal(out, ((values.astype(int) + 128) // 257).astype(np.uint8))


def test_white_is_zero_is_turned_round() -> None:
    values = numbers("u2", (6, 6, 1))
    assert np.array_equal(np.asarray(decoded(tiff(values, photometric=0))), 65535 - values[..., 0])
    small = numbers("u1", (6, 6, 1))
    assert np.array_equal(prepare(decoded(tiff(small, photometric=0)), 6, 1), 255 - small)


def test_channels_without_colours_are_taken_as_they_are_or_refused() -> None:
    values = numbers("u1", (8, 8, 5))
    picture = decoded(tiff(values))
    assert isinstance(picture, Planes) and describe(picture).channels == 5
    assert np.array_equal(prepare(picture, 8, 5), values)
    with pytest.raises(ValueError, match="5 channels, which do not become 3: set channels=5"):
        prepare(picture, 8, 3)
    four = decoded(tiff(numbers("u1", (8, 8, 4)), photometric=2, extra=(0,)))  # a fourth channel that is no alpha
    with pytest.raises(ValueError, match="4 channels"):
        prepare(four, 8, 3)
    two = np.dstack([values[..., 0], values[..., 1]])
    assert np.array_equal(prepare(two, 8, 2), two)


def test_declared_range_maps_to_the_ends_and_back(tmp_path: Path) -> None:
    for low, high, dtype in ((0, 4095, "u2"), (-1000, 2000, "i4"), (0.0, 1.0, "f4"), (2000, 0, "i2")):
        values = np.linspace(low, high, 64).reshape(8, 8, 1).astype(dtype)
        out = prepare(decoded(tiff(values)), 8, 1, value_range=(low, high))
        assert out.dtype == np.float32 and out.shape == (8, 8, 1)
        expected = 2 * (values.astype(np.float64) - low) / (high - low) - 1
        assert np.abs(out - expected).max() < 1e-5
        back = to_units(from_pixels(out[None]), (low, high))[0].numpy()
        assert np.abs(back - values).max() < 1e-3 * abs(high - low)
    beyond = prepare(np.array([[-5.0, 9.0]]), (1, 2), 1, value_range=(0, 1))
    assert beyond.ravel().tolist() == [-1, 1]
    with pytest.raises(ValueError, match="1 of 4 values are NaN"):
        prepare(np.array([[0, 1], [np.nan, 0]]), 2, 1, value_range=(0, 1))
    for wrong in ((1, 1), (0, float("nan")), "ab", (1,)):
        with pytest.raises(ValueError, match="value_range"):
            check_value_range(wrong)


def test_range_0_to_255_is_the_8_bit_preparation() -> None:
    pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = prepare(pixels, 8, value_range=(0, 255))
    assert torch.equal(from_pixels(out[None]), from_uint8(pixels[None]))
    large = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    near = prepare(large, 8, value_range=(0, 255)) - (prepare(large, 8).astype(np.float32) / 127.5 - 1)
    assert np.abs(near).max() < 2.1 / 127.5  # which rounds after each step


def test_colours_and_alpha_with_a_range() -> None:
    grey = np.full((2, 2), 1000, np.uint16)
    assert np.allclose(to_levels(grey, 3, (0, 4000)), 63.75) and to_levels(grey, 3, (0, 4000)).shape == (2, 2, 3)
    colours = np.full((2, 2, 3), (4000, 0, 0), np.uint16)
    assert np.allclose(to_levels(colours, 1, (0, 4000)), 0.299 * 255, atol=1e-3)
    clear = np.dstack([np.full((2, 2, 3), 4000, np.uint16), np.zeros((2, 2), np.uint16)])
    assert np.allclose(to_levels(clear, 3, (0, 4000), background=7), 7)


def save(root: Path, name: str, data: bytes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


@pytest.mark.parametrize("check", ["headers", "full"])
def test_the_check_refuses_what_reading_refuses(tmp_path: Path, check: str) -> None:
    for k in range(3):
        Image.new("L", (8, 8), k).save(tmp_path / f"{k}.png")
    save(tmp_path, "odd.tif", tiff(numbers("f4", (8, 8, 1))))
    keywords: dict[str, Any] = {"path": str(tmp_path), "size": 8, "channels": 1, "check": check}
    with pytest.raises(ValueError, match=r"1 of 4 images.*odd.tif.*value_range=\(low, high\)"):
        DataConfig(**keywords).open()
    assert len(DataConfig(**keywords, on_broken="skip").open()) == 3
    data = DataConfig(**keywords, value_range=(-300, 300)).build()
    assert len(data) == 4 and all(data.example(p).image.dtype == np.float32 for p in range(8))
    save(tmp_path, "five.tif", tiff(numbers("u1", (8, 8, 5))))
    with pytest.raises(ValueError, match="five.tif.*channels=5"):
        DataConfig(**keywords, value_range=(-300, 300)).open()


def test_nothing_left_is_said_as_such(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path, f"{k}.tif", tiff(numbers("i4", (8, 8, 1))))
    for on_broken in ("refuse", "skip"):
        with pytest.raises(ValueError, match="none of 3 images can be used: 0.tif, 1.tif, 2.tif: .*int32") as told:
            DataConfig(path=str(tmp_path), size=8, on_broken=on_broken).open()  # type: ignore[arg-type]
        assert "on_broken" not in str(told.value)


def test_dark_16_bit_pictures_are_said_to_be_dark(tmp_path: Path) -> None:
    for k in range(4):
        values = RNG.integers(0, 2900, (8, 8, 1)).astype(np.uint16)
        values[0, :2] = [[2944], [0]]
        save(tmp_path, f"{k}.png", png(values))
    source = open_data(tmp_path)
    summary = scan(source, DataConfig(path=str(tmp_path), size=8))
    text = "16-bit grey, 0..2944: the brightest becomes 11 of 255; use value_range=(0, 4095)"
    assert any(text in remark for remark in summary.remarks())
    assert summary.channels == 1
    found = find_value_range(source)
    assert found.largest == 2944 and 2800 < found.high <= 2944 and "0.1 %" in found.text()
    declared = scan(source, DataConfig(path=str(tmp_path), size=8, value_range=(0, 2000)))
    assert any("values beyond are clipped" in text for text in declared.remarks())
    assert [declared_for(v) for v in (1000, 1023, 2944, 4095, 65535)] == [1023, 1023, 4095, 4095, 65535]


def test_large_pictures_are_read_or_refused_by_a_plain_sentence(tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "small.png")
    Image.new("1", (14_000, 13_500)).save(tmp_path / "slide.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_data(tmp_path, check="headers").stored_size(0) == (14_000, 13_500)
        with pytest.raises(ValueError, match=r"slide.png.*189,000,000 pixels.*max_pixels=189000000") as told:
            open_data(tmp_path, check="headers", max_pixels=1_000_000)
    assert "bomb" not in str(told.value).lower()


def test_random_patches_are_decided_by_their_position(tmp_path: Path) -> None:
    pixels = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60, 1)
    for k in range(3):
        save(tmp_path, f"{k}.png", png(pixels))
    config = DataConfig(path=str(tmp_path), size=16, channels=1, patches="random", value_range=(0, 2399), seed=5)
    first, again = config.build(), config.build()
    corners = set()
    for position in range(20):
        image = first.example(position).image
        assert np.array_equal(image, again.example(position).image)
        values = np.rint((image[..., 0].astype(np.float64) + 1) * 1199.5).astype(int)
        top, left = divmod(values[0, 0], 60)
        assert np.array_equal(values, pixels[top : top + 16, left : left + 16, 0])
        corners.add((top, left))
    assert len(corners) > 15 and np.array_equal(first.plain(0).image, first.plain(1).image)
    assert DataConfig.from_dict(config.to_dict()) == config


def test_tiles_cover_every_pixel(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (40, 52, 3), dtype=np.uint8)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat" / "a.png")
    Image.fromarray(pixels[:10, :12]).save(tmp_path / "dog" / "b.png")
    config = DataConfig(path=str(tmp_path), size=16, patches="tiled")
    data = config.build()
    assert isinstance(data.source, TiledSource) and len(data) == 3 * 4 + 1
    seen = np.zeros((40, 52), bool)
    for i in range(12):
        left, top, right, bottom = data.source.boxes[i]
        seen[top:bottom, left:right] = True
        assert np.array_equal(data.plain(i).image, pixels[top:bottom, left:right])
    assert seen.all() and data.source.name(5) == "cat/a.png[16,16]" and data.source.label(12) == 1
    assert data.plain(12).image.shape == (16, 16, 3)


def test_new_settings_leave_old_manifests_as_they_were() -> None:
    old = {"path", "labels", "size", "channels", "fit", "flip", "random_crop", "background", "pad_value", "on_broken",
           "on_tiny", "check", "workers", "seed"}  # fmt: skip
    assert set(DataConfig(path="x").to_dict()) == old
    kept = DataConfig(path="x", value_range=(0, 4095), patches="tiled", max_pixels=10).to_dict()
    assert set(kept) - old == {"value_range", "patches", "max_pixels"}


def test_crops_of_more_than_a_tenth_are_said(tmp_path: Path) -> None:
    for k in range(3):
        Image.new("RGB", (40, 24)).save(tmp_path / f"{k}.png")
    texts = scan(open_data(tmp_path), DataConfig(path=str(tmp_path), size=16)).remarks()
    assert any("all images are cropped by more than 10 %" in text and "60 % is kept" in text for text in texts)
    assert not scan(open_data(tmp_path), DataConfig(path=str(tmp_path), size=(24, 40))).remarks()


def test_pages_beyond_the_first_are_counted(tmp_path: Path) -> None:
    frames = [Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(10)]
    for name in ("a.tif", "b.gif", "c.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    texts = scan(open_data(tmp_path), DataConfig(path=str(tmp_path), size=8)).remarks()
    assert any("3 files hold 30 frames; the first of each is taken" in text for text in texts)


ENDINGS = ("avif", "jp2", "ppm", "pgm", "tga", "jfif", "apng", "qoi", "bmp", "webp", "pcx", "sgi")


@pytest.mark.parametrize("ending", ENDINGS)
def test_endings_that_pillow_reads_are_images(tmp_path: Path, ending: str) -> None:
    image = Image.new("L" if ending == "pgm" else "RGB", (16, 16), 200 if ending == "pgm" else (200, 100, 50))
    kinds = {"jfif": "JPEG", "apng": "PNG", "jp2": "JPEG2000"}
    try:
        image.save(tmp_path / f"a.{ending}", kinds.get(ending))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {ending}")
    image.save(tmp_path / f"b.{ending.upper()}", kinds.get(ending))
    data = DataConfig(path=str(tmp_path), size=16).build()
    assert len(data) == 2 and abs(int(data.plain(0).image[8, 8, 0]) - 200) < 8


def test_declared_range_of_a_source_becomes_8_bits() -> None:
    values = np.linspace(0, 1, 4 * 64, dtype=np.float32).reshape(4, 8, 8)
    source = ArraySource(values, value_range=(0.0, 1.0))
    data = ImageDataset(source, DataConfig(path="x", size=8, channels=1))
    assert data.plain(3).image.dtype == np.uint8 and data.plain(3).image.max() == 255


def test_written_values_come_back_as_data(tmp_path: Path) -> None:
    values = (RNG.random((8, 8, 3)) * 4095).astype(np.float32)
    save_image(tmp_path / "a.png", values, "png16", (0, 4095))
    save_image(tmp_path / "b.tiff", values, "tiff", (0, 4095))
    data = DataConfig(path=str(tmp_path), size=8, value_range=(0, 4095)).build()
    for k, tolerance in ((0, 0.51), (1, 1e-3)):
        back = to_units(from_pixels(data.plain(k).image[None]), (0, 4095))[0].numpy()
        assert np.abs(back - values).max() < tolerance
