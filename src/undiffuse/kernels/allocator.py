"""What the C library's allocator does with freed memory: keeps it in the process, or gives it back."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 32 * 2**20  # the largest threshold it accepts
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Tell the C library's allocator to keep what is freed. Returns whether there is one that can be told (glibc).

    By default glibc gives large blocks back to the kernel, and takes them again, zeroed page by page, for the next
    layer's activations. It is a setting of the whole process, so it is for programs to make, not for libraries.
    """
    mallopt = _function("mallopt")
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))


def return_memory() -> None:
    """Give what is free back to the operating system, where the allocator can be told (glibc).

    For after something large was replaced: the holes that it leaves are seldom of a size that is wanted again.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@functools.lru_cache
def _function(name: str) -> Any:
    """A function of glibc, None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # another C library
        return None
