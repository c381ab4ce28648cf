# SPDX-License-Identifier: Apache-2.0
"""Drains a BPF ring buffer in bulk: fixed-size records as one numpy view, no call and no copy per record.

The kernel's layout (kernel/bpf/ringbuf.c): one page with the consumer's position, one page with the producer's, then
the data, mapped twice in a row so that a record never wraps. Each record has an 8-byte header: length with a busy
bit (still being written) and a discard bit, and a page offset.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf.map_access import Map

_HEADER_BYTES = 8
_BUSY = np.uint32(1 << 31)
_DISCARD = np.uint32(1 << 30)


class RingBuffer:
    """Consumer of one ring buffer map whose records all have the map's value type. One consumer at a time."""

    def __init__(self, source: Map) -> None:
        page = mmap.PAGESIZE
        self.record_type: np.dtype[Any] = source.spec.value
        self._bytes = source.capacity
        self._consumer_page = mmap.mmap(source.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._ring = mmap.mmap(source.fd, page + 2 * self._bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # One aligned 8-byte element each: numpy reads and writes them with a single instruction.
        self._consumer = np.frombuffer(self._consumer_page, np.uint64, 1)
        self._producer = np.frombuffer(self._ring, np.uint64, 1)
        stride = _HEADER_BYTES + (self.record_type.itemsize + 7) // 8 * 8
        self._slot = np.dtype(
            {
                "names": ["length", "record"],
                "formats": [np.uint32, self.record_type],
                "offsets": [0, _HEADER_BYTES],
                "itemsize": stride,
            }
        )

    @property
    def backlog(self) -> int:
        """Records waiting."""
        return int(self._producer[0] - self._consumer[0]) // self._slot.itemsize

    @property
    def capacity(self) -> int:
        """Records that fit."""
        return self._bytes // self._slot.itemsize

    @contextmanager
    def borrow(self, records_max: int) -> Iterator[npt.NDArray[Any]]:
        """A read-only view of up to ``records_max`` waiting records, in order; released when the block ends well.

        The view is strided (record i begins 8 bytes after record i-1 ends) and must not outlive the block. If the
        block raises, the records stay for the next call.
        """
        consumed = int(self._consumer[0])
        count = min(records_max, (int(self._producer[0]) - consumed) // self._slot.itemsize)
        offset = mmap.PAGESIZE + consumed % self._bytes
        slots = np.frombuffer(self._ring, self._slot, count, offset)
        ready = self._ready(slots["length"])
        view = slots["record"][:ready]
        if ready and (slots["length"][:ready] & _DISCARD).any():
            view = view[(slots["length"][:ready] & _DISCARD) == 0]
        yield view
        self._consumer[0] = consumed + ready * self._slot.itemsize

    def drain(self, records_max: int) -> npt.NDArray[Any]:
        """As ``borrow``, but a contiguous copy that is the caller's."""
        with self.borrow(records_max) as view:
            return view.copy()

    @staticmethod
    def _ready(lengths: npt.NDArray[np.uint32]) -> int:
        """How many records from the front are complete."""
        busy = (lengths & _BUSY) != 0
        return int(busy.argmax()) if busy.any() else len(lengths)

    def close(self) -> None:
        """Unmaps the buffer; every borrowed view must be gone."""
        del self._consumer, self._producer
        self._consumer_page.close()
        self._ring.close()
