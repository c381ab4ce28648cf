# SPDX-License-Identifier: Apache-2.0
"""One node of a ring benchmark: a Ring that obeys commands on standard input and prints results, both JSON lines."""

import asyncio
import gc
import json
import sys
import time
from typing import Any

import uvloop

from sync.config import RingConfig
from sync.driver import Ring, peer_paths
from sync.events import Deliver, Order, View
from sync.transport.keys import KeyRing

PROBE = 18
ITEMS_AT_ONCE = 10


def say(kind: str, **fields: Any) -> None:
    """Print one line for the benchmark."""
    print(json.dumps({"event": kind, "t": time.monotonic(), **fields}), flush=True)


class Worker:
    """Runs commands on one ring node."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.latencies: list[float] = []
        ring.on_view(self._on_view)
        ring.subscribe(PROBE, self._on_probe)

    @staticmethod
    def _on_view(view: View) -> None:
        say("view", number=view.number, members=sorted(view.members))

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


async def work(spec: dict[str, Any], kind: type[Worker]) -> None:
    """Obey until standard input ends."""
    ring = open_ring(spec)
    worker = kind(ring)
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with ring:
        gc.freeze()
        while line := await reader.readline():
            command = json.loads(line)
            await getattr(worker, command.pop("do"))(**command)


def main(kind: type[Worker]) -> None:
    """Run a node of the specification on the command line, profiled if that says so."""
    spec = json.loads(sys.argv[1])
    if not spec.get("profile"):
        uvloop.run(work(spec, kind))
        return
    import cProfile

    cProfile.runctx("uvloop.run(work(spec, kind))", globals(), {"spec": spec, "kind": kind}, spec["profile"])


if __name__ == "__main__":
    main(Worker)
