"""Selection of the kernels: by the environment, by a block of code, and by availability."""

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
_chosen: str | None = None  # set by `using`
_library: ctypes.CDLL | None = _UNSET  # set after the first attempt to build; None if it failed
_reason = ""  # why it failed
_active: ctypes.CDLL | None = _UNSET  # result of `library` until the choice changes


@dataclass(frozen=True)
class Status:
    """Describes the kernels in use.

    Attributes:
        active: "compiled" or "pure".
        reason: The reason; for compiled kernels, the path of the library.
    """

    active: str
    reason: str


def choice() -> str:
    """Returns the choice made by `using` or UNDIFFUSE_KERNELS; raises ValueError if it is not one of `CHOICES`."""
    wanted = _chosen or os.environ.get("UNDIFFUSE_KERNELS", "").strip().lower() or "auto"
    if wanted not in CHOICES:
        raise ValueError(f"UNDIFFUSE_KERNELS is {wanted!r}; expected one of {', '.join(CHOICES)}")
    return wanted


def library() -> ctypes.CDLL | None:
    """Returns the compiled kernels, built and loaded by the first call; None if they are not selected or not available.

    Raises:
        RuntimeError: They are required, but not available.
    """
    global _active, _library, _reason
    if _active is not _UNSET:  # a fast path: this is called hundreds of times per second
        return _active
    wanted = choice()
    if wanted != "pure" and _library is _UNSET:
        try:
            _library = load()
        except Unavailable as error:
            _library, _reason = None, str(error)
    if wanted == "compiled" and _library is None:
        raise RuntimeError(
            f"UNDIFFUSE_KERNELS=compiled, but {_reason}. Unset it to use PyTorch's operations, which do the same work"
        )
    _active = None if wanted == "pure" else _library
    return _active


def status() -> Status:
    """Returns the kernels in use and the reason."""
    if choice() == "pure":
        return Status("pure", "selected")
    found = library()
    return Status("compiled", str(found._name)) if found is not None else Status("pure", _reason)


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """Selects "pure", "compiled" or "auto" kernels inside the block, for the whole process; overrides the environment.

    Raises:
        ValueError: `wanted` is not one of them.
    """
    global _active, _chosen
    if wanted not in CHOICES:
        raise ValueError(f"unknown kernels {wanted!r}; choose one of {', '.join(CHOICES)}")
    before, _chosen, _active = _chosen, wanted, _UNSET
    try:
        yield
    finally:
        _chosen, _active = before, _UNSET
