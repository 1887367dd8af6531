"""`convert`: any source of pictures as a folder, a zip, shards or parquet that other programs read."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from undiffuse.data import shards
from undiffuse.data.channels import ValueRange, to_mode, upright
from undiffuse.data.decoding import Picture, describe
from undiffuse.data.images import prepare
from undiffuse.data.screening import default_workers
from undiffuse.data.sources import BrokenImageError, Excluded, Source
from undiffuse.util import files

__all__ = ["Converted", "Target", "convert", "expected_bytes"]

Target = Literal["folder", "zip", "webdataset", "parquet"]
TARGETS = ("folder", "zip", "webdataset", "parquet")
_AS_IT_IS = {
    ".png": re.compile(rb"\x89PNG"),
    ".jpg": re.compile(rb"\xff\xd8\xff"),
    ".webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
"""Files that begin so are copied byte by byte where the target takes any."""
_SHELF = 1000
_TRIED = 16
"""Pictures by which the size of all is estimated."""


@dataclass
class Converted:
    """What `convert` wrote.

    Attributes:
        path: the folder or file.
        to: its format.
        images: how many pictures it holds.
        copied: how many of them are the same files, byte by byte; the others became PNG.
        reduced: how many had more than 8 bits in several channels, or numbers with a value range, and have 8 bits now.
        bytes: how many the pictures take.
        excluded: pictures that could not be read and were left out.
    """

    path: Path
    to: Target
    images: int = 0
    bytes: int = 0
    copied: int = 0
    reduced: int = 0
    excluded: list[Excluded] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """A picture as it is written: its number, file name, bytes, and its name in the source."""

    number: int
    file: str
    data: bytes
    name: str
    copied: bool
    reduced: bool


def convert(
    source: Source,
    path: str | Path,
    to: Target | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    value_range: ValueRange | None = None,
    on_broken: Literal["refuse", "skip"] = "refuse",
    shard_size: int = 1000,
    workers: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Converted:
    """Write the pictures of a source in a form that other programs read.

    Args:
        source: the pictures, with their labels or vectors.
        path: what to write; it must not exist.
        to: "folder": image files with metadata.jsonl, as Hugging Face's imagefolder; "zip": as NVIDIA's dataset_tool
            (StyleGAN, EDM), for which all pictures must be of one size; "webdataset": a folder of tar shards;
            "parquet": a folder of shards, or a single file called .parquet. None goes by the ending of `path`.
        size: prepare the pictures to this size, as for training; None leaves them as they are.
        value_range: the values of black and white for pictures that are not 8-bit; None takes the source's.
        on_broken: pictures that cannot be read: "refuse" or "skip".
        shard_size: pictures of a shard.
        workers: threads that read and encode; None chooses.
        report: is called with the number of pictures written so far.

    Returns:
        What was written. Nothing is left behind when an error is raised.

    Raises:
        FileExistsError: there is something at `path`.
        ValueError: a format that does not exist, or pictures that cannot be written in it.
        BrokenImageError: a picture that cannot be read, where `on_broken` is "refuse".
    """
    path = Path(path)
    kind = _target(path, to)
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: choose another name")
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size}: expected at least 1")
    done = Converted(path, kind)
    declared = value_range if value_range is not None else source.value_range
    encode = _Encoder(source, size, declared, kind == "zip" or size is not None)
    count = len(source) - _broken(source, encode, on_broken, done, workers) if kind in ("webdataset", "parquet") else 0
    single = kind == "zip" or (kind == "parquet" and path.suffix.lower() == ".parquet")
    with _whole_or_absent(path, not single) as place:
        items = _items(source, encode, on_broken, done, workers, report)
        if kind == "folder":
            _write_folder(place, source, items)
        elif kind == "zip":
            _write_zip(place, source, items)
        elif kind == "webdataset":
            shards.write_tars(place, source, items, shard_size, count)
        else:
            shards.write_parquet(place, path.suffix.lower() == ".parquet", source, items, shard_size, count)
        if not done.images:
            raise ValueError(f"{source.where}: no picture could be read, so nothing was written")
    return done


def expected_bytes(
    source: Source,
    path: str | Path,
    to: Target | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    value_range: ValueRange | None = None,
) -> int:
    """How many bytes `convert` will write with the same arguments, from a few pictures that are spread over the source.

    Raises:
        ValueError: as `convert`.
    """
    kind = _target(Path(path), to)
    declared = value_range if value_range is not None else source.value_range
    encode = _Encoder(source, size, declared, kind == "zip" or size is not None)
    found = []
    for i in range(0, len(source), max(1, len(source) // _TRIED)):
        try:
            found.append(len(encode(i).data))
        except BrokenImageError:  # found and named when its turn comes
            continue
    return round(sum(found) / len(found) * len(source)) if found else 0


def _target(path: Path, to: Target | None) -> Target:
    if to is not None:
        if to not in TARGETS:
            raise ValueError(f"to={to!r}: expected one of {', '.join(TARGETS)}")
        return to
    if path.suffix.lower() == ".zip":
        return "zip"
    if path.suffix.lower() == ".parquet":
        return "parquet"
    if path.suffix.lower() in (".tar", ".tgz", ".gz", ".npz", ".h5", ".tfrecord"):
        raise ValueError(
            f'{path}: cannot be written; expected a folder (with to="folder", "webdataset" or "parquet"), a .zip or a '
            ".parquet"
        )
    return "folder"


@contextmanager
def _whole_or_absent(path: Path, folder: bool) -> Iterator[Path]:
    """A file or folder beside `path` that gets its name if the block ends without an error, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.temporary(path.parent, folder) as new:
        yield new
        files.sync_tree(new) if folder else files.sync(new)
        files.place(new, path, overwrite=False)


