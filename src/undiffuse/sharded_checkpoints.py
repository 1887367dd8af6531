"""Checkpoints of sharded runs: a folder with the rows of each process in a safetensors file, and manifest.json.

    checkpoints/0000123456.sharded/
        shard-00001-model-00001-of-00001.safetensors    rows that rank 0 keeps, and what is not split
        shard-00002-model-00001-of-00001.safetensors    rows that rank 1 keeps
        manifest.json                                   the manifest, with size and sha256 of every file

Tensors have the names that they have in a file (see `undiffuse.checkpoints`). Where their rows begin is in the headers,
as torch.distributed.checkpoint writes it. The folder is written under a temporary name and renamed when every process
has written its file, so a folder of the final name is complete, and of one moment.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from undiffuse.util.files import atomic_file, remove, sync
from undiffuse.util.limits import check_header

__all__ = ["MANIFEST", "SUFFIX", "ShardedTensors", "begin", "complete", "is_sharded_folder", "note_file", "verify"]

SUFFIX = ".sharded"
MANIFEST = "manifest.json"
_OFFSETS = "DCP_SHARDING_INFO"
_PAUSE = 0.02  # seconds between two looks for the files of the others


def is_sharded_folder(path: Path | str) -> bool:
    """Returns whether a path is the folder of a sharded checkpoint, complete or damaged."""
    return Path(path).suffix == SUFFIX and Path(path).is_dir()


class ShardedTensors(Mapping[str, Tensor]):
    """The whole tensors of a folder, each put together when it is looked up.

    Args:
        folder: The folder.
        keep: Which names belong to the mapping; None for all.

    Raises:
        ValueError: A file cannot be read, or the rows of a tensor have gaps.
    """

    def __init__(self, folder: Path, keep: Callable[[str], bool] | None = None) -> None:
        self._folder = folder
        self._parts: dict[str, list[tuple[Path, int]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._rows: dict[str, int] = {}
        for path in sorted(folder.glob("*.safetensors")):
            check_header(path)
            try:
                with safetensors.safe_open(str(path), framework="pt") as file:
                    offsets = json.loads((file.metadata() or {}).get(_OFFSETS, "{}"))
                    for name in file.keys():  # noqa: SIM118
                        if keep is None or keep(name):
                            start = [int(n) for n in offsets[name]["saved_offsets"]]
                            self._add(name, path, start, file.get_slice(name).get_shape())
            except (
                safetensors.SafetensorError, OSError, RuntimeError, LookupError, TypeError, AttributeError,
                ArithmeticError,
            ) as error:  # fmt: skip
                raise ValueError(f"{path} cannot be read ({error}); it may be truncated") from error
        for name, parts in self._parts.items():
            parts.sort(key=lambda part: part[1])
            if self._shapes[name] and self._rows[name] != self._shapes[name][0]:
                raise ValueError(f"{folder} lacks rows of {name}")

    def _add(self, name: str, path: Path, start: list[int], shape: list[int]) -> None:
        known = self._shapes.get(name)
        first = start[0] if start else 0
        if len(start) != len(shape) or any(start[1:]) or (known and (not shape or known[1:] != tuple(shape[1:]))):
            raise ValueError(f"{path}: the rows of {name} do not fit those in other files")
        self._parts.setdefault(name, []).append((path, first))
        if shape:
            self._shapes[name] = (max(known[0] if known else 0, first + shape[0]), *shape[1:])
            self._rows[name] = self._rows.get(name, 0) + shape[0]
        else:
            self._shapes[name] = ()

    def __getitem__(self, name: str) -> Tensor:
        pieces = []
        for path, _ in self._parts[name]:
            with safetensors.safe_open(str(path), framework="pt") as file:
                pieces.append(file.get_tensor(name))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, from the headers."""
        return self._shapes[name]

    def count(self, prefix: str) -> int:
        """Returns how many numbers the tensors have whose names begin with `prefix`."""
        return sum(math.prod(shape) for name, shape in self._shapes.items() if name.startswith(prefix))


def temporary_of(final: Path) -> Path:
    """Returns the folder in which a checkpoint is made, the same in every process."""
    return final.with_name(f".{final.name}.tmp")


def begin(final: Path) -> Path:
    """Makes the empty folder in which all processes write, and returns it. The main process calls this.

    Raises:
        OSError: It cannot be made, or the checkpoint exists.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists already")
    temporary = temporary_of(final)
    remove(temporary)
    temporary.mkdir(parents=True)
    return temporary


def note_file(temporary: Path, rank: int, path: Path | None) -> None:
    """Says that a process has written its file, with the file's size and sha256.

    Raises:
        OSError: It cannot be written.
    """
    about = {} if path is None else {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}}
    with atomic_file(temporary / f"{rank}.json") as file:
        file.write(json.dumps(about).encode())


def complete(final: Path, processes: int, seal: Callable[[Mapping[str, Any]], str], lost: Callable[[], bool]) -> None:
    """Waits until every process has written its file, and gives the folder its final name.

    Args:
        final: The folder to be.
        processes: How many there are.
        seal: Returns the text of the manifest, given what it says of the files.
        lost: Whether another process has died.

    Raises:
        OSError: A process died before it had written its file, or the folder cannot be written.
    """
    temporary = temporary_of(final)
    notes = [temporary / f"{rank}.json" for rank in range(processes)]
    while not all(note.is_file() for note in notes):
        if lost():
            raise OSError("another process ended before it had written its part")
        if not temporary.is_dir():
            raise OSError(f"{temporary} was deleted")
        time.sleep(_PAUSE)
    files: dict[str, Any] = {}
    for note in notes:
        files |= json.loads(note.read_text(encoding="utf-8"))
    with atomic_file(temporary / MANIFEST) as file:
        file.write(seal(files).encode())
    for note in notes:
        note.unlink()
    sync(temporary)
    os.rename(temporary, final)
    sync(final.parent)


def verify(folder: Path, files: Any) -> str | None:
    """Compares the files of a folder with what its manifest says of them.

    Returns:
        What is damaged; None if everything is as it was written.
    """
    if not isinstance(files, dict) or not files:
        return "its manifest names no files"
    strange = {path.name for path in folder.glob("*.safetensors")} - set(files)
    if strange:
        return f"it has a file {min(strange)}, unlike its manifest"

    def problem(name: str) -> str | None:
        about, path = files[name], folder / name
        if Path(name).name != name or not isinstance(about, dict):
            return f"its manifest names a file {name!r}"
        try:
            if path.stat().st_size != about.get("bytes"):
                return f"{name} has {path.stat().st_size:,} bytes, the manifest says {about.get('bytes')!r}"
            return None if _sha256(path) == about.get("sha256") else f"{name} has another hash than its manifest says"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"

    with ThreadPoolExecutor(max_workers=4) as pool:
        return next((found for found in pool.map(problem, sorted(files)) if found is not None), None)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
