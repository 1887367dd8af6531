"""Keep freed memory in the process instead of giving it back to the operating system."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 32 * 2**20  # the largest threshold it accepts
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Tell the C library's allocator to keep what is freed. Returns whether there is one that can be told (glibc).

    By default glibc gives large blocks back to the kernel, and takes them again, zeroed page by page, for the next
    layer's activations. It is a setting of the whole process, so it is for programs to make, not for libraries.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
