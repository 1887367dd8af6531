"""Preparation of pictures: colour modes, ADM's geometry, crops, padding, and the way to the model and back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import prepare, size_pair, to_mode
from undiffuse.data.decoding import decode, describe, read_header
from undiffuse.pixels import from_uint8, to_uint8


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels)


def stored(image: Image.Image, kind: str, **keywords: object) -> Image.Image:
    """The picture after a trip through a file of the given format."""
    file = io.BytesIO()
    image.save(file, kind, **keywords)
    loaded = Image.open(io.BytesIO(file.getvalue()))
    loaded.load()
    return loaded


def test_halving_then_bicubic_then_centre_crop_step_by_step() -> None:
    image = noise(256, 200)
    expected = image.resize((128, 100), Image.Resampling.BOX)  # 100 < 2 * 64: one halving only
    expected = expected.resize((82, 64), Image.Resampling.BICUBIC)  # 128 * 0.64 = 81.92
    assert np.array_equal(prepare(image, 64), np.asarray(expected)[:, 9:73])


def test_exact_multiple_is_a_pure_box_mean() -> None:
    pixels = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) * 10, np.ones((8, 8), dtype=np.uint8))
    assert np.array_equal(prepare(pixels, 4, 1)[:, :, 0], np.arange(16).reshape(4, 4) * 10)


def test_picture_of_the_right_size_is_untouched() -> None:
    image = noise(48, 48)
    assert np.array_equal(prepare(image, 48), np.asarray(image))


@pytest.mark.parametrize("shape", [(31, 97), (97, 31), (64, 64), (5, 200), (129, 128), (1, 1)])
@pytest.mark.parametrize("size", [(32, 32), (16, 24), (40, 17)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_every_shape_gives_the_target_size(shape: tuple[int, int], size: tuple[int, int], fit: str) -> None:
    image = noise(*shape)
    for crop in (None, (0.0, 0.0, 0.0), (0.999999, 0.999999, 0.999999)):
        out = prepare(image, size, fit=fit, crop=crop)  # type: ignore[arg-type]
        assert out.shape == (*size, 3) and out.dtype == np.uint8 and out.flags.c_contiguous


def test_non_square_target_cuts_the_middle_of_the_long_side() -> None:
    pixels = np.zeros((60, 20, 3), dtype=np.uint8)
    pixels[20:40] = 200
    assert (prepare(pixels, (20, 20)) == 200).all()
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 10:50] = 90
    assert (prepare(wide, (20, 40)) == 90).all()


def test_random_crop_draws_the_short_side_and_the_window() -> None:
    image = noise(100, 90)
    for draw, short in ((0.0, 64), (0.5, 72), (0.9999, 80)):  # 17 integers from 64 to 80 = ceil(64 / 0.8)
        resized = image.resize((round(100 * short / 90), short), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized)
        assert np.array_equal(prepare(image, 64, crop=(draw, 0.0, 0.0)), pixels[:64, :64])
        assert np.array_equal(prepare(image, 64, crop=(draw, 0.9999, 0.9999)), pixels[-64:, -64:])


def test_random_crop_sizes_are_uniform_integers() -> None:
    # The window's corner moves by the surplus, so the greatest surplus tells the drawn integer.
    ramp = np.tile(np.arange(40, dtype=np.uint8), (40, 1))
    seen = {prepare(ramp, 40, 1, crop=((k + 0.5) / 11, 0.0, 0.0)).tobytes() for k in range(11)}
    assert len(seen) == 11  # 40..50


def test_flip_mirrors_left_and_right() -> None:
    image = noise(30, 30)
    assert np.array_equal(prepare(image, 30, flip=True), np.asarray(image)[:, ::-1])


def test_padding_adds_a_constant_border_and_keeps_the_pixels() -> None:
    pixels = np.asarray(noise(28, 28, "L"))
    out = prepare(pixels, 32, 1, fit="pad")[:, :, 0]
    assert np.array_equal(out[2:30, 2:30], pixels)
    border = np.ones((32, 32), dtype=bool)
    border[2:30, 2:30] = False
    assert (out[border] == 0).all()
    assert (prepare(pixels, 32, 1, fit="pad", pad_value=7)[:, :, 0][border] == 7).all()


def test_padding_shrinks_what_is_larger_and_keeps_all_of_it() -> None:
    pixels = np.full((50, 100, 3), 180, dtype=np.uint8)
    out = prepare(pixels, 40, fit="pad")
    assert (out[10:30] == 180).all() and (out[:10] == 0).all() and (out[30:] == 0).all()


def test_padding_with_random_crop_scales_the_padded_picture() -> None:
    pixels = np.full((28, 28), 255, dtype=np.uint8)
    corner = prepare(pixels, 32, 1, fit="pad", crop=(0.9999, 0.0, 0.0))[:, :, 0]
    assert (corner[:2, :] < 30).all() and (corner[5:, 5:] == 255).all()


def test_transparency_is_laid_over_the_background() -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:4] = (200, 100, 50, 255)
    pixels[4:] = (1, 2, 3, 0)
    image = stored(Image.fromarray(pixels), "PNG")
    white = prepare(image, 8)
    assert (white[:4] == (200, 100, 50)).all() and (white[4:] == 255).all()
    assert (prepare(image, 8, background=0)[4:] == 0).all()
    assert (prepare(image, 8, background=(9, 8, 7))[4:] == (9, 8, 7)).all()
    assert np.array_equal(prepare(image, 8, 4)[:4], pixels[:4])
    assert (prepare(image, 8, 4)[4:, :, 3] == 0).all()


def test_half_transparency_is_a_mixture() -> None:
    image = Image.new("LA", (4, 4), (100, 128))
    expected = round(100 * 128 / 255 + 255 * 127 / 255)
    assert abs(int(prepare(image, 4, 1)[0, 0, 0]) - expected) <= 1


def test_hidden_colours_do_not_bleed_when_resizing_with_alpha() -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, :8] = (255, 0, 0, 255)
    pixels[:, 8:] = (0, 255, 0, 0)  # invisible green
    out = prepare(Image.fromarray(pixels), 4, 4)
    assert (out[:, :, 1][out[:, :, 3] > 0] <= 2).all()
    opaque = prepare(Image.fromarray(pixels), 4, 3)
    assert (opaque[:, 2:] == 255).all() and (opaque[:, :2] == (255, 0, 0)).all()


def test_palette_is_converted_before_resizing() -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([0, 0, 0, 255, 255, 255] + [255, 0, 0] * 254)
    image.putdata([0, 1] * 32)
    out = prepare(stored(image, "PNG"), 4)
    assert (np.abs(out.astype(int) - 128) <= 1).all()  # index 0 and 1 mixed as black and white: grey


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry(kind: str) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50] + [0, 0, 0] * 254)
    image.paste(0, (0, 0, 4, 2))
    out = prepare(stored(image, kind, transparency=0), 4)
    assert (out[:2] == 255).all() and (out[2:] == (200, 100, 50)).all()


def test_transparent_colour_of_rgb_and_grey() -> None:
    rgb = Image.new("RGB", (2, 2), (1, 2, 3))
    assert (prepare(stored(rgb, "PNG", transparency=(1, 2, 3)), 2) == 255).all()
    grey = Image.new("L", (2, 2), 7)
    assert (prepare(stored(grey, "PNG", transparency=7), 2, 1) == 255).all()
    assert (prepare(stored(grey, "PNG"), 2, 1) == 7).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 256, 32768], [257 * 100, 65535, 257 * 3 + 128]], dtype=np.uint16)
    image = stored(Image.fromarray(values), kind)
    assert to_mode(image, 1).size == (3, 2)
    assert np.array_equal(np.asarray(to_mode(image, 1)), [[0, 1, 128], [100, 255, 3]])
    assert np.asarray(to_mode(image, 3)).shape == (2, 3, 3)


def test_pixels_without_a_defined_white_are_refused() -> None:
    with pytest.raises(ValueError, match="mode F"):
        prepare(stored(Image.new("F", (4, 4), 0.5), "TIFF"), 4)
    with pytest.raises(ValueError, match="32-bit integer.*mode I.*value_range"):
        prepare(stored(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF"), 4)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB"]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_to_every_channel_count(mode: str, channels: int) -> None:
    out = prepare(Image.new(mode, (9, 7)), 6, channels)
    assert out.shape == (6, 6, channels)


def test_one_bit_cmyk_and_jpeg_colours() -> None:
    bits = Image.new("1", (4, 4), 1)
    assert (prepare(stored(bits, "PNG"), 4, 1) == 255).all()
    red = stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert red.mode == "CMYK"
    assert (np.abs(prepare(red, 8).astype(int) - (255, 0, 0)) <= 6).all()


def test_exif_orientation_turns_the_picture() -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left becomes top
    out = prepare(stored(Image.fromarray(pixels), "JPEG", exif=exif, quality=100), (16, 8))
    assert (out[:7] > 240).all() and (out[9:] < 15).all()


def test_exif_orientation_and_sixteen_bits_together() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    values = np.array([[0, 65535]], dtype=np.uint16)
    image = stored(Image.fromarray(values), "PNG", exif=exif)
    assert np.array_equal(np.asarray(to_mode(image, 1)), [[255, 0]])


def test_unreadable_exif_is_not_a_broken_picture() -> None:
    image = stored(noise(8, 8), "PNG")
    image.info["exif"] = b"Exif\0\0garbage that is no TIFF header"
    assert np.array_equal(prepare(image, 8), np.asarray(image))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("P", (4, 4), k) for k in range(2)]
    for frame in frames:
        frame.putpalette([200, 0, 0, 0, 200, 0] + [0] * 762)
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (prepare(Image.open(io.BytesIO(file.getvalue())), 4) == (200, 0, 0)).all()


def test_arrays_of_all_channel_counts() -> None:
    grey = np.full((4, 4), 9, dtype=np.uint8)
    assert (prepare(grey, 4, 3) == 9).all() and (prepare(grey[:, :, None], 4, 1) == 9).all()
    assert np.array_equal(prepare(np.dstack([grey] * 3 + [grey * 0]), 4, 3), np.full((4, 4, 3), 255))
    with pytest.raises(ValueError, match="float32.*value_range"):
        prepare(grey.astype(np.float32), 4)
    with pytest.raises(ValueError, match="channels"):
        prepare(np.zeros((4, 4, 5), dtype=np.uint8), 4)


def test_impossible_settings_are_explained() -> None:
    image = noise(8, 8)
    with pytest.raises(ValueError, match="3 channels, which do not become 2"):
        prepare(image, 8, 2)
    with pytest.raises(ValueError, match="fit='squash'"):
        prepare(image, 8, fit="squash")  # type: ignore[arg-type]
    for size in (0, (8, 0), (8, 8, 8), (8.0, 8)):
        with pytest.raises(ValueError, match="image size"):
            size_pair(size)  # type: ignore[arg-type]
    assert size_pair(5) == (5, 5) and size_pair([3, 4]) == (3, 4)


def test_to_model_and_back_for_every_level() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    x = from_uint8(pixels)
    assert x.shape == (2, 3, 16, 16) and x.dtype == torch.float32
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(to_uint8(x), pixels)
    assert torch.equal(from_uint8(pixels.numpy()), x)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["TIFF", "JPEG", "WEBP"])
def test_headers_have_the_size_of_the_upright_picture(orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (24, 16)).save(file, ending, exif=exif)
    header, picture = read_header(file), decode(file)
    shown = describe(picture)
    assert (header.width, header.height) == (shown.width, shown.height) == to_mode(picture, 3).size


def test_complex_numbers_are_no_pixels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 6), np.complex64))
    with (tmp_path / "a.tif").open("rb") as file, pytest.raises(ValueError, match="complex numbers"):
        read_header(file)
