"""Where pictures come from: folders, zips and arrays behind one small interface.

A `Source` answers what is stored under number i, exactly as stored; it knows nothing of sizes, crops or seeds. The
order is the sorted order of names, so it is the same on every machine.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from undiffuse.data import index
from undiffuse.data.containers import kept_hash
from undiffuse.data.decoding import MAX_PIXELS, Picture, PictureInfo, decode, describe, read_header
from undiffuse.data.names import Names
from undiffuse.util.text import one_line

if TYPE_CHECKING:
    from undiffuse.data.conditions import PictureConditions

__all__ = [
    "BrokenImageError",
    "Excluded",
    "FileSource",
    "FolderSource",
    "Source",
    "SubsetSource",
]


class BrokenImageError(ValueError):
    """A stored picture that cannot be read; `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read the image {one_line(name)}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.reason)


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """An item that was left out when the source was opened, and why."""

    name: str
    reason: str


class Source(ABC):
    """Pictures by number, with optional labels.

    Attributes:
        description: one line for people ("folder NAME: 120 images, 3 classes").
        label_names: the class table, label k is called ``label_names[k]``; None without labels.
        excluded: what was left out on opening because it was broken, tiny or unlabelled.
        containers: files or folders that the images lie in, where an image is no file of its own.
        in_memory: True where `image` costs next to nothing, so that no workers are needed.
        format: the name of the recognised format ("WebDataset shards"); empty for arrays in memory.
        notes: sentences that say what was taken and from where.
        left_out: items that were not taken, by kind: {"files ending in .txt": 8}.
        held_out: images of the parts of the data set that were not opened: {"test": 10000}.
        vectors: float32 [N, D], a condition vector for every picture; None without.
        remarks: what a user should know before a run, a sentence each.
        labels_settled: True where the format knows the labels, or that there are none; False where names may tell.
        found_range: the smallest and largest value that such pixels were seen to have.
        vector_names: the D names of the vectors' columns; None where the format does not name them.
        value_range: the values of black and white, for pictures that are not 8-bit; None where they are not declared.
        undeclared: what is known of pixel values whose black and white are not declared ("float32 values -3..900").
        channel_names: what the file calls its channels; empty where it does not name them.
        augments: True where `draw` augments at random.
        conditions: what models may be conditioned on besides the class; None without.
    """

    containers: tuple[str, ...] = ()
    in_memory = False
    augments = False
    labels_settled = False
    remarks: tuple[str, ...] = ()
    undeclared = ""
    channel_names: tuple[str, ...] = ()
    found_range: tuple[float, float] | None = None
    format: str
    vectors: NDArray[np.float32] | None
    vector_names: list[str] | None
    value_range: tuple[float, float] | None
    multi_hot = False
    conditions: PictureConditions | None = None

    def __init__(
        self,
        where: str,
        labels: NDArray[np.int64] | None = None,
        label_names: Sequence[str] | None = None,
        excluded: Sequence[Excluded] = (),
    ) -> None:
        if (labels is None) != (label_names is None):
            raise ValueError("labels and label_names come together: give both or none")
        if labels is not None and label_names is not None and labels.size:  # noqa: SIM102
            if labels.min() < 0 or labels.max() >= len(label_names):
                raise ValueError(f"labels must lie in 0..{len(label_names) - 1}, got {labels.min()}..{labels.max()}")
        self.where = where
        self.labels = None if labels is None else np.ascontiguousarray(labels, dtype=np.int64)
        self.label_names = None if label_names is None else list(label_names)
        self.excluded = list(excluded)
        self.format, self.notes = "", []  # type: str, list[str]
        self.left_out: dict[str, int] = {}
        self.held_out: dict[str, int] = {}
        self.vectors, self.vector_names, self.value_range = None, None, None

    def inherit(self, other: Source, keep: Sequence[int] | NDArray[np.int64] | None = None) -> None:
        """Take over what is known of another source, of which this one holds the pictures `keep` (default: all)."""
        self.format, self.notes, self.value_range = other.format, list(other.notes), other.value_range
        self.remarks = other.remarks
        self.undeclared, self.found_range = other.undeclared, other.found_range
        self.channel_names = other.channel_names
        self.left_out, self.held_out = dict(other.left_out), dict(other.held_out)
        self.vector_names, self.labels_settled = other.vector_names, other.labels_settled
        self.multi_hot = other.multi_hot
        if other.vectors is not None:
            self.vectors = other.vectors if keep is None else other.vectors[np.asarray(keep, dtype=np.int64)]
        if other.conditions is not None:
            self.conditions = other.conditions if keep is None else other.conditions.take(keep)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """The name of picture i: a path relative to the source, or ``FILE[i]``."""

    @abstractmethod
    def image(self, i: int) -> Picture:
        """Picture i exactly as stored: a loaded PIL image, or uint8 [H, W] or [H, W, C].

        Raises:
            BrokenImageError: it cannot be decoded.
            OSError: the system, not the file, is at fault (too many open files, no permission).
        """

    def draw(self, i: int, seed: int) -> Picture:
        """Picture i for training; a source that augments at random draws from `seed` alone. By default `image`."""
        return self.image(i)

    def encoded(self, i: int) -> bytes | None:
        """Picture i as the bytes of an image file; None where it is not stored as one."""
        return None

    def content_hash(self) -> bytes:
        """SHA-256 of what is stored, without labels; kept in the cache folder where all of it must be read for it."""
        if not self.containers or isinstance(self, FileSource):
            return self._content_hash()
        what = f"{type(self).__name__}\0{self.where}\0{len(self)}\0{self.name(0) if len(self) else ''}"
        return kept_hash(self.containers, what, self._content_hash)

    @abstractmethod
    def _content_hash(self) -> bytes:
        """SHA-256 of what is stored (names and sizes, or pixels), without labels."""

    def label(self, i: int) -> int | None:
        """The label of picture i, an index into `label_names`; None without labels."""
        return None if self.labels is None else int(self.labels[i])

    def stored_size(self, i: int) -> tuple[int, int]:
        """(width, height) of picture i, from its header where it has one.

        Raises:
            BrokenImageError: there is no readable header.
        """
        found = self.info(i)
        return found.width, found.height

    def info(self, i: int) -> PictureInfo:
        """What picture i is, from its header where it has one.

        Raises:
            BrokenImageError: there is no readable header.
        """
        return describe(self.image(i))

    @property
    def description(self) -> str:
        text = f"{self.where}: {len(self):,} image{'s' if len(self) != 1 else ''}"
        if self.label_names is not None:
            text += f", {len(self.label_names)} class{'es' if len(self.label_names) != 1 else ''}"
        else:
            text += ", no labels" if self.vectors is None else f", vectors of {self.vectors.shape[1]} numbers"
        if self.excluded:
            text += f", {len(self.excluded)} left out"
        return text

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over names, sizes in bytes and labels, or over pixels and labels for arrays.

        It does not depend on where the data lie: a folder, its copy and its zip have the same fingerprint.
        """
        sha = hashlib.sha256(self.content_hash())
        if self.labels is not None and self.label_names is not None:
            sha.update("\0".join(self.label_names).encode())
            sha.update(self.labels.astype("<i8").tobytes())
        if self.vectors is not None:
            sha.update(f"vectors {list(self.vectors.shape)}".encode())
            sha.update(self.vectors.astype("<f4").tobytes())
        if self.conditions:
            sha.update(self.conditions.digest)
        return sha.hexdigest()

    def class_counts(self) -> dict[str, int]:
        """How many images each class has, in the order of the table; empty without labels."""
        if self.labels is None or self.label_names is None:
            return {}
        counts = np.bincount(self.labels, minlength=len(self.label_names))
        return {name: int(count) for name, count in zip(self.label_names, counts, strict=True)}

    def subset(self, indices: Sequence[int] | NDArray[np.int64], excluded: Sequence[Excluded] = ()) -> Source:
        """The pictures of the given numbers, in the given order, under the same class table."""
        return SubsetSource(self, np.asarray(indices, dtype=np.int64), excluded)


class FileSource(Source):
    """Encoded image files, whatever holds them.

    Attributes:
        names: of the files.
        sizes: of the files, in bytes, int64 [N].
        held: names of files that belong to parts of the data set that were not opened.
        max_pixels: larger pictures are refused as broken.
        table: the label table that was used, if any.
        wanted_part: the part of the data set to open, where the files do not tell parts but a table may.
    """

    held: Sequence[str] = ()
    table: str | None = None
    wanted_part: str | None = None
    max_pixels = MAX_PIXELS

    def __init__(
        self,
        where: str,
        names: Sequence[str],
        sizes: Sequence[int] | NDArray[np.int64],
        labels: NDArray[np.int64] | None = None,
        label_names: Sequence[str] | None = None,
        excluded: Sequence[Excluded] = (),
    ) -> None:
        super().__init__(where, labels, label_names, excluded)
        self.names, self.sizes = Names.of(names), np.asarray(sizes, dtype=np.int64)

    @cached_property
    def held_names(self) -> Set[str]:
        """`held` as a set."""
        return frozenset(self.held)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    @abstractmethod
    def open(self, i: int) -> IO[bytes]:
        """File i, open for reading."""

    def labelled(
        self,
        keep: Sequence[int] | NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        label_names: Sequence[str] | None,
        excluded: Sequence[Excluded],
    ) -> FileSource:
        """The files of the given numbers with the given labels [len(keep)]; `excluded` names the others."""
        other = copy.copy(self)
        FileSource.__init__(
            other,
            self.where,
            self.names.take(keep),
            self.sizes if len(keep) == len(self) else self.sizes[np.asarray(keep, dtype=np.int64)],
            labels,
            label_names,
            [*self.excluded, *excluded],
        )
        other.inherit(self, keep)
        other.__dict__.pop("fingerprint", None)
        other._keep(keep)
        return other

    def _keep(self, keep: Sequence[int] | NDArray[np.int64]) -> None:
        """Thin out what a subclass stores beside names and sizes."""

    def encoded(self, i: int) -> bytes:
        with self.open(i) as file:
            return file.read()

    def image(self, i: int) -> Picture:
        try:
            with self.open(i) as file:
                return decode(io.BytesIO(file.read()), self.max_pixels)
        except Exception as error:
            raise _blame(self.names[i], int(self.sizes[i]), error) from error

    def info(self, i: int) -> PictureInfo:
        try:
            with self.open(i) as file:
                return read_header(file, self.max_pixels)
        except Exception as error:
            raise _blame(self.names[i], int(self.sizes[i]), error) from error

    def _content_hash(self) -> bytes:
        def build() -> index.Arrays:
            sha = hashlib.sha256()
            for name, size in zip(self.names, self.sizes, strict=True):
                sha.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
            return {"sha256": np.frombuffer(sha.digest(), dtype=np.uint8)}

        if len(self) < index.FROM:
            return build()["sha256"].tobytes()
        # Hashing the arrays as they are is many times faster than name by name.
        quick = hashlib.sha256(self.names.text.data)
        for array in (self.names.ends, self.sizes):
            quick.update(np.ascontiguousarray(array).data)
        return index.cached("hashes", quick.hexdigest(), build)["sha256"].tobytes()


def _blame(name: str, size: int, error: Exception) -> Exception:
    """The error for a file that could not be read: what the decoder says is the file's fault, system errors are not."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return BrokenImageError(name, "it is a link to itself")
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return OSError(error.errno, f"cannot read the image {one_line(name)}: {error.strerror}")
    if size == 0:
        return BrokenImageError(name, "the file is empty")
    if isinstance(error, FileNotFoundError):
        return BrokenImageError(name, "the file has disappeared")
    if isinstance(error, UnidentifiedImageError):
        return BrokenImageError(name, "this is not an image file that can be decoded")
    text = str(error) or type(error).__name__
    plain = isinstance(error, OSError) or type(error) is ValueError
    return BrokenImageError(name, text if plain else f"{type(error).__name__}: {text}")


class FolderSource(FileSource):
    """Image files under a folder; `names` are POSIX paths relative to it."""

    def __init__(
        self, root: str | Path, names: Sequence[str], sizes: Sequence[int] | NDArray[np.int64], **keywords: Any
    ) -> None:
        super().__init__(f"folder {root}", names, sizes, **keywords)
        self.root = Path(root)

    def open(self, i: int) -> IO[bytes]:
        return open(os.path.join(self.root, self.names[i]), "rb")


class SubsetSource(Source):
    """Some pictures of another source (a validation split, a source without its broken files)."""

    def __init__(self, parent: Source, indices: NDArray[np.int64], excluded: Sequence[Excluded] = ()) -> None:
        labels = None if parent.labels is None else parent.labels[indices]
        super().__init__(parent.where, labels, parent.label_names, [*parent.excluded, *excluded])
        self.parent, self.indices, self.in_memory = parent, indices, parent.in_memory
        self.inherit(parent, indices)
        self.augments = parent.augments

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, i: int) -> str:
        return self.parent.name(int(self.indices[i]))

    def encoded(self, i: int) -> bytes | None:
        return self.parent.encoded(int(self.indices[i]))

    def image(self, i: int) -> Picture:
        return self.parent.image(int(self.indices[i]))

    def draw(self, i: int, seed: int) -> Picture:
        return self.parent.draw(int(self.indices[i]), seed)

    def stored_size(self, i: int) -> tuple[int, int]:
        return self.parent.stored_size(int(self.indices[i]))

    def info(self, i: int) -> PictureInfo:
        return self.parent.info(int(self.indices[i]))

    def _content_hash(self) -> bytes:
        return hashlib.sha256(self.parent.content_hash() + self.indices.astype("<i8").tobytes()).digest()
