"""Resumable stores: the results of one job, numbered from 0 and written piece by piece.

Every store follows the same four steps. It *claims* a place for the settings of a job and refuses a place that belongs
to a job with other settings (it says which differ). It lists what is *missing*. It *writes* pieces, each of them whole
or absent, so that a killed job loses at most the piece it was writing. It *finishes*: the pieces become the final form.
"""

from __future__ import annotations

import json
import os
import secrets
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.util.files import atomic_file, remove_leftovers
from undiffuse.util.limits import open_npz
from undiffuse.util.records import check_record, difference_text, differences, read_json
from undiffuse.util.text import join_names

__all__ = ["BROKEN_NPZ", "Parts", "RowStore", "Store", "whole_numbers"]

BROKEN_NPZ = (OSError, EOFError, KeyError, ValueError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises for an npz file that is damaged, cut off or something else."""


class Store(ABC):
    """The results 0, 1, 2, ... of one job in a place of their own.

    Args:
        place: The file or folder that the results go to.
        settings: Everything that decides the results, as a JSON-ready record. Only a job with equal settings resumes.
        what: What messages call the results, for example "samples".
    """

    def __init__(self, place: str | os.PathLike[str], settings: Mapping[str, Any], what: str) -> None:
        self.place, self.settings, self.what = Path(place), check_record(settings), what

    @abstractmethod
    def done(self) -> Collection[int]:
        """The numbers of the results that are whole on disk."""

    def missing(self, total: int) -> list[int]:
        """Lists the results that are still to be made.

        Args:
            total: Number of results of the whole job.

        Returns:
            The numbers in 0..total-1 that are not on disk, ascending.
        """
        if total < 0:
            raise ValueError(f"total={total}: expected the number of {self.what} of the whole job, 0 or more.")
        done = self.done()
        return [number for number in range(total) if number not in done]

    def require(self, total: int) -> None:
        """Raises ValueError unless all of the `total` >= 1 results are on disk."""
        absent = self.missing(total)
        if absent or total < 1:
            some = ", ".join(str(number) for number in absent[:5]) + (", ..." if len(absent) > 5 else "")
            raise ValueError(
                f"{len(absent)} of {total} {self.what} are missing ({some or 'nothing was written'}): "
                f"make those of missing({total}) first."
            )

    def check(self, theirs: Mapping[str, Any], place: Path | None = None) -> None:
        """Raises ValueError, which lists the differences, unless `theirs` are the settings of this job."""
        found = differences(theirs, self.settings)
        if found:
            raise ValueError(
                f"{place or self.place} holds {self.what} made with other settings:\n{difference_text(found)}\n"
                "Choose another place, repeat the first settings to resume that job, or overwrite it."
            )

    def claim(self, file: Path, unclaimed: bool = False) -> None:
        """Marks the place as this job's by a JSON file, or checks that the file there says the same.

        Args:
            file: The file with the settings.
            unclaimed: Whether results are there already although the file may not be; they belong to nobody.
        """
        if file.exists():
            try:
                theirs = read_json(file.read_bytes(), str(file))
            except ValueError as error:
                raise ValueError(f"{error}: restore it, or choose another place.") from error
            self.check(theirs)
            return
        if unclaimed:
            raise ValueError(
                f"{self.place} holds {self.what} but no {file.name} that says how they were made: choose another place."
            )
        with atomic_file(file, overwrite=True) as out:
            out.write((json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


class Parts:
    """Batches of numbered rows as small npz files in a folder.

    A part holds "indices" int64 [B] and arrays with one row for each of them. Rows of a damaged part do not count.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, indices: np.ndarray, **arrays: np.ndarray | None) -> None:
        """Writes one batch; arrays that are None are left out."""
        target = self.folder / f"part-{int(indices.min()):09d}-{secrets.token_hex(4)}.npz"
        with atomic_file(target) as file:
            kept = {name: array for name, array in arrays.items() if array is not None}
            np.savez(file, indices=indices, **kept)  # type: ignore[arg-type]

    def found(self) -> dict[int, Path]:
        """The part that holds each row, by the row's number."""
        return {number: part for part in self._files() for number in self._indices(part)}

    def rows(self, order: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the arrays of each row of `order`, with few files open and few batches in memory."""

        @lru_cache(maxsize=16)  # processes that share a job interleave their numbers
        def load(path: Path) -> tuple[dict[int, int], dict[str, np.ndarray]]:
            try:
                with open_npz(path) as part:
                    arrays = {name: part[name] for name in part.files}
            except BROKEN_NPZ as error:
                raise ValueError(f"{path} is damaged ({error}): delete it, and its rows are made again.") from error
            return {int(number): k for k, number in enumerate(arrays.pop("indices"))}, arrays

        found = self.found()
        for number in order:
            where, arrays = load(found[number])
            yield {name: array[where[number]] for name, array in arrays.items()}

    def remove(self, below: int) -> None:
        """Removes the parts whose rows are all below a number, and what is left of killed writes."""
        for part in self._files():
            if all(number < below for number in self._indices(part)):
                part.unlink()
        remove_leftovers(self.folder)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def clear(self) -> None:
        """Removes all files but hidden ones, such as the lock of a job."""
        for file in self.folder.glob("[!.]*"):
            file.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.npz"))

    def _indices(self, part: Path) -> list[int]:
        try:
            with open_npz(part) as arrays:
                return [int(number) for number in arrays["indices"]]
        except BROKEN_NPZ:
            return []


class RowStore(Store):
    """Rows of numbers as lines of JSON: the settings first, then one line for each finished batch.

    A row is a JSON object whose entry "images" lists the numbers it covers. Several processes may share a job: number 0
    opens the store first and keeps the file, each of the others writes a file of its own beside it (rows.1.jsonl), and
    `merge` puts them together, as does the next process that opens the store.

    Args:
        file: The file of JSON lines.
        settings: See `Store`.
        what: See `Store`.
        results: Files that are made of the rows. If they exist without rows, the place is refused.
        overwrite: Whether to begin anew; the rows and the files in `results` of an earlier job are removed.
        process: Number of this process among those that share the job.

    Raises:
        ValueError: The place belongs to another job, or nothing says to which.
    """

    def __init__(
        self,
        file: Path,
        settings: Mapping[str, Any],
        what: str,
        results: Sequence[Path] = (),
        overwrite: bool = False,
        process: int = 0,
    ) -> None:
        super().__init__(file.parent, settings, what)
        self.file, self._process = file, process
        self.rows: list[dict[str, Any]] = []
        if process:
            self.read()
            return
        lines = [] if overwrite else _json_lines(file)
        strangers = [path.name for path in (*results, file) if path.exists()]
        if strangers and not (lines or overwrite):
            raise ValueError(
                f"{self.place} holds {join_names(strangers)} without a record of how it was made, so it cannot be "
                "resumed: choose another place, or overwrite it."
            )
        if lines:
            self.check(lines[0])
        for path in [*results, *self._beside()] if overwrite else ():
            path.unlink(missing_ok=True)
        self.rows = lines[1:]
        self.merge()

    def done(self) -> set[int]:
        """See `Store.done`."""
        return {number for row in self.rows for number in row["images"]}

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row and waits until it is on disk."""
        self.rows.append(row)
        target = self.file.with_name(f"{self.file.stem}.{self._process}{self.file.suffix}")
        target = target if self._process else self.file
        lines = [row] if target.exists() else [self.settings, row]
        with open(target, "a", encoding="utf-8") as out:
            out.write("".join(map(_line, lines)))
            out.flush()
            os.fsync(out.fileno())

    def read(self) -> None:
        """Reads the rows that are in the file now, in the order of their numbers."""
        self.rows = sorted(_json_lines(self.file)[1:], key=lambda row: row["images"])

    def merge(self) -> None:
        """Writes the rows of all processes into the file, without a last line that a kill cut short."""
        done = self.done()
        for path in self._beside():
            first, *others = _json_lines(path) or [{}]
            fresh = [row for row in others if first == self.settings and not done.issuperset(row["images"])]
            self.rows += fresh
            done.update(number for row in fresh for number in row["images"])
        self.rows.sort(key=lambda row: row["images"])
        with atomic_file(self.file, overwrite=True) as out:
            out.write("".join(map(_line, [self.settings, *self.rows])).encode())
        for path in self._beside():
            path.unlink(missing_ok=True)

    def _beside(self) -> list[Path]:
        """The files of the other processes."""
        found = self.file.parent.glob(f"{self.file.stem}.*{self.file.suffix}")
        return [path for path in found if path.stem.rpartition(".")[2].isdecimal()]


def whole_numbers(values: Any, name: str, count: int) -> np.ndarray:
    """Checks numbers that go with the rows of a batch.

    Args:
        values: A sequence, array or tensor of whole numbers.
        name: Name of the argument, for messages.
        count: Number of rows.

    Returns:
        The numbers as int64 [count].

    Raises:
        ValueError: They are not `count` whole numbers of 0 or more.
    """
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iu" or (array < 0).any():
        raise ValueError(
            f"{name} must be {count} whole numbers of 0 or more, one for each image, "
            f"got {array.dtype} of shape {list(array.shape)}."
        )
    return array.astype(np.int64)


_CHECKSUM = "crc32"


def _line(values: Mapping[str, Any]) -> str:
    """A line of JSON with a checksum of its values."""
    return json.dumps({**values, _CHECKSUM: _checksum(values)}) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The settings of a store and its rows that are whole; none without a file or if the settings are damaged.

    Files of earlier versions have no checksums.
    """
    out: list[dict[str, Any]] = []
    for line in path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else []:
        try:
            values = read_json(line, str(path))
            whole = _CHECKSUM not in values or values.pop(_CHECKSUM) == _checksum(values)
        except ValueError:
            whole, values = False, {}
        if whole and (not out or _is_row(values)):
            out.append(values)
        elif not out:
            break
    return out


def _is_row(values: Mapping[str, Any]) -> bool:
    """Whether a line says which images it is of."""
    numbers = values.get("images")
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)
