"""Finds pictures by what tables and other folders call them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from undiffuse.data.decoding import IMAGE_SUFFIXES

__all__ = ["FileIndex", "posix", "without_ending"]

_OTHER_SUFFIXES = (".dcm", ".dicom", ".nii", ".nii.gz", ".npy", ".heic", ".heif", ".svs", ".raw", ".fits")
"""Endings that a table may name though the pictures were converted to others."""


_SECOND = (".gz", ".tif", ".tiff", ".fz")
_DOUBLE = (".nii.gz", ".ome.tif", ".ome.tiff", ".fits.gz", ".fits.fz")


def without_ending(name: str) -> str:
    """A path without the ending of its file: "a/b.nii.gz" -> "a/b"."""
    start = name.rfind("/") + 1
    dot = name.rfind(".", start + 1)
    if dot < 0 or dot == len(name) - 1:
        return name
    if name[dot:].lower() in _SECOND:
        double = next((ending for ending in _DOUBLE if name.lower().endswith(ending)), None)
        return name[: -len(double)] if double else name[:dot]
    return name[:dot]


def posix(cell: str) -> str:
    """A path as a table writes it, with slashes and without "./"."""
    text = cell.strip()
    if "\\" in text or "//" in text or text[:1] == "." or "/." in text or text[-1:] == "/":
        return PurePosixPath(text.replace("\\", "/")).as_posix()
    return text


class FileIndex:
    """Finds pictures by what a table calls them: a path, a bare name, either without its ending, or a number."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._exact = {name: i for i, name in enumerate(names)}
        folders = {name.rpartition("/")[0].partition("/")[0] for name in names}
        self.wrap = f"{next(iter(folders))}/" if len(folders) == 1 and "" not in folders else ""

    @cached_property
    def _forms(self) -> dict[str, int]:
        """Other forms of the names; -1 for one that several pictures have."""
        forms: dict[str, int] = {}
        for i, name in enumerate(self._names):
            whole, bare = without_ending(name), name.rpartition("/")[2]
            for form in {name[len(self.wrap) :], whole, whole[len(self.wrap) :], bare, without_ending(bare)}:
                forms[form] = -1 if forms.get(form, i) != i else i
        return forms

    @cached_property
    def _folded(self) -> dict[str, int]:
        """Paths and bare names without regard to case; -1 for one that several pictures have."""
        folded: dict[str, int] = {}
        for i, name in enumerate(self._names):
            for form in {name.casefold(), name[len(self.wrap) :].casefold(), name.rpartition("/")[2].casefold()}:
                folded[form] = -1 if folded.get(form, i) != i else i
        return folded

    @cached_property
    def _numbers(self) -> dict[int, int]:
        """Pictures whose names are numbers, with or without leading zeros; empty if not all are."""
        stems = [without_ending(name.rpartition("/")[2]) for name in self._names]
        numbers = {int(stem): i for i, stem in enumerate(stems) if stem.isdecimal() and len(stem) < 19}
        return numbers if len(numbers) == len(stems) else {}

    def find(self, cell: Any, by_number: bool = True) -> int | None:
        """The number of the picture that a cell names; None if it names none, or several.

        With `by_number`, 7 names "0007.png" where all pictures are named by numbers.
        """
        if isinstance(cell, bool) or not isinstance(cell, (str, int)):
            return None
        if isinstance(cell, int):
            named = self._forms.get(str(cell), -1)
            return named if named >= 0 else self._numbers.get(cell) if by_number else None
        path = posix(cell)
        if path in self._exact:
            return self._exact[path]
        parts = path.split("/")
        for k in range(len(parts)):  # a table may be written from further up
            rest = "/".join(parts[k:])
            found = self._exact.get(rest, self._forms.get(rest, -1) if k == 0 or k + 1 < len(parts) else -1)
            if found >= 0:
                return found
        suffix = PurePosixPath(path).suffix
        if suffix.lower() in IMAGE_SUFFIXES or path.lower().endswith(_OTHER_SUFFIXES):
            found = self._forms.get(without_ending(path), -1)
            for k in range(len(parts)) if found < 0 else ():  # Windows takes names of either case for the same
                if k == 0 or k + 1 < len(parts):
                    found = max(found, self._folded.get("/".join(parts[k:]).casefold(), -1))
            return found if found >= 0 else None
        return self._numbers.get(int(path)) if by_number and path.isdecimal() and len(path) < 19 else None
