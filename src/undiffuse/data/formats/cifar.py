"""CIFAR-10 and CIFAR-100 in their binary form: label bytes, then the planes R, G and B of 32x32 pixels.

CIFAR-10 has one label byte and names in batches.meta.txt; CIFAR-100 has a coarse and a fine one, with names in
coarse_label_names.txt and fine_label_names.txt. The fine labels are taken; labels="coarse" takes the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from undiffuse.data.array_source import ArraySource
from undiffuse.data.formats.base import Reading, choose_part, peek, with_labels
from undiffuse.data.formats.stored import concatenated
from undiffuse.data.sources import Source

_PIXELS = 3 * 32 * 32
_TEN = re.compile(r"(data_batch|train_batch|test_batch)(_\d+)?\.bin", re.IGNORECASE)
_HUNDRED = re.compile(r"(train|test)\.bin", re.IGNORECASE)


@dataclass(frozen=True)
class _Kind:
    title: str
    labels: tuple[str, ...]
    tables: tuple[str, ...]
    classes: tuple[int, ...]


_KINDS = {
    10: _Kind("CIFAR-10 binary", ("label",), ("batches.meta.txt",), (10,)),
    100: _Kind("CIFAR-100 binary", ("coarse", "fine"), ("coarse_label_names.txt", "fine_label_names.txt"), (20, 100)),
}


def recognise(path: Path) -> bool:
    """A batch by its name and size, or a folder of batches."""
    return _kind(path) is not None if path.is_file() else bool(_batches(path))


def _kind(path: Path) -> int | None:
    """10 or 100; None for other files."""
    size = path.stat().st_size
    if not size:
        return None
    if _TEN.fullmatch(path.name) and size % (1 + _PIXELS) == 0:
        return 10
    if _HUNDRED.fullmatch(path.name) and size % (2 + _PIXELS) == 0:
        return 100
    for number, kind in _KINDS.items():
        if any((path.parent / table).is_file() for table in kind.tables) and path.suffix.lower() == ".bin":
            return number if size % (len(kind.labels) + _PIXELS) == 0 else None
    return None


def _batches(folder: Path) -> list[Path]:
    files = [folder / name for name in peek(folder).files if name.lower().endswith(".bin")]
    return sorted((file for file in files if _kind(file) is not None), key=_order)


def _order(file: Path) -> tuple[str, int]:
    digits = re.search(r"(\d+)\.bin$", file.name)
    return re.sub(r"\d+", "", file.name), int(digits[1]) if digits else 0


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of a batch, or of the training batches of a folder."""
    if path.is_file():
        return _one(path, reading)
    parts: dict[str, list[Path]] = {}
    for file in _batches(path):
        parts.setdefault("test" if file.name.lower().startswith("test") else "train", []).append(file)
    counts = {name: sum(_count(file) for file in files) for name, files in parts.items()}
    chosen = choose_part(counts, reading, str(path))
    files = [file for name in chosen for file in parts[name]]
    source = concatenated(
        [_one(file, reading) for file in files], f"CIFAR binary files in {path} ({', '.join(chosen)})"
    )
    source.held_out.update({name: count for name, count in counts.items() if name not in chosen})
    return source


def _count(file: Path) -> int:
    return file.stat().st_size // (len(_KINDS[_kind(file) or 10].labels) + _PIXELS)


def _one(file: Path, reading: Reading) -> Source:
    kind = _KINDS[_kind(file) or 10]
    head = len(kind.labels)
    rows = np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, head + _PIXELS)
    images = rows[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    source: Source = ArraySource(images, where=f"{kind.title} {file}", item_name=file.name)
    source.format = kind.title
    field = reading.field(str(file), kind.labels, (kind.labels[-1],))
    if field is None:
        source.labels_settled = True
        return source
    place = kind.labels.index(field)
    table = file.parent / kind.tables[place]
    names = None
    if table.is_file():
        names = [line.strip() for line in table.read_text("utf-8").splitlines() if line.strip()]
    labels = rows[:, place].astype(np.int64)
    if labels.max(initial=0) >= kind.classes[place]:
        raise ValueError(f"{file}: label {labels.max()} is above the {kind.classes[place]} classes of {kind.title}")
    names = names or [str(k) for k in range(kind.classes[place])]
    return with_labels(
        source, labels, reading, names=names, field=f"the {field} byte" if head > 1 else "the label byte"
    )
