# SPDX-License-Identifier: Apache-2.0
"""Keeps the daemon small: it shares a gateway with the traffic it steers.

glibc gives each thread a heap of its own and keeps what was freed for later. Both are good for programs that allocate
all day; this one has a few threads that build a table once a week.
"""

import ctypes
import os

_M_ARENA_MAX, _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -8, -1, -3
_ARENAS = 1
_KEPT_BYTES = 256 << 10


def settle_allocator() -> None:
    """To be called before the first thread starts and before numpy is loaded (its algebra library takes memory per
    thread)."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, _ARENAS)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Returns freed memory to the system. Takes a millisecond or so: for moments after large work."""
    ctypes.CDLL(None).malloc_trim(0)
