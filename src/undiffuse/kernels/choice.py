"""Which kernels are used: the choice of the environment, or of a block of code, and what is possible here."""

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
    """`active`: "compiled" or "pure"; `reason`: why, in words."""

    active: str
    reason: str


def choice() -> str:
    """What `using` or UNDIFFUSE_KERNELS asks for. ValueError if that is none of `CHOICES`."""
    wanted = _chosen or os.environ.get("UNDIFFUSE_KERNELS", "").strip().lower() or "auto"
    if wanted not in CHOICES:
        raise ValueError(f"UNDIFFUSE_KERNELS is {wanted!r}; expected one of {', '.join(CHOICES)}")
    return wanted


def library() -> ctypes.CDLL | None:
    """The compiled kernels, built and loaded at the first call; None where they are not wanted or cannot be had.

    RuntimeError if they are demanded and cannot be had.
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
    """What is used here, and why."""
    if choice() == "pure":
        return Status("pure", "as asked for")
    found = library()
    return Status("compiled", str(found._name)) if found is not None else Status("pure", _reason)


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """Inside the block "pure", "compiled" or "auto", whatever the environment says. For the whole process."""
    global _active, _chosen
    if wanted not in CHOICES:
        raise ValueError(f"unknown kernels {wanted!r}; choose one of {', '.join(CHOICES)}")
    before, _chosen, _active = _chosen, wanted, _UNSET
    try:
        yield
    finally:
        _chosen, _active = before, _UNSET
