"""File names of samples: ``003-Dress_seed0-000017.png`` is image 17 of the run with seed 0, class 3 (Dress)."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

__all__ = ["SampleName", "parse_name", "safe", "sample_name"]

_PATTERN = re.compile(r"(?:(\d{3,})(?:-.*)?_)?seed(\d+)-(\d{6,})\.(?:png|tiff|npy)", re.DOTALL)
_LONGEST = 60  # bytes of a label in a file name; file systems allow 255 for the whole


@dataclass(frozen=True)
class SampleName:
    """What a file name says: class number (None when unconditional), seed, and index of the image within the run."""

    label: int | None
    seed: int
    index: int


def sample_name(
    index: int, seed: int, label: int | None = None, label_name: str | None = None, ending: str = ".png"
) -> str:
    """The file name of one image; sorts by class, then by index."""
    prefix = ""
    if label is not None:
        word = safe(label_name or "")
        prefix = f"{label:03d}-{word}_" if word else f"{label:03d}_"
    return f"{prefix}seed{seed}-{index:06d}{ending}"


def parse_name(name: str) -> SampleName | None:
    """What ``sample_name`` put into a file name; None for any other file."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    label, seed, index = match.groups()
    return SampleName(None if label is None else int(label), int(seed), int(index))


def safe(text: str) -> str:
    """``text`` as part of a file name: letters and digits of every script stay, all else becomes single dashes."""
    kept = "".join(
        c if c.isalnum() or unicodedata.category(c)[0] == "M" else "-" for c in unicodedata.normalize("NFC", text)
    )
    word = re.sub("-+", "-", kept).lstrip("-")
    # Cut by bytes, never within a character.
    return word.encode("utf-8", "ignore")[:_LONGEST].decode("utf-8", "ignore").strip("-")
