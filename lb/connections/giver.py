# SPDX-License-Identifier: Apache-2.0
"""The side of a transfer that has the entries: reads its map in a thread, and sends at a bounded rate."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from ebpf.layout import State
from ebpf.map_access import Map
from lb.connections.records import Keys, Records, Values, from_entries, pack_records
from lb.connections.transfer import End, Kind, Scope, Send, end_of, message_of

PART_RECORDS_MAX = 4096
# About 400,000 entries a second: a million in under three seconds, and half a core idle beside it.
BYTES_PER_S_MAX = 32 << 20
SERVED_AT_ONCE_MAX = 2
WAITING_MAX = 8


class Giver:
    """Serves other gateways' asks. `ready()` says whether this gateway's own table is complete."""

    def __init__(
        self, node: int, connections: Map, executor: Executor, send: Send, ready: Callable[[], bool] = lambda: True
    ) -> None:
        self._node = node
        self._connections = connections
        self._executor = executor
        self._send = send
        self._ready = ready
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(SERVED_AT_ONCE_MAX)
        self.served = 0
        self.refused = 0
        self.entries = 0

    def asked(self, peer: int, transfer: int, scope: Scope) -> None:
        """Serve an ask in the background."""
        refuse = len(self._tasks) >= WAITING_MAX or not self._ready()
        work = self._refuse(peer, transfer) if refuse else self._serve(peer, transfer, scope)
        task = asyncio.get_running_loop().create_task(work, name=f"transfer to node {peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all transfers."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refuse(self, peer: int, transfer: int) -> None:
        self.refused += 1
        await self._finish(peer, transfer, 0, End.REFUSED)

    async def _finish(self, peer: int, transfer: int, count: int, end: End) -> None:
        # An asker that is gone does not mind; one that did not get this asks again after its silence.
        with contextlib.suppress(OSError):
            await self._send(peer, message_of(Kind.END, transfer, end_of(count, end)))

    async def _serve(self, peer: int, transfer: int, scope: Scope) -> None:
        async with self._turns:
            count, end = 0, End.COMPLETE
            try:
                count = await self._send_parts(peer, transfer, scope)
            except OSError:
                end = End.FAILED
            await self._finish(peer, transfer, count, end)
            self.served += 1

    async def _send_parts(self, peer: int, transfer: int, scope: Scope) -> int:
        loop = asyncio.get_running_loop()
        chunks = self._connections.chunks()
        count, due = 0, loop.time()
        while True:
            parts = await loop.run_in_executor(self._executor, self._next_parts, chunks, scope)
            if parts is None:
                return count
            for records in parts:
                message = message_of(Kind.PART, transfer, pack_records(records))
                await self._send(peer, message)
                count += len(records)
                self.entries += len(records)
                due = max(due, loop.time() - 0.1) + len(message) / BYTES_PER_S_MAX
                await asyncio.sleep(max(0.0, due - loop.time()))

    def _next_parts(self, chunks: Iterator[tuple[Keys, Values]], scope: Scope) -> list[Records] | None:
        """The next chunk of the map as records in scope; None at the end. Runs in a thread."""
        chunk = next(chunks, None)
        if chunk is None:
            return None
        keys, values = chunk
        chosen = scope.select(keys, values) & (values["state"] != State.SYN)
        records = from_entries(keys[chosen], values[chosen], self._node)
        return [records[i : i + PART_RECORDS_MAX] for i in range(0, len(records), PART_RECORDS_MAX)]
