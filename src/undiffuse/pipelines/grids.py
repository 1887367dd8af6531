"""What the commands write beside single images: grids with class headings, and clearing up for --overwrite."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undiffuse.pictures import SampleWriter, draw_grid, sample_files
from undiffuse.pictures.arrays import from_picture
from undiffuse.pictures.names import parse_name
from undiffuse.pictures.npz import open_rows, packed_files
from undiffuse.pictures.png import open_picture

MOST_COLUMNS = 12
MOST_IN_GRID = 100


def grid_count(count: int, classes: Sequence[int] | None) -> int:
    """How many of a run's first images its grid shows: at most 100, in whole rows of classes where possible."""
    if classes and len(classes) <= MOST_COLUMNS:
        return min(count, MOST_IN_GRID // len(classes) * len(classes))
    return min(count, MOST_IN_GRID)


def class_grid(
    images: np.ndarray, classes: Sequence[int] | None, names: Sequence[str] | None, title: str, caption: str
) -> Image.Image:
    """Images uint8 [N, H, W, C] that cycle through `classes`: a column a class where there are few, else a square."""
    if classes and names and len(classes) <= MOST_COLUMNS and len(images) >= len(classes):
        heads = [names[k] for k in classes]
        if len(heads) > 1:
            return draw_grid(images, len(heads), column_labels=heads, title=title, caption=caption)
        title = f"{title}: {heads[0]}"
    return draw_grid(images, title=title, caption=caption)


def first_images(folder: Path, seed: int, count: int) -> np.ndarray:
    """The first images of a run on disk, uint8 [count, H, W, C], without reading the others."""
    packed = packed_files(folder)
    wanted = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = parse_name(entry.name)
            if name is not None and name.seed == seed and name.index < count:
                wanted[name.index] = entry.path
    if len(wanted) == count:
        pictures = []
        for index in range(count):
            with open_picture(wanted[index]) as picture:
                pictures.append(from_picture(picture))
        return np.stack(pictures)
    if not packed:
        raise ValueError(f"{folder} does not hold the first {count} images of the run any more")
    return np.stack(list(open_rows(packed[-1][1], count)))


def open_writer(folder: Path, format: Any, overwrite: bool, extra: Sequence[str], **settings: Any) -> SampleWriter:
    """A `SampleWriter`; `overwrite` first removes an earlier run's samples and the files called `extra`.

    FileExistsError if files called `extra` are there that no run of ours wrote: they would be replaced in the end.
    """
    claimed = overwrite and (folder / "run.json").exists()
    if overwrite:
        clear_samples(folder, extra)
    elif not (folder / "run.json").exists():
        theirs = [name for name in extra if (folder / name).exists()]
        if theirs:
            raise FileExistsError(
                f"{folder} holds {', '.join(theirs)} but no run.json of an earlier run: name another --out, or replace "
                "what is there with --overwrite"
            )
    try:
        return SampleWriter(folder, format, claimed=claimed, **settings)
    except ValueError as error:
        raise ValueError(f"{error} (--overwrite deletes the samples in it and begins anew.)") from error


def clear_samples(folder: Path, also: Sequence[str] = ()) -> None:
    """Remove the samples of an earlier run, and nothing else, from a folder."""
    if not folder.is_dir():
        return
    for file in sample_files(folder).values() if (folder / "names.json").is_file() else ():
        file.unlink()
    for file in list(folder.iterdir()):
        if parse_name(file.name) is not None or file.name in ("run.json", "names.json", *also):
            file.unlink()
    for _, file in packed_files(folder):
        file.unlink()
    parts = folder / "parts"
    if parts.is_dir() and all(part.name.startswith(("part-", ".undiffuse-")) for part in parts.iterdir()):
        shutil.rmtree(parts)


def quoted(text: str) -> str:
    """`text` as one word of a shell's command line."""
    plain = text and all(c.isalnum() or c in "-_./:,=+%@" for c in text)
    return text if plain else '"' + text.replace('"', '\\"') + '"'
