# SPDX-License-Identifier: Apache-2.0
"""What peers tell, into the kernel's table: queued on the event loop, written by one thread in the order it came."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from lb.conntrack.entries import EntriesError, Hasher, latest, unpack_entries, well_formed
from lb.conntrack.kernel import TableWriter
from lb.conntrack.listener import monotonic_s
from lb.conntrack.told import Told

# Received but not written. Beyond it messages are shed.
QUEUE_BYTES_MAX = 64 << 20
WRITE_AT_ONCE_BYTES_MAX = 1 << 20

Payload = bytes | bytearray | memoryview
log = logging.getLogger("lb.conntrack")


@dataclass(slots=True)
class InboxCounts:
    """What has become of peers' messages."""

    received: int = 0
    shed_messages: int = 0
    malformed: int = 0
    refused_messages: int = 0
    failed_writes: int = 0


class Inbox:
    """`on_shed` is called when a message was dropped: this gateway's table lacks something."""

    def __init__(
        self,
        writer: TableWriter,
        told: Told,
        hasher: Hasher,
        executor: Executor,
        call_soon: Callable[[Callable[[], None]], object],
        on_shed: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._told = told
        self._hasher = hasher
        self._executor = executor
        self._call_soon = call_soon
        self._on_shed = on_shed
        self._queue: deque[Payload] = deque()
        self._queued_bytes = 0
        self._running: Future[None] | None = None
        self.counts = InboxCounts()

    @property
    def queued_bytes(self) -> int:
        """Received, not yet written."""
        return self._queued_bytes

    def receive(self, message: Payload) -> None:
        """Take one message of the ring."""
        if self._queued_bytes + len(message) > QUEUE_BYTES_MAX:
            self.counts.shed_messages += 1
            self._on_shed()
            return
        self._queue.append(message)
        self._queued_bytes += len(message)
        if self._running is None:
            self._start()

    def _start(self) -> None:
        taken: list[Payload] = []
        size = 0
        while self._queue and size < WRITE_AT_ONCE_BYTES_MAX:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        self._running = self._executor.submit(self._write_all, taken)
        self._running.add_done_callback(lambda done: self._call_soon(lambda: self._finish(size, done)))

    def _finish(self, size: int, done: Future[None]) -> None:
        if done.exception() is not None:
            log.error("conntrack entries of peers were not written", exc_info=done.exception())
        self._queued_bytes -= size
        self._running = None
        if self._queue:
            self._start()

    def _write_all(self, messages: list[Payload]) -> None:
        for message in messages:
            self.write(message)

    def write(self, message: Payload, *, transferred: bool = False) -> int:
        """Write a message's entries, here and now; those `transferred` from a table over nothing that is newer. How
        many entries it had. In the writing thread."""
        try:
            entries = unpack_entries(message)
        except EntriesError as error:
            self.counts.refused_messages += 1
            log.warning("%s", error)
            return 0
        count = len(entries)
        good = well_formed(entries)
        self.counts.malformed += count - int(np.count_nonzero(good))
        entries = entries[good]
        hashes = self._hasher(entries)
        last = latest(entries, hashes)
        if transferred:
            last = last[~self._told.older(hashes[last])]
        entries, hashes = entries[last], hashes[last]
        # First told, then written: a survey between the two would tell its tellers.
        self._told.note(entries, hashes, monotonic_s(), transferred=transferred)
        try:
            (self._writer.fill if transferred else self._writer.apply)(entries)
        except OSError as error:
            self.counts.failed_writes += len(entries)
            log.warning("%d entries could not be written into the kernel's table: %s", len(entries), error)
        self.counts.received += len(entries)
        return count
