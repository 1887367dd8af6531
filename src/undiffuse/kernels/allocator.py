"""Controls whether the C library's allocator keeps freed memory in the process or returns it to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 32 * 2**20  # the largest threshold it accepts
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Make the C library's allocator keep freed memory.

    By default glibc returns large blocks to the kernel and gets them again, zeroed page by page, for the next layer's
    activations. This is a setting of the whole process, so programs should make it, not libraries.

    Returns:
        Whether the allocator has the setting (glibc).
    """
    mallopt = _function("mallopt")
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))


def return_memory() -> None:
    """Return freed memory to the operating system, if the allocator can (glibc).

    Call it after something large was replaced: the holes it leaves are seldom of a size that is needed again.
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
