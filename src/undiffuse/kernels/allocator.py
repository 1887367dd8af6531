"""Memory: whether the C library's allocator keeps what is freed, and what kernels work in."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

KEPT = 2**22
"""Numbers of a workspace up to which a thread keeps it, 16 MiB."""
_local = threading.local()  # holds the workspace of each thread
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LARGEST = 32 * 2**20  # the largest threshold that mallopt accepts
_OWN = 2**17  # bytes from which on a block has pages of its own inside `own_pages`, glibc's default
_NEVER = 2**31 - 1

_kept = False  # whether `keep_memory` is in effect


def keep_memory() -> bool:
    """Makes the C library's allocator keep freed memory.

    By default, glibc returns large blocks to the kernel and gets them back, zeroed page by page, for the next layer's
    activations. The setting applies to the whole process, so programs should make it, not libraries.

    Returns:
        Whether the setting is in effect (glibc only).
    """
    global _kept
    mallopt = _function("mallopt")
    _kept = mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
    return _kept


@contextmanager
def own_pages() -> Iterator[None]:
    """Gives large blocks of memory allocated inside the block pages of their own, if `keep_memory` is in effect.

    For weights: what is freed goes back to the operating system at once, instead of leaving holes among activations.
    """
    mallopt = _function("mallopt")
    if mallopt is None or not _kept:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _OWN)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _LARGEST)


def return_memory() -> None:
    """Returns freed memory to the operating system, if the allocator supports it (glibc).

    Call it after replacing a large object: the holes that it leaves rarely have a size that is needed again.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@functools.lru_cache
def _function(name: str) -> Any:
    """Returns a function of glibc; None if it does not exist."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # another C library
        return None


def workspace(count: int) -> Tensor:
    """Returns a thread's workspace of `count` or more float32 numbers: blocks of ever other sizes would leave holes."""
    kept: Tensor | None = getattr(_local, "workspace", None)
    if kept is not None and len(kept) >= count:
        return kept
    if count > KEPT:
        return torch.empty(count, dtype=torch.float32)
    _local.workspace = kept = None  # before there is another
    _local.workspace = torch.empty(count, dtype=torch.float32)
    return _local.workspace
