# SPDX-License-Identifier: Apache-2.0
"""Connection replication: what the packet path records goes to all gateways, in bulk and in one order.

Sending: the ring buffer is drained as one numpy view, filtered, and offered to the ring as one message. Receiving: a
message becomes one batch update of the connection map. Nothing here waits for anything: a ring that takes no more
leaves the records in the kernel's buffer (which counts what it cannot hold), a map that is slower than the ring
makes the receiver shed whole messages, counted; both are repaired later by comparing digests (`connection_repair`).
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from ebpf.layout import RECORD
from ebpf.map_access import Map
from ebpf.ring_buffer import RingBuffer
from lb.connections.batch import HEADER_BYTES
from lb.connections.records import (
    RecordsError,
    pack_records,
    to_entries,
    to_send,
    unpack_records,
    well_formed,
)

# One message at most: half a megabyte, about 0.4 ms of draining.
RECORDS_PER_MESSAGE_MAX = 8192
RECORDS_PER_POLL_MAX = 2 * RECORDS_PER_MESSAGE_MAX
# Received but not yet in the map. Beyond it messages are shed.
APPLY_QUEUE_BYTES_MAX = 64 << 20
# Up to this many records are written on the event loop's thread: half a millisecond. A hand-over to a thread and back
# costs as much processor time as half of that.
INLINE_RECORDS_MAX = 1024
APPLY_AT_ONCE_BYTES_MAX = 1 << 20

Payload = bytes | bytearray | memoryview


def monotonic_s() -> int:
    """Whole seconds of the clock that the packet path stamps entries with."""
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))


@dataclass(slots=True)
class SendCounts:
    """What the sending side has done."""

    sent: int = 0
    messages: int = 0
    not_for_peers: int = 0
    refused: int = 0  # times the ring took no more; the records stayed in the kernel's buffer


@dataclass(slots=True)
class ReceiveCounts:
    """What the receiving side has done."""

    written: int = 0
    messages: int = 0
    shed: int = 0
    malformed: int = 0
    refused_messages: int = 0
    failed_writes: int = 0


class RecordSender:
    """Moves records from the packet path's ring buffer to the ring. Called on the event loop.

    `offer(message) -> bool` hands a message to the ring; False means it takes no more for now.
    """

    def __init__(self, node: int, source: RingBuffer, offer: Callable[[bytes], bool]) -> None:
        self._node = node
        self._source = source
        self._offer = offer
        self._waiting: bytes | None = None
        self._waiting_records = 0
        self.counts = SendCounts()
        self.alone = True

    @property
    def backlog(self) -> int:
        """Records not handed to the ring yet."""
        return self._source.backlog + self._waiting_records

    def poll(self) -> bool:
        """Send what there is, up to a bound. True when more is waiting that could be sent at once."""
        if self.alone:
            self._discard()
            return False
        taken = 0
        while taken < RECORDS_PER_POLL_MAX:
            if self._waiting is not None and not self._hand_over():
                return False
            if not self._source.backlog:
                return False
            taken += self._take()
        return self._source.backlog > 0

    def _take(self) -> int:
        with self._source.borrow(RECORDS_PER_MESSAGE_MAX) as records:
            wanted = to_send(records, self._node)
            if len(wanted):
                self._waiting, self._waiting_records = pack_records(wanted), len(wanted)
            self.counts.not_for_peers += len(records) - len(wanted)
            # An incomplete record at the front ends this poll instead of spinning on it.
            return len(records) or RECORDS_PER_POLL_MAX

    def _hand_over(self) -> bool:
        assert self._waiting is not None
        if not self._offer(self._waiting):
            self.counts.refused += 1
            return False
        self.counts.sent += self._waiting_records
        self.counts.messages += 1
        self._waiting, self._waiting_records = None, 0
        return True

    def _discard(self) -> None:
        """Without peers there is nobody to tell; whoever joins gets the whole table."""
        self._waiting, self._waiting_records = None, 0
        while True:
            with self._source.borrow(RECORDS_PER_MESSAGE_MAX) as records:
                count = len(records)
            self.counts.not_for_peers += count
            if not count:
                return


class RecordReceiver:
    """Writes peers' records into this gateway's connection map, in the order in which they came.

    `on_shed` is called (on the event loop) when a message was lost to this gateway and its table needs repair;
    `on_writing(keys)` sees the keys of every batch before it is written. While `inline` is False all batches are
    written on the worker's thread.
    """

    def __init__(
        self,
        connections: Map,
        executor: Executor,
        call_soon: Callable[[Callable[[], None]], object],
        *,
        on_shed: Callable[[], None] = lambda: None,
    ) -> None:
        self._connections = connections
        self._executor = executor
        self._call_soon = call_soon
        self._on_shed = on_shed
        self._queue: deque[Payload] = deque()
        self._queued_bytes = 0
        self._running: Future[None] | None = None
        self._due = False
        self._closed = False
        self.counts = ReceiveCounts()
        self.on_writing: Callable[[np.ndarray], None] | None = None
        self.inline = True

    @property
    def queued_bytes(self) -> int:
        """Received, not yet written."""
        return self._queued_bytes

    def receive(self, message: Payload) -> None:
        """Take one message of a peer."""
        if self._queued_bytes + len(message) > APPLY_QUEUE_BYTES_MAX:
            self.counts.shed += max(0, len(message) // RECORD.itemsize)
            self._on_shed()
            return
        self._queue.append(message)
        self._queued_bytes += len(message)
        if self._running is None and not self._due:
            # What one token brings from several gateways goes into the map together.
            self._due = True
            self._call_soon(self._start)

    def close(self) -> None:
        """Begin no more writes: the executor is about to end."""
        self._closed = True

    def _start(self) -> None:
        self._due = False
        if self._closed:
            return
        taken: list[Payload] = []
        size = 0
        while self._queue and size < APPLY_AT_ONCE_BYTES_MAX:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        if self.inline and size <= HEADER_BYTES * len(taken) + INLINE_RECORDS_MAX * RECORD.itemsize:
            self._queued_bytes -= size
            self.write(taken)
            return
        self._running = self._executor.submit(self.write, taken)
        self._running.add_done_callback(lambda _: self._call_soon(lambda: self._finish(size)))

    def _finish(self, size: int) -> None:
        self._queued_bytes -= size
        self._running = None
        if self._queue:
            self._start()

    def write(self, messages: list[Payload]) -> None:
        """Write messages into the map, here and now; a later entry for the same key wins."""
        now_s = monotonic_s()
        for message in messages:
            try:
                records = unpack_records(message)
            except RecordsError:
                self.counts.refused_messages += 1
                continue
            good = well_formed(records)
            if not good.all():
                self.counts.malformed += len(records) - int(good.sum())
                records = records[good]
            keys, values = to_entries(records, now_s)
            if self.on_writing is not None:
                self.on_writing(keys)
            try:
                self.counts.written += self._connections.update(keys, values)
            except OSError:
                self.counts.failed_writes += len(keys)
                continue
            self.counts.messages += 1
