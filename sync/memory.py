# SPDX-License-Identifier: Apache-2.0
"""Memory for a node's traffic: the C library's allocator told what it looks like, and large blocks past it."""

import contextlib
import ctypes
import mmap
from typing import Final

# Larger blocks than this come from and return to the kernel one by one; a token with its load is below it.
MAPPED_ALONE_BYTES: Final = 8 * 1024 * 1024
# Freed memory kept for the next burst.
KEPT_BYTES: Final = 16 * 1024 * 1024

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> bool:
    """Let the process keep up to KEPT_BYTES of freed memory; False if the C library knows no such thing.

    Bursts come and go by the megabyte, thousands of times a second. By default glibc maps each larger block afresh and
    gives freed ones back at once, and the page faults then cost three times as much as copying and authenticating.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_ALONE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def buffer(length: int) -> memoryview:
    """Fresh memory of `length` bytes, writable.

    Blocks above MAPPED_ALONE_BYTES get their pages as they are written to: zeroing 64 MiB at once would hold up the
    loop for 35 ms. In huge pages, where the kernel has them, filling one takes a fifth of the time.
    """
    if length <= MAPPED_ALONE_BYTES:
        return memoryview(bytearray(length))
    block = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        block.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(block)
