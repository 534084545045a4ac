"""Settings of the memory allocator that must stand before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys

SWITCH = "WORKBENCH_ALLOCATOR"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_large_blocks() -> bool:
    """True if the allocator was told to keep large blocks in the process and to back them by huge pages.

    glibc maps every large tensor anew and gives it back to the kernel when it is freed, so that each training step
    pays for its pages again. Only where the C library is glibc; `WORKBENCH_ALLOCATOR=off` leaves everything as it is.
    Must run before torch is loaded, which reads THP_MEM_ALLOC_ENABLE once.
    """
    if os.environ.get(SWITCH, "").lower() == "off" or not _is_glibc():
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))


def _is_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):  # musl knows the name and not the value
        return False
