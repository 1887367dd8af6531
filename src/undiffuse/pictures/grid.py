"""Labelled grids of images, and several figures on one page.

Images are never resampled: a cell shows each pixel repeated `scale` x `scale` times.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from undiffuse.pictures.arrays import Images, as_images
from undiffuse.pictures.text import INK, MUTED, Typeface
from undiffuse.pictures.units import preview

__all__ = ["PAPER", "draw_grid", "stack", "tile"]

Colour = tuple[int, int, int]
PAPER: Colour = (250, 250, 249)
MARGIN = 28
TITLE, CAPTION, HEADING = 22, 14, 18
_RULE: Colour = (224, 224, 222)


def tile(
    images: Images, columns: int | None = None, *, scale: int = 1, gap: int = 0, background: int | Colour = PAPER
) -> Image.Image:
    """Places images side by side, without text.

    Grey images stay grey if the background is grey.

    Args:
        images: uint8 images [N, H, W, C].
        columns: Images per row; default: about as many as rows.
        scale: Every pixel becomes `scale` x `scale` pixels.
        gap: Pixels between images.
        background: Grey value or RGB colour, 0 to 255.

    Raises:
        ValueError: The images, `columns`, `scale` or `gap` are invalid.
    """
    array = as_images(_visible(images))
    count, height, width, channels = array.shape
    columns = _columns(count, columns)
    if scale < 1 or gap < 0:
        raise ValueError(f"scale must be at least 1 and gap at least 0, got scale={scale}, gap={gap}.")
    colour: Colour = (background,) * 3 if isinstance(background, int) else background
    if channels == 1 and len(set(colour)) > 1:
        array, channels = np.repeat(array, 3, axis=-1), 3
    rows = math.ceil(count / columns)
    height, width = height * scale, width * scale
    page = np.empty((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.uint8)
    page[:] = (*colour, 255) if channels == 4 else colour[:channels]
    for k, image in enumerate(array):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        page[top : top + height, left : left + width] = image.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(page[..., 0] if channels == 1 else page)


def _visible(images: Images) -> Images:
    """Shows 2 channels by the first in grey, and 5 or more by the first three as R, G, B, as `preview` does."""
    if getattr(images, "ndim", 0) != 4 or images.shape[-1] in (1, 3, 4) or images.shape[1] in (1, 3, 4):
        return images  # channels that come first are a mistake, of which `as_images` tells
    return preview(as_images(images, any_channels=True))


def draw_grid(
    images: Images,
    columns: int | None = None,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    caption: str | None = None,
    scale: int | None = None,
    gap: int | None = None,
    background: Colour = PAPER,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Draws a labelled grid of images, row by row, as an RGB picture.

    Labels that are too long are wrapped, then shortened. Transparent images are drawn on a checkerboard.

    Args:
        images: uint8 images [N, H, W, C].
        columns: Images per row; default: from the labels, or about as many as rows.
        row_labels: One label per row.
        column_labels: One label per column.
        title: Text above the grid.
        caption: Smaller text below the title.
        scale: Integer number of times that every pixel is repeated; default: cells of about 96 pixels.
        gap: Pixels between cells; default: 4 % of a cell, at least 2.
        background: RGB colour of the page.
        font: Font file for labels in scripts that the built-in font lacks.

    Raises:
        ValueError: The number of labels differs from the number of rows or columns.
    """
    array = as_images(_visible(images))
    count, height, width, _ = array.shape
    if columns is None and column_labels is not None:
        columns = len(column_labels)
    elif columns is None and row_labels:
        columns = math.ceil(count / len(row_labels))
    columns = _columns(count, columns)
    rows = math.ceil(count / columns)
    for name, labels, wanted in (("column_labels", column_labels, columns), ("row_labels", row_labels, rows)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(
                f"{len(labels)} {name} for {wanted} {name[:-7]}s of {count} images: give one label for each."
            )
    scale = _visible_scale(height, width, columns) if scale is None else scale
    gap = max(2, round(width * scale * 0.04)) if gap is None else gap
    cells = tile(_on_checkerboard(array, scale), columns, scale=scale, gap=gap, background=background).convert("RGB")

    face = Typeface(font)
    cell_width, cell_height = width * scale, height * scale
    size = min(16, max(11, round(cell_width * 0.16)))
    line = face.line_height(size)
    column_room = max(cell_width + gap - 6, 1)
    heads = [face.wrap(label, size, column_room, 2) for label in column_labels or ()]
    sides = [face.wrap(label, size, 170, max(1, min(3, cell_height // line))) for label in row_labels or ()]
    left = MARGIN + (math.ceil(max((face.width(t, size) for side in sides for t in side), default=-12)) + 12)
    page_width = max(
        left + cells.width + MARGIN, min(420, _needed(face, title, TITLE), _needed(face, caption, CAPTION))
    )
    top, header = _header(face, title, caption, page_width)
    head_height = max((len(head) for head in heads), default=0) * line
    top += head_height + 6 if head_height else 0

    page = Image.new("RGB", (page_width, top + cells.height + MARGIN), background)
    page.paste(cells, (left, top))
    draw = ImageDraw.Draw(page)
    for at, text, points, colour in header:
        face.draw(draw, at, text, points, colour)
    for k, head in enumerate(heads):
        centre = left + k * (cell_width + gap) + cell_width / 2
        for j, text in enumerate(reversed(head)):  # bottom-aligned
            face.draw(draw, (centre, top - 6 - (j + 0.5) * line), text, size, anchor="mm")
    for k, side in enumerate(sides):
        middle = top + k * (cell_height + gap) + cell_height / 2
        for j, text in enumerate(side):
            face.draw(draw, (left - 12, middle + (j - (len(side) - 1) / 2) * line), text, size, anchor="rm")
    page.info["layout"] = (MARGIN, left)  # `stack` aligns the cells of several grids with it
    return page


def stack(
    figures: Sequence[Image.Image],
    titles: Sequence[str | None] | None = None,
    *,
    captions: Sequence[str | None] | None = None,
    title: str | None = None,
    caption: str | None = None,
    background: Colour = PAPER,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Stacks figures on one page, an RGB picture with a page title and a heading and caption for every figure.

    Grids from `draw_grid` are aligned at their first column of cells, so equal columns are aligned too.

    Args:
        figures: The figures, from top to bottom.
        titles: One heading per figure; None for no text.
        captions: One caption per figure; None for no text.
        title: Title of the page.
        caption: Text below the title.
        background: RGB colour of the page.
        font: Font file for scripts that the built-in font lacks.

    Raises:
        ValueError: There is no figure, or the number of titles or captions differs from that of the figures.
    """
    if not figures:
        raise ValueError("stack needs at least one figure.")
    for name, given in (("titles", titles), ("captions", captions)):
        if given is not None and len(given) != len(figures):
            raise ValueError(f"{len(given)} {name} for {len(figures)} figures: give one per figure (None for no text).")
    face = Typeface(font)
    layouts = [figure.info.get("layout", (0, 0)) for figure in figures]
    # The page has its own margin, so the margin of a grid is cropped.
    bodies = [
        figure.convert("RGB").crop((m, m, figure.width - m, figure.height - m))
        for figure, (m, _) in zip(figures, layouts, strict=True)
    ]
    starts = [left - margin for margin, left in layouts]
    shifts = [max(starts) - start if margin else 0 for start, (margin, _) in zip(starts, layouts, strict=True)]
    content = max(shift + body.width for shift, body in zip(shifts, bodies, strict=True))
    page_width = max(content + 2 * MARGIN, min(420, _needed(face, title, TITLE), _needed(face, caption, CAPTION)))
    y, texts = _header(face, title, caption, page_width)
    rules: list[int] = []
    places: list[tuple[int, int]] = []
    for k, body in enumerate(bodies):
        if k or texts:
            y += 12
            rules.append(y)
            y += 22
        heading = _block(face, titles[k] if titles else None, HEADING, INK, page_width, 2)
        heading += _block(face, captions[k] if captions else None, CAPTION, MUTED, page_width, 3)
        for text, points, colour in heading:
            texts.append(((MARGIN, y + face.line_height(points) // 2), text, points, colour))
            y += face.line_height(points)
        y += 14 if heading else 0
        places.append((MARGIN + shifts[k], y))
        y += body.height + 12
    page = Image.new("RGB", (page_width, y + MARGIN - 12), background)
    draw = ImageDraw.Draw(page)
    for rule in rules:
        draw.line((MARGIN, rule, page_width - MARGIN - 1, rule), fill=_RULE)
    for body, place in zip(bodies, places, strict=True):
        page.paste(body, place)
    for at, text, points, colour in texts:
        face.draw(draw, at, text, points, colour)
    return page


_Text = tuple[tuple[int, int], str, int, Colour]


def _header(face: Typeface, title: str | None, caption: str | None, page_width: int) -> tuple[int, list[_Text]]:
    """Returns the height of title and caption at the top of the page, and the lines to draw there."""
    y, texts = MARGIN, []
    block = _block(face, title, TITLE, INK, page_width, 3) + _block(face, caption, CAPTION, MUTED, page_width, 4)
    for text, points, colour in block:
        texts.append(((MARGIN, y + face.line_height(points) // 2), text, points, colour))
        y += face.line_height(points)
    return y + (14 if block else 0), texts


def _block(
    face: Typeface, text: str | None, size: int, colour: Colour, page_width: int, lines: int
) -> list[tuple[str, int, Colour]]:
    return [(line, size, colour) for line in face.wrap(text, size, page_width - 2 * MARGIN, lines)] if text else []


def _needed(face: Typeface, text: str | None, size: int) -> int:
    return math.ceil(face.width(face.legible(text), size)) + 2 * MARGIN if text else 0


def _columns(count: int, columns: int | None) -> int:
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"a grid needs at least one column, got columns={columns}.")
    return columns


def _visible_scale(height: int, width: int, columns: int) -> int:
    """Returns the scale for cells of about 96 pixels, or smaller ones if the page would be wider than about 2,400."""
    return max(1, min(round(96 / max(height, width)), 2400 // (columns * width)))


def _on_checkerboard(array: np.ndarray, scale: int) -> np.ndarray:
    """Composites RGBA images [N, H, W, 4] over a light checkerboard to RGB [N, H, W, 3]; other images are unchanged."""
    if array.shape[-1] != 4:
        return array
    _, height, width, _ = array.shape
    square = max(1, 8 // scale)
    odd = (np.arange(height)[:, None] // square + np.arange(width) // square) % 2
    board = np.where(odd, 225, 255)[None, :, :, None].astype(np.float32)
    alpha = array[..., 3:].astype(np.float32) / 255
    return (array[..., :3] * alpha + board * (1 - alpha)).round().astype(np.uint8)
