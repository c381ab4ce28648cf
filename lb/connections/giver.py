# SPDX-License-Identifier: Apache-2.0
"""The side of a transfer that has the entries: reads its map in a thread, and sends at a bounded rate."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from ebpf.layout import State
from ebpf.map_access import Map
from lb.connections.records import Keys, Records, Values, from_entries, pack_records
from lb.connections.serving import Pace, Serving
from lb.connections.transfer import End, Kind, Scope, Send, message_of

PART_RECORDS_MAX = 4096
SERVED_AT_ONCE_MAX = 2
WAITING_MAX = 8


class Giver(Serving):
    """Serves other gateways' asks for connections."""

    def __init__(
        self, node: int, connections: Map, executor: Executor, send: Send, ready: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(send, ready, asks_max=WAITING_MAX, name="transfer")
        self._node = node
        self._connections = connections
        self._executor = executor
        self._turns = asyncio.Semaphore(SERVED_AT_ONCE_MAX)
        self.served = 0

    def asked(self, peer: int, transfer: int, scope: Scope) -> None:
        """Serve an ask in the background."""
        self._answer(peer, transfer, lambda: self._serve(peer, transfer, scope))

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
        count, pace = 0, Pace()
        while True:
            parts = await loop.run_in_executor(self._executor, self._next_parts, chunks, scope)
            if parts is None:
                return count
            for records in parts:
                message = message_of(Kind.PART, transfer, pack_records(records))
                await self._send(peer, message)
                count += len(records)
                self.entries += len(records)
                await pace.sent(len(message))

    def _next_parts(self, chunks: Iterator[tuple[Keys, Values]], scope: Scope) -> list[Records] | None:
        """The next chunk of the map as records in scope; None at the end. Runs in a thread."""
        chunk = next(chunks, None)
        if chunk is None:
            return None
        keys, values = chunk
        chosen = scope.select(keys, values) & (values["state"] != State.SYN)
        records = from_entries(keys[chosen], values[chosen], self._node)
        return [records[i : i + PART_RECORDS_MAX] for i in range(0, len(records), PART_RECORDS_MAX)]
