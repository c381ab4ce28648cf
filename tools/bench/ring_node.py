# SPDX-License-Identifier: Apache-2.0
"""One node of a ring benchmark: a Ring that obeys commands on standard input and prints results, both JSON lines.

The order of deliveries is hashed per message (origin and sequence number), so equal hashes at all nodes mean the same
messages in the same total order, however they were batched.
"""

import asyncio
import contextlib
import gc
import json
import sys
import time
from hashlib import blake2b
from typing import Any

import numpy as np
import uvloop

from sync.config import RingConfig
from sync.driver import MulticastFailed, Ring, peer_paths
from sync.events import Deliver, Order, View
from sync.transport.keys import KeyRing

DATA, END, PROBE = 16, 17, 18
OFFER_BYTES = 64 << 10  # what the program hands over at once: many small messages or one large
OFFER_MESSAGES = 1024
END_TIMEOUT_S = 10.0  # an exclusion can cost a node the ends it waits for
ITEMS_AT_ONCE = 10
WINDOW_BYTES = 3 << 20  # of a sender's own messages that it has not seen delivered
STAMP = np.dtype("<u8")


def say(kind: str, **fields: Any) -> None:
    """Print one line for the benchmark."""
    print(json.dumps({"event": kind, "t": time.monotonic(), **fields}), flush=True)


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


class Worker:
    """Runs commands on one ring node."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.tally: Tally | None = None
        self.latencies: list[float] = []
        ring.on_view(self._on_view)
        ring.subscribe(DATA, lambda batch: self.tally.on_batch(batch) if self.tally else None)
        ring.subscribe(END, lambda batch: self.tally.on_end(batch) if self.tally else None)
        ring.subscribe(PROBE, self._on_probe)

    @staticmethod
    def _on_view(view: View) -> None:
        say("view", number=view.number, members=sorted(view.members))

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

    def _on_probe(self, batch: Deliver) -> None:
        now = time.monotonic_ns()
        if batch.origin == self.ring.config.node:
            stamps = (int.from_bytes(payload[:8], "little") for payload in batch.payloads())
            self.latencies += [(now - stamp) / 1000 for stamp in stamps]

    async def latency(self, rate: float, size: int, seconds: float, order: str) -> None:
        """Send at a steady rate and time each message until its own delivery; microseconds."""
        self.latencies = []
        wanted = Order[order.upper()]
        begin = time.monotonic()
        total = int(rate * seconds)
        refused = 0
        for number in range(total):
            due = begin + number / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            payload = time.monotonic_ns().to_bytes(8, "little") + bytes(size - 8)
            refused += not self.ring.offer(PROBE, payload, order=wanted, bulk=False, urgent=True)
        await asyncio.sleep(0.3)
        say("latencies", sent=total - refused, refused=refused, microseconds=self.latencies)

    async def items(self, count: int, size: int, rate: float, seconds: float) -> None:
        """Write shared data items at a steady rate, ITEMS_AT_ONCE in one turn of the loop.

        One at a time, this program's own wake-ups would cost several times what the ring does.
        """
        node = self.ring.config.node
        value = bytes(size)
        begin = time.monotonic()
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            if number % ITEMS_AT_ONCE == 0 and (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self.ring.data[f"item/{(number * 2 + node) % count}"] = number.to_bytes(8, "little") + value[8:]
        say("written", digest=self.ring.shared.digest().hex())

    async def fill(self, count: int, size: int) -> None:
        """Create the items to be updated."""
        for start in range(0, count, 256):
            async with self.ring.transaction() as change:
                for number in range(start, min(count, start + 256)):
                    change[f"item/{number}"] = bytes(size)
        say("filled", items=len(self.ring.data))

    async def stats(self) -> None:
        """Counters of all layers."""
        say("stats", **self.ring.stats())

    async def digest(self) -> None:
        """Digest of the shared data."""
        say("digest", digest=self.ring.shared.digest().hex(), complete=self.ring.data.complete)


def open_ring(spec: dict[str, Any]) -> Ring:
    """The ring that a benchmark's specification describes."""
    node, addresses = int(spec["node"]), {int(n): a for n, a in spec["addresses"].items()}
    peers = {peer: peer_paths(addresses[node], theirs) for peer, theirs in addresses.items() if peer != node}
    keys = KeyRing([bytes.fromhex(spec["key"])]) if spec.get("key") else None
    config = RingConfig(node=node, peers=peers, keys=keys, **spec.get("settings", {}))
    return Ring(config, addresses[node], scheduling=spec.get("scheduling", "auto"))


async def work(spec: dict[str, Any]) -> None:
    """Obey until standard input ends."""
    ring = open_ring(spec)
    worker = Worker(ring)
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with ring:
        gc.freeze()
        while line := await reader.readline():
            command = json.loads(line)
            await getattr(worker, command.pop("do"))(**command)


if __name__ == "__main__":
    specification = json.loads(sys.argv[1])
    if specification.get("profile"):
        import cProfile

        cProfile.run("uvloop.run(work(specification))", specification["profile"])
    else:
        uvloop.run(work(specification))
