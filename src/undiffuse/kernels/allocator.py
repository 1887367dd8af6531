"""Control of whether the C library's allocator keeps freed memory or returns it to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LARGEST = 32 * 2**20  # the largest threshold that mallopt accepts
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Makes the C library's allocator keep freed memory.

    By default, glibc returns large blocks to the kernel and gets them back, zeroed page by page, for the next layer's
    activations. The setting applies to the whole process, so programs should make it, not libraries.

    Returns:
        Whether the setting is in effect (glibc only).
    """
    mallopt = _function("mallopt")
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))


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