class _Encoder:
    """Pictures as files: copied where they are files of a common kind, else encoded as PNG without loss."""

    def __init__(
        self, source: Source, size: int | tuple[int, int] | None, value_range: ValueRange | None, always: bool
    ) -> None:
        self.source, self.size, self.value_range, self.always = source, size, value_range, always

    def __call__(self, i: int) -> Item:
        name, base = self.source.name(i), f"{i // _SHELF:05d}/img{i:08d}"
        picture = self.source.image(i)  # decoded in any case: a broken file is not handed on
        data = None if self.always else self.source.encoded(i)
        ending = None if data is None else next((e for e, start in _AS_IT_IS.items() if start.match(data)), None)
        if data is not None and ending is not None:
            return Item(i, base + ending, data, name, True, False)
        try:
            image, reduced = self._image(picture)
        except (ValueError, OSError) as error:
            raise BrokenImageError(name, str(error)) from error
        out = io.BytesIO()
        image.save(out, "PNG")
        return Item(i, f"{base}.png", out.getvalue(), name, False, reduced)

    def _image(self, picture: Picture) -> tuple[Image.Image, bool]:
        """(the picture as Pillow writes it to PNG, whether values were mapped to 8 bits)."""
        info = describe(picture)
        channels = 1 if info.channels - info.alpha == 1 and not info.alpha else 4 if info.alpha else 3
        if info.planes or info.channels > 4:
            raise ValueError(f"it has {info.channels} channels, which no PNG holds")
        if self.size is not None or info.depth != "8":
            grey16 = (
                self.size is None and info.depth == "16" and channels == 1 and self.value_range in (None, (0, 65535))
            )
            if grey16:
                values = np.asarray(upright(picture) if isinstance(picture, Image.Image) else picture)
                return Image.fromarray(np.ascontiguousarray(values.reshape(values.shape[:2]).astype(np.uint16))), False
            size = self.size or (info.height, info.width)
            declared = self.value_range if info.depth != "8" else None
            pixels = prepare(picture, size, channels, value_range=declared)
            if pixels.dtype != np.uint8:
                pixels = np.floor((pixels + 1) * 127.5 + 0.5).astype(np.uint8)
            return Image.fromarray(pixels[..., 0] if channels == 1 else pixels), info.depth != "8"
        return to_mode(picture, channels), False


