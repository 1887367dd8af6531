"""Names of very many files as bytes: a million of them take the room of their letters, and may lie in a mapped file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Names", "Runs"]

_BLOCK = 1 << 14


class Runs:
    """Consecutive names of one folder.

    Attributes:
        folders: [R], the folder of each run, "" for the top.
        starts: int64 [R + 1], the number of the first name of each run, and at the end the number of names.
    """

    def __init__(self, folders: Sequence[str], starts: NDArray[np.int64]) -> None:
        self.folders, self.starts = folders, starts

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many names each run has, int64 [R]."""
        return np.diff(self.starts)


class Names(Sequence[str]):
    """Texts in one array of bytes, as a sequence.

    Args:
        text: uint8; the names in UTF-8, each ended by a zero byte.
        ends: int64 [N], where each name ends, its zero byte included.
        runs: The folders of the names, if they are known.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64], runs: Runs | None = None) -> None:
        self.text, self.ends, self._runs = text, ends, runs
        self._bytes = memoryview(text)  # type: ignore[arg-type]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Names in an array; those that are in one already stay there."""
        if isinstance(names, Names):
            return names
        coded = [name.encode("utf-8", "surrogateescape") for name in names]
        if any(b"\0" in name for name in coded):
            raise ValueError("a name contains a zero byte")
        ends = np.cumsum(np.fromiter((len(name) + 1 for name in coded), np.int64, len(coded)), dtype=np.int64)
        return cls(np.frombuffer(b"\0".join([*coded, b""]) if coded else b"", dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            first, last, step = i.indices(len(self))
            return self._block(first, max(first, last)) if step == 1 else [self[k] for k in range(first, last, step)]
        k = int(i)
        k += len(self) if k < 0 else 0
        if not 0 <= k < len(self):
            raise IndexError(f"name {i} of {len(self)}")
        begin = int(self.ends[k - 1]) if k else 0
        return str(self._bytes[begin : int(self.ends[k]) - 1], "utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            yield from self._block(first, min(first + _BLOCK, len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            same = len(self.text) == len(other.text) and np.array_equal(self.ends, other.ends)
            return same and bool(np.array_equal(self.text, other.text))
        return isinstance(other, (list, tuple)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({self[:3]}{' and more' if len(self) > 3 else ''})"

    def __getstate__(self) -> dict[str, Any]:
        return {"text": np.array(self.text), "ends": np.array(self.ends), "_runs": self._runs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["text"], state["ends"], state["_runs"])  # type: ignore[misc]

    def _block(self, first: int, last: int) -> list[str]:
        if last <= first:
            return []
        begin, end = (int(self.ends[first - 1]) if first else 0), int(self.ends[last - 1])
        return str(self._bytes[begin : end - 1], "utf-8", "surrogateescape").split("\0")

    def take(self, numbers: Sequence[int] | NDArray[np.int64]) -> Names:
        """The names of the given numbers, in that order."""
        chosen = np.asarray(numbers, dtype=np.int64)
        if len(chosen) == len(self) and np.array_equal(chosen, np.arange(len(self))):
            return self
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64) if len(self) else np.zeros(0, np.int64)
        lengths = np.asarray(self.ends)[chosen] - starts[chosen]
        ends = np.cumsum(lengths, dtype=np.int64)
        text = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
        for first in range(0, len(chosen), _BLOCK):
            part = slice(first, first + _BLOCK)
            before = int(ends[first - 1]) if first else 0
            moved = np.repeat(starts[chosen[part]] - (ends[part] - lengths[part]), lengths[part])
            places = np.arange(before, before + len(moved)) + moved
            text[before : before + len(moved)] = self.text[places]
        return Names(text, ends)

    @cached_property
    def runs(self) -> Runs:
        """The folders of the names."""
        if self._runs is not None:
            return self._runs
        folders: list[str] = []
        starts: list[int] = []
        for i, name in enumerate(self):
            folder = name.rpartition("/")[0]
            if not folders or folder != folders[-1]:
                folders.append(folder)
                starts.append(i)
        return Runs(folders, np.array([*starts, len(self)], dtype=np.int64))

    def arrays(self, prefix: str = "names") -> dict[str, NDArray[Any]]:
        """The names as arrays for an npz file."""
        runs = self.runs
        folders = Names.of(runs.folders)
        return {
            f"{prefix}.text": self.text, f"{prefix}.ends": self.ends, f"{prefix}.starts": runs.starts,
            f"{prefix}.folders": folders.text, f"{prefix}.folder_ends": folders.ends,
        }  # fmt: skip

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str = "names") -> Names:
        """The inverse of `arrays`."""
        folders = cls(arrays[f"{prefix}.folders"], arrays[f"{prefix}.folder_ends"])
        return cls(arrays[f"{prefix}.text"], arrays[f"{prefix}.ends"], Runs(list(folders), arrays[f"{prefix}.starts"]))
