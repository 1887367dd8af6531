"""Grids: every cell is the image itself, in its place; labels are there, short enough, and never on the cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.pictures import draw_grid, spaced, stack, tile
from undiffuse.pictures.grid import PAPER
from undiffuse.pictures.text import Typeface


def noise(count: int, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def find(page: Image.Image, cell: np.ndarray) -> tuple[int, int]:
    """(left, top) of the only place where ``cell`` [h, w, 3] stands on the page, pixel for pixel."""
    pixels = np.asarray(page.convert("RGB"))
    height, width = cell.shape[:2]
    corner = np.all(pixels[: pixels.shape[0] - height + 1, : pixels.shape[1] - width + 1] == cell[0, 0], axis=-1)
    places = [
        (int(x), int(y)) for y, x in np.argwhere(corner) if np.array_equal(pixels[y : y + height, x : x + width], cell)
    ]
    assert len(places) == 1, f"the cell stands at {places}"
    return places[0]


def enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    rgb = image.repeat(3, -1) if image.shape[-1] == 1 else image
    return np.kron(rgb, np.ones((scale, scale, 1), np.uint8))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_tile_is_exact(channels: int, mode: str) -> None:
    images = noise(5, 3, 4, channels)
    page = tile(images, 3, scale=2, gap=1, background=7)
    assert page.mode == mode and page.size == (3 * 8 + 2, 2 * 6 + 1)
    pixels = np.asarray(page).reshape(13, 26, channels)
    expected = np.full((13, 26, channels), 7, np.uint8)
    if channels == 4:
        expected[..., 3] = 255
    for k in range(5):
        top, left = k // 3 * 7, k % 3 * 9
        for y in range(6):
            for x in range(8):
                expected[top + y, left + x] = images[k, y // 2, x // 2]
    assert np.array_equal(pixels, expected)


def test_grey_on_a_coloured_background_becomes_rgb() -> None:
    page = tile(noise(2, channels=1), 2, gap=2, background=(1, 2, 3))
    assert page.mode == "RGB" and page.getpixel((8, 0)) == (1, 2, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_labelled_cells_stand_in_rows_and_columns(channels: int) -> None:
    images = noise(6, 8, 10, channels)
    page = draw_grid(
        images, column_labels=["a", "b", "c"], row_labels=["first", "second"], title="T", caption="c", scale=3, gap=5
    )
    places = [find(page, enlarged(image, 3)) for image in images]
    left, top = places[0]
    assert places == [(left + k % 3 * (30 + 5), top + k // 3 * (24 + 5)) for k in range(6)]
    assert left > 0 and top > 0


def test_labels_never_touch_the_cells_or_the_edge() -> None:
    images = np.zeros((4, 16, 16, 3), np.uint8)
    images[...] = (255, 0, 255)
    labels = ["Supercalifragilisticexpialidocious and more words", "gj"]
    page = draw_grid(
        images,
        2,
        row_labels=labels,
        column_labels=labels,
        title="A title that is much longer than the grid is wide, so it wraps, and wraps, and is cut at last " * 3,
        scale=4,
    )
    pixels = np.asarray(page)
    magenta = np.all(pixels == (255, 0, 255), axis=-1)
    assert magenta.sum() == 4 * 64 * 64  # nothing was drawn on a cell
    for edge in (pixels[:10], pixels[-10:], pixels[:, :10], pixels[:, -10:]):
        assert np.all(edge == PAPER)


def test_every_label_is_drawn_in_its_place() -> None:
    images = noise(4, 32, 32)
    bare = np.asarray(draw_grid(images, 2, row_labels=["", ""], column_labels=["x", ""], scale=3))
    full = np.asarray(draw_grid(images, 2, row_labels=["", ""], column_labels=["x", "Dress"], scale=3))
    assert bare.shape == full.shape
    ys, xs = np.nonzero(np.any(bare != full, axis=-1))
    left, top = find(Image.fromarray(full), enlarged(images[1], 3))
    assert len(ys) > 30 and ys.max() < top and left <= xs.min() and xs.max() < left + 96
    assert abs((xs.min() + xs.max()) / 2 - (left + 48)) < 3  # centred


def test_automatic_scale_and_columns() -> None:
    find(draw_grid(noise(2, 32, 32)), enlarged(noise(2, 32, 32)[1], 3))
    find(draw_grid(noise(2, 128, 128)), noise(2, 128, 128)[1])
    assert draw_grid(noise(100, 32, 32), 100).width < 3600
    images = noise(9)
    places = [find(draw_grid(images, scale=1, gap=0), image) for image in images]
    assert places[8][0] - places[0][0] == 16 and places[8][1] - places[0][1] == 16


def test_transparent_images_lie_on_a_checkerboard() -> None:
    images = np.zeros((1, 16, 16, 4), np.uint8)
    images[0, :8] = (200, 10, 20, 255)
    pixels = np.asarray(draw_grid(images, scale=1))
    cell = pixels[28:44, 28:44]
    assert np.all(cell[:8] == (200, 10, 20))
    assert {tuple(p) for p in cell[8:].reshape(-1, 3).tolist()} == {(255, 255, 255), (225, 225, 225)}


def test_tensors_are_welcome_and_wrong_input_is_explained() -> None:
    images = noise(2)
    assert draw_grid(torch.from_numpy(images)).tobytes() == draw_grid(images).tobytes()
    for wrong, message in [
        (np.zeros((2, 8, 8, 3), np.float32), "to_uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"\[N, H, W, C\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), "C = 1"),
        (np.zeros((0, 8, 8, 3), np.uint8), "shape"),
        ([1, 2], "list"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw_grid(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 column_labels for 2 columns"):
        draw_grid(images, 2, column_labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="1 row_labels for 2 rows"):
        draw_grid(images, 1, row_labels=["a"])
    with pytest.raises(ValueError, match="column"):
        draw_grid(images, 0)
    with pytest.raises(ValueError, match="scale"):
        draw_grid(images, scale=0)
    with pytest.raises(ValueError, match=r"font file .*missing\.ttf"):
        draw_grid(images, font="missing.ttf")


def test_stack_aligns_cells_and_keeps_them_exact() -> None:
    above, below = noise(3, 16, 16, seed=1), noise(6, 16, 16, seed=2)
    figures = [
        draw_grid(above, 3, column_labels=["a", "b", "c"], scale=4),
        draw_grid(below, 3, row_labels=["t = 999", "t = 0"], scale=4),
    ]
    page = stack(figures, ["Without guidance", "With guidance"], captions=["one", None], title="Title")
    first = [find(page, enlarged(image, 4)) for image in above]
    second = [find(page, enlarged(image, 4)) for image in below]
    assert [x for x, _ in first] == [x for x, _ in second[:3]] == [x for x, _ in second[3:]]
    assert max(y for _, y in first) + 64 < min(y for _, y in second)
    plain = stack(figures)
    assert plain.height < page.height - 60  # the headings take their room


def test_stack_takes_any_picture_and_says_what_is_wrong() -> None:
    photo = Image.fromarray(noise(1, 40, 700)[0])
    find(stack([photo, draw_grid(noise(1))], ["photo", "grid"]), np.asarray(photo))
    with pytest.raises(ValueError, match="at least one figure"):
        stack([])
    with pytest.raises(ValueError, match="1 titles for 2 figures"):
        stack([photo, photo], ["one"])


def test_text_is_shortened_wrapped_and_made_legible() -> None:
    face = Typeface()
    long = face.shorten("a very long label indeed", 14, 80)
    assert long.endswith("\u2026") and face.width(long, 14) <= 80 and long.startswith("a very")
    assert face.shorten("short", 14, 80) == "short" and face.shorten("wide", 14, 1) == ""
    lines = face.wrap("one two three four five six", 14, 70, 3)
    assert len(lines) == 3 and all(face.width(line, 14) <= 70 for line in lines) and lines[0] == "one two"
    assert face.wrap("T-shirt/top", 14, 60, 2) == ["T-shirt/", "top"]
    assert face.legible("  caf\u00e9 \u00d7 3\n\u65e5\u672c  Stra\u00dfe\u200b") == "cafe x 3 ?? Strasse"
    draw_grid(noise(2), column_labels=["\U0001f457 dress", "\u062b\u0648\u0628"])  # draws without an error


def test_spaced_holds_both_ends() -> None:
    assert spaced(50, 6) == [0, 10, 20, 29, 39, 49]
    assert spaced(3, 8) == [0, 1, 2] and spaced(10, 1) == [9] and spaced(1, 4) == [0]
    with pytest.raises(ValueError, match="at least 1"):
        spaced(0, 3)
