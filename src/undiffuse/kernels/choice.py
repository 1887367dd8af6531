"""Chooses the kernels: by the environment, by a block of code, and by what is possible here."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from undiffuse.kernels.building import Unavailable, load

CHOICES = ("auto", "pure", "compiled")
_UNSET: Any = object()
_chosen: str | None = None  # by `using`
_library: ctypes.CDLL | None = _UNSET  # once built, or tried in vain
_reason = ""  # why there is none
_active: ctypes.CDLL | None = _UNSET  # what `library` answers until the choice changes


@dataclass(frozen=True)
class Status:
    """The kernels in use.

    Attributes:
        active: "compiled" or "pure".
        reason: Why, in words; of compiled kernels the library's path.
    """

    active: str
    reason: str


def choice() -> str:
    """Return the choice made by `using` or UNDIFFUSE_KERNELS. Raises ValueError if it is none of `CHOICES`."""
    wanted = _chosen or os.environ.get("UNDIFFUSE_KERNELS", "").strip().lower() or "auto"
    if wanted not in CHOICES:
        raise ValueError(f"UNDIFFUSE_KERNELS is {wanted!r}; expected one of {', '.join(CHOICES)}")
    return wanted


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, built and loaded at the first call; None if they are not wanted or not available.

    Raises:
        RuntimeError: They are required, but not available.
    """
    global _active, _library, _reason
    if _active is not _UNSET:  # asked some hundred times a second
        return _active
    wanted = choice()
    if wanted != "pure" and _library is _UNSET:
        try:
            _library = load()
        except Unavailable as error:
            _library, _reason = None, str(error)
    if wanted == "compiled" and _library is None:
        raise RuntimeError(
            f"UNDIFFUSE_KERNELS=compiled, but {_reason}. Leave it out: PyTorch's own operations do the same work"
        )
    _active = None if wanted == "pure" else _library
    return _active


def status() -> Status:
    """Return what is used here, and why."""
    if choice() == "pure":
        return Status("pure", "as chosen")
    found = library()
    return Status("compiled", str(found._name)) if found is not None else Status("pure", _reason)


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """Use "pure", "compiled" or "auto" kernels inside the block, in the whole process, despite the environment."""
    global _active, _chosen
    if wanted not in CHOICES:
        raise ValueError(f"unknown kernels {wanted!r}; choose one of {', '.join(CHOICES)}")
    before, _chosen, _active = _chosen, wanted, _UNSET
    try:
        yield
    finally:
        _chosen, _active = before, _UNSET
