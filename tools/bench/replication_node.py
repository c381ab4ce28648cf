# SPDX-License-Identifier: Apache-2.0
"""One gateway of the replication benchmark: a real ring and real maps, records from BPF instructions instead of
packets. Reads one JSON object from its command line, prints one at the end; `go` on standard input starts the load."""

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

from ebpf.maps import Maps
from lb.configuration.node import Interface, Node, NodeConfig
from lb.configuration.node import Ring as RingSettings
from lb.connections.records import Keys
from lb.connections.replication import Replication
from lb.process.workers import worker_pool
from sync.config import RingConfig
from sync.driver import Ring, peer_paths
from sync.events import View
from tools.bench.record_maker import Bursts, RecordMaker
from tools.bench.record_source import RecordSource, new_map

TICK_S = 0.002
CHANNEL_END = 30
CALM_S = 3.0


class Gateway:
    """What a gateway's daemon has of replication, and what the benchmark measures of it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.number = int(settings["node"])
        addresses: dict[str, list[str]] = settings["addresses"]
        listen = addresses[str(self.number)]
        peers = {int(n): peer_paths(listen, a) for n, a in addresses.items() if int(n) != self.number}
        self.config = NodeConfig(
            cluster="bench",
            node=Node(f"gw{self.number}", self.number),
            interfaces=(Interface("lo", "lan"),),
            ring=RingSettings(tuple(listen), ""),
        )
        self.source = RecordSource(settings["ring_buffer_bytes"])
        self.maker: RecordMaker | None = None
        if settings["rate"] is not None:
            self.maker = RecordMaker(self.source, self.number, int(settings["rate"]), float(settings["seconds"]))
        self.maps = Maps({"records": self.source.ring, "connections": new_map("connections")})
        ring = RingConfig(node=self.number, peers=peers, failure_detection_ms=settings["failure_detection_ms"])
        self.ring = Ring(ring, listen, workers=0)
        self.sent: Bursts = []
        self.arrived: Bursts = []
        self.ended = asyncio.Event()
        self.ring.subscribe(CHANNEL_END, lambda _batch: self.ended.set())
        self.views: list[tuple[float, int]] = []
        self.count = 0
        self.tasks: list[asyncio.Task[Any]] = []

    async def run(self) -> dict[str, Any]:
        """Join, wait for the word, load or listen, report."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(worker_pool(self.config, 2, "bench"))
        replication = Replication(self.config, self.maps, self.ring, self._spawn, lambda _complete: None)
        note_writing = replication.receiver.on_writing

        def written(keys: Keys) -> None:
            if note_writing is not None:
                note_writing(keys)
            self.count += len(keys)
            self.arrived.append((time.monotonic(), self.count))

        replication.receiver.on_writing = written
        self.ring.on_view(replication.take_view)
        whole = asyncio.Event()
        size = len(self.settings["addresses"])
        self.ring.on_view(lambda view: whole.set() if len(view.members) == size else None)
        self.ring.on_view(self._note_view)
        async with self.ring:
            replication.start()
            await whole.wait()
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            self.views.clear()
            cpu = time.process_time()
            if self.maker is not None:
                await self._load(self.maker, replication)
                cpu_s = time.process_time() - cpu
            else:
                cpu_s = await self._listen() - cpu
            await asyncio.to_thread(sys.stdin.readline)
            report = self._report(replication, cpu_s)
            await replication.close()
        return report

    def _note_view(self, view: View) -> None:
        if not self.ended.is_set():
            self.views.append((time.monotonic(), len(view.members)))

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work, name=name))

    async def _load(self, maker: RecordMaker, replication: Replication) -> None:
        """Have records made, until all of them have come back in the ring's order."""
        maker.start()
        self.sent = await asyncio.to_thread(maker.bursts)
        while replication.sender.backlog:  # noqa: ASYNC110  (the buffer is the kernel's: nobody tells)
            await asyncio.sleep(TICK_S)
        # What the ring has accepted is on its way for a while: this, as bulk like the records, comes after all of it.
        while not self.ring.offer(CHANNEL_END, b"end"):
            await self.ring.wait_for_room()
        await self.ended.wait()

    async def _listen(self) -> float:
        """Until nothing has come for a while; the processor time at which the last record had come."""
        last, since, cpu = 0, time.monotonic() + float(self.settings["seconds"]), time.process_time()
        while time.monotonic() < since + CALM_S:
            if self.count != last:
                last, since, cpu = self.count, max(since, time.monotonic()), time.process_time()
            await asyncio.sleep(0.05)
        return cpu

    def _report(self, replication: Replication, cpu_s: float) -> dict[str, Any]:
        table = sum(len(keys) for keys, _ in self.maps.connections.chunks())
        return {
            "node": self.number,
            "cpu_s": cpu_s,
            "made": self.sent[-1][1] if self.sent else 0,
            "received": self.count,
            "in_map": table,
            "sent": self.sent,
            "arrived": self.arrived,
            "counts": replication.counts(),
            "views": self.views,
            "loop_lag_ms": self.ring.stats()["loop_lag_max_ms"],
        }


def main() -> int:
    """Run the node that the command line describes."""
    gateway = Gateway(json.loads(sys.argv[1]))
    print(json.dumps(uvloop.run(gateway.run()), default=int), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
