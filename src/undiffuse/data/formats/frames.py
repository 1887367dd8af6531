"""Files that hold several pictures: multi-page TIFF, animated GIF, WebP and PNG (APNG)."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from undiffuse.data.decoding import Picture, PictureInfo, as_stored, check_size, decode, describe
from undiffuse.data.formats.base import Frames, Reading
from undiffuse.data.headers import known_headers, read_headers
from undiffuse.data.screening import default_workers
from undiffuse.data.sources import BrokenImageError, FileSource, FolderSource, Source
from undiffuse.data.tiff import is_tiff, read_page, read_pixels
from undiffuse.util.errors import reading

__all__ = ["FramesSource", "count_frames", "open", "recognise", "with_frames"]

SUFFIXES = (".tif", ".tiff", ".gif", ".webp", ".apng", ".png")
_COUNTED = 5_000
"""Files, evenly spaced, whose frames are counted where only the first frame is taken."""


class FramesSource(Source):
    """Every frame of every file of another source, in order; frame k of ``a.tif`` is called ``a.tif[k]``."""

    def __init__(self, files: FileSource, counts: NDArray[np.int64]) -> None:
        index = np.repeat(np.arange(len(files)), counts)
        labels = None if files.labels is None else files.labels[index]
        super().__init__(files.where, labels, files.label_names, files.excluded)
        self.inherit(files, index)
        self.files, self.counts, self.index = files, counts, index
        self.first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        file = int(self.index[i])
        name = self.files.name(file)
        return name if self.counts[file] == 1 else f"{name}[{i - int(self.first[file])}]"

    def image(self, i: int) -> Picture:
        file = int(self.index[i])
        if self.counts[file] == 1:
            return self.files.image(file)
        frame = i - int(self.first[file])
        try:
            with reading("the frame"):
                return decode_frame(io.BytesIO(self.files.encoded(file)), frame, self.files.max_pixels)
        except (EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BrokenImageError(self.name(i), str(error) or type(error).__name__) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise BrokenImageError(self.name(i), str(error)) from error

    def info(self, i: int) -> PictureInfo:
        file = int(self.index[i])
        return self.files.info(file) if self.counts[file] == 1 else describe(self.image(i))

    def _content_hash(self) -> bytes:
        import hashlib

        return hashlib.sha256(self.files._content_hash() + self.counts.astype("<i8").tobytes()).digest()


def decode_frame(file: IO[bytes], frame: int, max_pixels: int) -> Picture:
    """A frame of a file, as `decode` gives the first one.

    Raises:
        ValueError: damaged pixels, or too many.
        EOFError: there is no such frame.
        OSError: it cannot be decoded.
    """
    if frame == 0:
        return decode(file, max_pixels)
    if is_tiff(file.read(16)):
        page = read_page(file, frame)
        if page.beyond_pillow or page.photometric == 0:  # see `undiffuse.data.decoding` on what Pillow gets wrong
            check_size(page.width, page.height, max_pixels, page.samples * page.bits // 8)
            return as_stored(read_pixels(file, page), page)
    file.seek(0)
    image = Image.open(file)
    image.seek(frame)
    check_size(*image.size, max_pixels)
    image.load()
    return image


def count_frames(files: FileSource, limit: int | None = None) -> NDArray[np.int64]:
    """How many frames each file holds [N]; 1 for files of other kinds and broken ones.

    Above `limit` files only evenly spaced ones are looked at.
    """
    headers = read_headers(files, default_workers()) if limit is None else known_headers(files)
    if headers is not None:
        return np.maximum(headers.pages, 1).astype(np.int64)
    counts = np.ones(len(files), dtype=np.int64)
    step = 1 if limit is None else max(1, len(files) // limit)
    chosen = [i for i in range(0, len(files), step) if files.name(i).lower().endswith(SUFFIXES)]

    def count(i: int) -> int:
        try:
            if files.name(i).lower().endswith(".png") and not _animated(files, i):
                return 1
            with files.open(i) as handle, Image.open(handle) as image:
                return int(getattr(image, "n_frames", 1))
        except Exception:  # a broken file is found and named when it is read
            return 1

    with ThreadPoolExecutor(default_workers()) as pool:
        for i, frames in zip(chosen, pool.map(count, chosen), strict=True):
            counts[i] = frames
    return counts


def _animated(files: FileSource, i: int) -> bool:
    """Whether a PNG says near its beginning that it is an animation."""
    with files.open(i) as file:
        return b"acTL" in file.read(4096)


def with_frames(files: FileSource, frames: Frames) -> Source:
    """The source with all frames of its files, or with their first frames and a count of the others."""
    if frames not in ("first", "all"):
        raise ValueError(f'frames={frames!r}: expected "first" or "all"')
    counts = count_frames(files, None if frames == "all" else _COUNTED)
    several = int((counts > 1).sum())
    if not several:
        return files
    total = int(counts[counts > 1].sum())
    held = f"{several:,} file{'s hold' if several > 1 else ' holds'} {total:,} frames"
    if frames == "all":
        source = FramesSource(files, counts)
        source.notes.append(f"{held}, and all are taken")
        return source
    files.notes.append(f'{held}; the first of each is taken, frames="all" takes all')
    files.left_out["frames after the first of a file"] = total - several
    return files


def recognise(path: Path) -> bool:
    """One file with several frames."""
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1)) > 1
    except Exception:
        return False


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The file, whose frames the caller counts."""
    del reading
    source = FolderSource(path.parent, [path.name], [path.stat().st_size])
    source.where = str(path)
    return source
