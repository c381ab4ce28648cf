# SPDX-License-Identifier: Apache-2.0
"""A node of a ring benchmark that floods the ring and counts what it delivers.

The order of deliveries is hashed per message (origin and sequence number), so equal hashes at all nodes mean the same
messages in the same total order, however they were batched. Apart from the other node, whose memory is measured: this
one needs numpy, which the ring does not.
"""

import asyncio
import contextlib
import time
from hashlib import blake2b
from typing import Any

import numpy as np

from sync.driver import MulticastFailed, Ring
from sync.events import Deliver
from tools.bench.ring_node import Worker, main, say

DATA, END = 16, 17
OFFER_BYTES = 64 << 10  # what the program hands over at once: many small messages or one large
OFFER_MESSAGES = 1024
END_TIMEOUT_S = 10.0  # an exclusion can cost a node the ends it waits for
WINDOW_BYTES = 3 << 20  # of a sender's own messages that it has not seen delivered
STAMP = np.dtype("<u8")


class Tally:
    """What was delivered in one run, and in which order."""

    def __init__(self, node: int, size: int, ends: int) -> None:
        self.node, self.size, self.ends_wanted = node, size, ends
        self.count, self.first, self.last = 0, 0.0, 0.0
        self.own = 0
        self.order = blake2b(digest_size=8)
        self.finished = asyncio.Event()

    def on_batch(self, batch: Deliver) -> None:
        """Count and hash a batch of equally long messages."""
        now = time.monotonic()
        if not self.count:
            self.first = now
        self.last = now
        self.count += batch.messages
        if batch.origin == self.node:
            self.own += batch.messages
        records = np.empty((batch.messages, 2), STAMP)
        records[:, 0] = batch.origin
        heads = np.frombuffer(batch.data, np.uint8).reshape(batch.messages, self.size)[:, : STAMP.itemsize]
        records[:, 1] = np.ascontiguousarray(heads).view(STAMP)[:, 0]
        self.order.update(records.tobytes())

    def on_end(self, batch: Deliver) -> None:
        """One sender has no more."""
        self.ends_wanted -= batch.messages
        if self.ends_wanted <= 0:
            self.finished.set()

    def result(self) -> dict[str, Any]:
        """Figures of the run."""
        return {"delivered": self.count, "seconds": self.last - self.first, "order": self.order.hexdigest()}


def messages(first: int, count: int, size: int) -> list[memoryview]:
    """`count` different messages of `size` bytes, numbered from `first`."""
    block = np.zeros((count, size), np.uint8)
    block[:, : STAMP.itemsize] = np.arange(first, first + count, dtype=STAMP).view(np.uint8).reshape(count, -1)
    view = memoryview(block.tobytes())
    return [view[at : at + size] for at in range(0, count * size, size)]


class FloodWorker(Worker):
    """Sends as fast as the ring takes it, on top of what every node does."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring)
        self.tally: Tally | None = None
        ring.subscribe(DATA, lambda batch: self.tally.on_batch(batch) if self.tally else None)
        ring.subscribe(END, lambda batch: self.tally.on_end(batch) if self.tally else None)

    async def prepare(self, size: int, senders: list[int]) -> None:
        """Expect a flood; every node must have said so before anyone begins."""
        self.tally = Tally(self.ring.config.node, size, len(senders))
        say("prepared")

    async def flood(self, size: int, senders: list[int], seconds: float) -> None:
        """Send as fast as the ring takes it, if we are a sender; report when everybody's messages are here."""
        assert self.tally is not None
        sent = await self._send(size, time.monotonic() + seconds) if self.ring.config.node in senders else 0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.tally.finished.wait(), END_TIMEOUT_S)
        say("flooded", sent=sent, **self.tally.result())

    async def _send(self, size: int, end: float) -> int:
        assert self.tally is not None
        count = max(1, min(OFFER_MESSAGES, OFFER_BYTES // size))
        sent = 0
        batch = messages(sent, count, size)
        while time.monotonic() < end:
            room = (sent - self.tally.own) * size < WINDOW_BYTES
            if room and self.ring.offer(DATA, batch, bulk=False, urgent=True):
                sent += count
                batch = messages(sent, count, size)
                await asyncio.sleep(0)
            else:
                await self.ring.wait_for_room()
        while True:
            try:
                await self.ring.multicast(END, b"end")
            except MulticastFailed:  # we were excluded; the repetition is lost, but must end
                await asyncio.sleep(0.1)
            else:
                return sent


if __name__ == "__main__":
    main(FloodWorker)
