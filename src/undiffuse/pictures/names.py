"""File names of samples: `003-Dress_seed0-000017.png` is image 17 of the run with seed 0, class 3 (Dress)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["SampleName", "output_names", "parse_name", "safe", "sample_name"]

_PATTERN = re.compile(r"(?:(\d{3,})(?:-.*)?_)?seed(\d+)-(\d{6,})\.(?:png|tiff|npy)", re.DOTALL)
_PART = re.compile(r"(?P<stem>.*?)(?:\.\w+)?\[(?P<numbers>[\d,]+)\]", re.DOTALL)
RESERVED = frozenset({"grid", "run", "names"})
"""Stems of the other files in a folder of samples."""
_LONGEST = 60  # bytes of a label in a file name; file systems allow 255 for the whole name


@dataclass(frozen=True)
class SampleName:
    """Holds the parts of a sample's file name.

    Attributes:
        label: Class number; None if unconditional.
        seed: Seed of the run.
        index: Number of the image within the run.
    """

    label: int | None
    seed: int
    index: int


def sample_name(
    index: int, seed: int, label: int | None = None, label_name: str | None = None, ending: str = ".png"
) -> str:
    """Returns the file name of one image; names sort by class, then by index."""
    prefix = ""
    if label is not None:
        word = safe(label_name or "")
        prefix = f"{label:03d}-{word}_" if word else f"{label:03d}_"
    return f"{prefix}seed{seed}-{index:06d}{ending}"


def parse_name(name: str) -> SampleName | None:
    """Parses a name made by `sample_name`; returns None for any other file."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    label, seed, index = match.groups()
    return SampleName(None if label is None else int(label), int(seed), int(index))


def output_names(names: Sequence[str], ending: str = ".png") -> list[str]:
    """Names images that are made from other images after these.

    Sub-folders are kept; of a path that leads out of its folder, only the last part is kept. The ending is replaced. If
    two names would become equal, the old ending stays before the new one: "a.jpg" and "a.png" become "a.jpg.png" and
    "a.png.png". Frame 3 of "a.tif" is "a-3". Repeated images get a number.

    Args:
        names: Names of the images, relative to their folder or not.
        ending: The new ending.

    Returns:
        As many distinct relative paths with "/".
    """
    stems, whole = [], []
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            path = PurePosixPath(path.name)
        part = _PART.fullmatch(path.name)
        if part is not None:
            path = path.with_name(f"{PurePosixPath(part['stem']).name or 'image'}-{part['numbers'].replace(',', '-')}")
            stems.append(path.as_posix())
        else:
            stems.append(path.with_suffix("").as_posix())
        whole.append(path.as_posix())
    counts = Counter(stem.lower() for stem in stems)
    out: list[str] = []
    seen: Counter[str] = Counter()
    for stem, path_text in zip(stems, whole, strict=True):
        chosen = stem if counts[stem.lower()] == 1 and stem.lower() not in RESERVED else path_text
        chosen = f"{chosen}-image" if chosen.lower() in RESERVED else chosen
        seen[chosen.lower()] += 1
        repeat = seen[chosen.lower()]
        while repeat > 1 and f"{chosen}-{repeat}".lower() in seen:
            repeat += 1
        text = chosen if repeat == 1 else f"{chosen}-{repeat}"
        seen[text.lower()] += repeat > 1
        out.append(text + ending)
    return out


def safe(text: str) -> str:
    """Makes `text` part of a file name: letters and digits of every script stay, all else becomes single dashes."""
    kept = "".join(
        c if c.isalnum() or unicodedata.category(c)[0] == "M" else "-" for c in unicodedata.normalize("NFC", text)
    )
    word = re.sub("-+", "-", kept).lstrip("-")
    # Cut by bytes, never within a character.
    return word.encode("utf-8", "ignore")[:_LONGEST].decode("utf-8", "ignore").strip("-")
