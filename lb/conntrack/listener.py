# SPDX-License-Identifier: Apache-2.0
"""The kernel's events to messages for the peers, in a thread of its own that sleeps while nothing happens."""

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lb.conntrack.entries import ENTRY, Entries, Hasher, Hashes, latest, pack_entries, to_tell
from lb.conntrack.kernel import EVENTS_PER_READ_MAX, EventReader, EventsLost
from lb.conntrack.told import Told

# After a read that did not fill a batch, events are let gather: what changes twice meanwhile is told once.
GATHER_S = 0.005
ENTRIES_PER_MESSAGE_MAX = 4096
# Messages that the ring has not taken yet. Beyond, events wait in the kernel, which counts what it cannot hold.
MESSAGES_WAITING_MAX = 64


def monotonic_s() -> int:
    """Whole seconds of a clock that nobody sets."""
    return int(time.monotonic())


@dataclass(slots=True)
class EventCounts:
    """What has become of the kernel's events."""

    events: int = 0
    not_for_peers: int = 0
    superseded: int = 0
    lost: int = 0  # times the kernel's buffer was full


class Listener:
    """Reads events until it is stopped. `hand_over(message, entries)` is called in this thread.

    `own()`: hashes of this gateway's own addresses. `on_lost` is called when events were lost: peers are to be told of
    the whole table.
    """

    def __init__(
        self,
        reader: EventReader,
        hasher: Hasher,
        told: Told,
        own: Callable[[], Hashes],
        hand_over: Callable[[bytes, int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._hasher = hasher
        self._told = told
        self._own = own
        self._hand_over = hand_over
        self._on_lost = on_lost
        self._room = threading.Semaphore(MESSAGES_WAITING_MAX)
        self._stopping = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.counts = EventCounts()
        # Nobody is there to be told.
        self.alone = True

    def taken(self) -> None:
        """The ring has taken a message (or nobody wants it any more)."""
        self._room.release()

    def stop(self) -> None:
        """`run` returns soon."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        self._room.release()

    def close(self) -> None:
        """After `run` has returned."""
        os.close(self._wake)

    def run(self) -> None:
        """The thread."""
        ready = select.poll()
        ready.register(self._reader.fileno(), select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        while not self._stopping.is_set():
            ready.poll()
            if not self.take():
                self._stopping.wait(GATHER_S)

    def take(self) -> bool:
        """Tell of the events that are there, up to a message's worth. Whether there may be more."""
        gathered, more = self._gather()
        if len(gathered):
            self._tell(gathered)
        return more

    def _gather(self) -> tuple[Entries, bool]:
        """What is there, up to a message's worth, and whether there may be more."""
        batches: list[Entries] = [np.zeros(0, ENTRY)]
        own, total, count = self._own(), 0, EVENTS_PER_READ_MAX
        while count == EVENTS_PER_READ_MAX and total < ENTRIES_PER_MESSAGE_MAX:
            try:
                entries, count = self._reader.read()
            except EventsLost:
                self.counts.lost += 1
                self._on_lost()
                continue
            self.counts.events += count
            wanted = to_tell(entries, own)
            self.counts.not_for_peers += count - len(wanted)
            total += len(wanted)
            batches.append(wanted)
        return np.concatenate(batches), count == EVENTS_PER_READ_MAX

    def _tell(self, entries: Entries) -> None:
        if self.alone:
            self.counts.not_for_peers += len(entries)
            return
        hashes = self._hasher(entries)
        last = latest(entries, hashes)
        self.counts.superseded += len(entries) - len(last)
        entries, hashes = entries[last], hashes[last]
        self._told.note(entries, hashes, monotonic_s())
        self._room.acquire()
        if not self._stopping.is_set():
            self._hand_over(pack_entries(entries), len(entries))
