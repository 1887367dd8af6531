"""Output folders hold what one command wrote and nothing else: a folder with files of somebody else is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

__all__ = ["claim_output", "foreign_files"]

_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx"}
_SHOWN = 3


def foreign_files(
    folder: str | os.PathLike[str],
    markers: Collection[str] = ("run.json",),
    ours: Callable[[str], bool] | None = None,
    limit: int = _SHOWN + 1,
) -> list[str]:
    """Files in a folder that were not written by this library, as paths relative to it; [] if it is free or ours.

    Args:
        folder: An output folder, which need not exist.
        markers: Files that only a run of ours writes: a folder that holds one is ours with all that is in it.
        ours: Whether a file of this name is ours, for folders without a marker.
        limit: How many files are looked for. Hidden files and those that systems write do not count.
    """
    place = Path(folder)
    if not place.is_dir() or any((place / marker).exists() for marker in markers):
        return []
    found: list[str] = []
    for file in _walk(place, set(markers)):
        relative = file.relative_to(place).as_posix()
        if ours is None or not ours(relative):
            found.append(relative)
        if len(found) >= limit:
            break
    # Another process of the same run may have begun meanwhile.
    return [] if any((place / marker).exists() for marker in markers) else sorted(found)


def claim_output(
    folder: str | os.PathLike[str],
    markers: Collection[str] = ("run.json",),
    ours: Callable[[str], bool] | None = None,
) -> Path:
    """Makes an output folder, or checks that one that is there holds nothing of somebody else.

    Args:
        folder: The folder.
        markers: As for `foreign_files`.
        ours: As for `foreign_files`.

    Returns:
        The folder, which exists.

    Raises:
        ValueError: It is a file.
        FileExistsError: It holds files that were not written here. Up to three are named, and a sub-folder is
            suggested.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file: give a folder for the output.")
    found = foreign_files(place, markers, ours)
    if found:
        named = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise FileExistsError(
            f"{place} holds files that were not written by this command ({named}), and its output would lie among "
            f"them: give an empty folder or a new one, for example {place / 'output'}."
        )
    place.mkdir(parents=True, exist_ok=True)
    return place


def _walk(folder: Path, markers: set[str]) -> Iterator[Path]:
    """Files at any depth, without hidden ones and without sub-folders that are outputs of runs of ours."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                continue
            if not entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
            elif not any(os.path.exists(os.path.join(entry.path, marker)) for marker in markers):
                yield from _walk(Path(entry.path), markers)
