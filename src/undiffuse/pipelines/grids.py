"""Draws grids with class headings; opens and clears folders of samples."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undiffuse.pictures import SampleWriter, claim_output, draw_grid
from undiffuse.pictures.names import parse_name
from undiffuse.pictures.npz import open_rows, packed_files
from undiffuse.pictures.stored import RUN, keeps_names, read_file, sample_files
from undiffuse.solvers.registry import current_record

MOST_COLUMNS = 12
MOST_IN_GRID = 100


def grid_count(count: int, classes: Sequence[int] | None) -> int:
    """Returns how many of a run's first images its grid shows: at most 100, in whole rows of classes if possible."""
    if classes and len(classes) <= MOST_COLUMNS:
        return min(count, MOST_IN_GRID // len(classes) * len(classes))
    return min(count, MOST_IN_GRID)


def class_grid(
    images: np.ndarray, classes: Sequence[int] | None, names: Sequence[str] | None, title: str, caption: str
) -> Image.Image:
    """Draws images uint8 [N, H, W, C] that cycle through `classes`, in a column per class if there are few."""
    if classes and names and len(classes) <= MOST_COLUMNS and len(images) >= len(classes):
        heads = [names[k] for k in classes]
        if len(heads) > 1:
            return draw_grid(images, len(heads), column_labels=heads, title=title, caption=caption)
        title = f"{title}: {heads[0]}"
    return draw_grid(images, title=title, caption=caption)


def first_images(folder: Path, seed: int, count: int) -> np.ndarray:
    """Reads the first images of a run, without reading the others.

    Args:
        folder: A folder of `SampleWriter`.
        seed: The seed of the run.
        count: Number of images.

    Returns:
        uint8 [count, H, W, C].
    """
    wanted = sample_files(folder, seed) if keeps_names(folder) else {}
    if not wanted:
        with os.scandir(folder) as entries:  # names are enough, and a run may have very many images
            for entry in entries:
                name = parse_name(entry.name)
                if name is not None and name.seed == seed and name.index < count:
                    wanted[name.index] = Path(entry.path)
    if all(index in wanted for index in range(count)):
        return np.stack([read_file(wanted[index]) for index in range(count)])
    packed = packed_files(folder)
    if not packed:
        raise ValueError(f"{folder} no longer contains the first {count} images of the run")
    return np.stack(list(open_rows(packed[-1][1], count)))


def open_writer(folder: Path, format: Any, overwrite: bool, extra: Sequence[str] = (), **settings: Any) -> SampleWriter:
    """Opens a `SampleWriter` in a folder that holds nothing but the results of one run.

    Args:
        folder: Where the images go.
        format: See `SampleWriter`.
        overwrite: Whether to remove the samples of an earlier run first, with the files called `extra`.
        extra: Names of the files that are written beside the samples.
        **settings: The other arguments of `SampleWriter`.

    Raises:
        FileExistsError: The folder holds files of which no run.json says that a run wrote them: samples would be mixed
            with them.
        ValueError: The folder belongs to a run with other settings.
    """
    claimed = (folder / RUN).exists()
    if not claimed:
        claim_output(folder)
    if overwrite:
        clear_samples(folder, extra)
    return _RunWriter(folder, format, claimed=claimed, **settings)


class _RunWriter(SampleWriter):
    """The samples of a sampler's run, whose record may have been written under former names of solvers and settings."""

    def check(self, theirs: Mapping[str, Any], place: Path | None = None) -> None:
        """See `Store.check`."""
        super().check(current_record(theirs), place)


def clear_samples(folder: Path, also: Sequence[str] = ()) -> None:
    """Removes the samples of an earlier run, and nothing else, from a folder."""
    if not (folder / RUN).is_file():
        return
    named = [file for file in folder.iterdir() if parse_name(file.name) is not None]
    samples = list(sample_files(folder).values()) if keeps_names(folder) else named
    for file in [*samples, *(file for _, file in packed_files(folder)), *(folder / name for name in (RUN, *also))]:
        file.unlink(missing_ok=True)
        if file.parent != folder and not any(file.parent.iterdir()):
            file.parent.rmdir()
    parts = folder / "parts"
    if parts.is_dir() and all(part.name.startswith(("part-", ".undiffuse-")) for part in parts.iterdir()):
        shutil.rmtree(parts)


def quoted(text: str) -> str:
    """Quotes a text as one word of a shell command."""
    plain = text and all(c.isalnum() or c in "-_./:,=+%@" for c in text)
    return text if plain else '"' + text.replace('"', '\\"') + '"'