def _broken(source: Source, encode: _Encoder, on_broken: str, done: Converted, workers: int | None) -> int:
    """How many pictures will be left out, which must be known before the first shard gets its name."""
    if on_broken == "refuse":
        return 0

    def fails(i: int) -> bool:
        try:
            encode(i)
        except BrokenImageError:
            return True
        return False

    with ThreadPoolExecutor(workers or default_workers()) as pool:
        return sum(
            sum(pool.map(fails, range(first, min(first + 4096, len(source))))) for first in range(0, len(source), 4096)
        )


def _items(
    source: Source,
    encode: _Encoder,
    on_broken: str,
    done: Converted,
    workers: int | None,
    report: Callable[[int], None] | None,
) -> Iterator[Item]:
    """All pictures in order; a few are read and encoded ahead."""
    threads = workers or default_workers()
    ahead: deque[Future[Item]] = deque()
    numbers = iter(range(len(source)))
    with ThreadPoolExecutor(threads) as pool:
        try:
            for i in numbers:
                ahead.append(pool.submit(encode, i))
                if len(ahead) < 4 * threads and i + 1 < len(source):
                    continue
                while ahead and (len(ahead) >= 4 * threads or i + 1 == len(source)):
                    try:
                        item = ahead.popleft().result()
                    except BrokenImageError as error:
                        if on_broken == "refuse":
                            raise
                        done.excluded.append(Excluded(name=error.name, reason=error.reason))
                        continue
                    done.images += 1
                    done.bytes += len(item.data)
                    done.copied += item.copied
                    done.reduced += item.reduced
                    yield item
                    if report is not None:
                        report(done.images)
        finally:
            for job in ahead:
                job.cancel()


def _write_folder(place: Path, source: Source, items: Iterator[Item]) -> None:
    """Shelves of files, metadata.jsonl, and the class table in dataset_info.json."""
    with (place / "metadata.jsonl").open("w", encoding="utf-8") as table:
        for item in items:
            file = place / item.file
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(item.data)
            record = {"file_name": item.file, **shards.label_of(source, item.number), "name": item.name}
            table.write(json.dumps(record, ensure_ascii=False) + "\n")
    features: dict[str, Any] = {}
    if source.label_names is not None:
        features["label"] = {"names": source.label_names, "_type": "ClassLabel"}
    if source.vector_names is not None and source.multi_hot:
        features["labels"] = {"feature": {"names": source.vector_names, "_type": "ClassLabel"}, "_type": "Sequence"}
    elif source.vector_names is not None:
        features["vector"] = {"names": source.vector_names, "feature": {"dtype": "float32", "_type": "Value"}}
    if features:
        info = json.dumps({"features": features}, ensure_ascii=False, indent=2)
        (place / "dataset_info.json").write_text(info + "\n", encoding="utf-8")


def _write_zip(place: Path, source: Source, items: Iterator[Item]) -> None:
    """PNG files on shelves and dataset.json, as dataset_tool writes them."""
    labels: list[tuple[str, Any]] = []
    first: tuple[int, int, str] | None = None
    with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:
        for item in items:
            with Image.open(io.BytesIO(item.data)) as image:
                size = (image.width, image.height)
            first = first or (*size, item.name)
            if size != first[:2]:
                raise ValueError(
                    f"a zip of dataset_tool needs pictures of one size: {first[2]} is {first[1]}x{first[0]}, "
                    f"{item.name} is {size[1]}x{size[0]} (height x width). Prepare them by size=..., or write a folder"
                )
            archive.writestr(zipfile.ZipInfo(item.file), item.data)
            number = source.label(item.number)
            if number is not None:
                labels.append((item.file, number))
            elif source.vectors is not None:
                labels.append((item.file, [float(x) for x in source.vectors[item.number]]))
        content: dict[str, Any] = {"labels": labels or None}
        names = source.label_names or source.vector_names
        if names is not None:
            content["class_names"] = names
        archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(content, ensure_ascii=False))
