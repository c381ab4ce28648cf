# SPDX-License-Identifier: Apache-2.0
"""The side of a transfer that lacks the entries: writes what comes, but over nothing newer, and drops what is gone."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ebpf.map_access import Map
from lb.connections.exchange import monotonic_s
from lb.connections.records import (
    Hashes,
    Keys,
    Records,
    RecordsError,
    Values,
    from_entries,
    hash_keys,
    live,
    to_entries,
    unpack_records,
    well_formed,
)
from lb.connections.transfer import EVERYTHING, End, Kind, Scope, Send, TransferError, message_of, read_end

SILENCE_S = 5.0
COMPACT_AFTER = 1 << 16


class Known:
    """A growing set of key hashes with fast bulk membership tests, for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sorted: Hashes = np.zeros(0, np.uint64)
        self._fresh: list[Hashes] = []
        self._fresh_count = 0

    def add(self, hashes: Hashes) -> None:
        """Take hashes in."""
        with self._lock:
            self._fresh.append(hashes)
            self._fresh_count += len(hashes)
            if self._fresh_count > COMPACT_AFTER + len(self._sorted) // 4:
                self._compact()

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of the hashes are in the set."""
        with self._lock:
            if self._fresh_count:
                self._compact()
            known = self._sorted
        if not len(known):
            return np.zeros(len(hashes), np.bool_)
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        found: npt.NDArray[np.bool_] = known[places] == hashes
        return found

    def _compact(self) -> None:
        # Sorting, not np.unique: that hashes integers, and takes seconds for a million. Repetitions do no harm.
        self._sorted = np.concatenate([self._sorted, *self._fresh])
        self._sorted.sort()
        self._fresh, self._fresh_count = [], 0


@dataclass(slots=True)
class _Running:
    transfer: int
    giver: int
    scope: Scope
    done: "asyncio.Future[int]"
    received: Known = field(default_factory=Known)
    newer: Known = field(default_factory=Known)
    count: int = 0
    last_s: float = 0.0


class Taker:
    """Fetches entries from one other gateway at a time.

    Before keys from the ring are written, `note_writing` must
    be told of them, on the same worker thread (as `RecordReceiver.on_writing`).
    """

    def __init__(self, node: int, connections: Map, executor: Executor, send: Send) -> None:
        self._node = node
        self._connections = connections
        self._executor = executor
        self._send = send
        self._transfer = 0
        self._running: _Running | None = None
        self._lock = asyncio.Lock()
        self.fetched = 0
        self.dropped = 0

    def note_writing(self, keys: Keys) -> None:
        """These keys are about to be written from the ring: a running transfer must not overwrite them."""
        running = self._running
        if running is not None:
            running.newer.add(hash_keys(keys))

    async def fetch(self, giver: int, scope: Scope = EVERYTHING, *, prune: bool = False) -> Records:
        """Get the entries in scope from a gateway; with `prune` drop what it does not have.

        Returns this node's own entries that the giver does not know, for publishing (none without `prune`).
        Raises TransferError when the giver refuses, falls silent or fails.
        """
        async with self._lock:
            loop = asyncio.get_running_loop()
            self._transfer = self._transfer + 1 & 0xFFFFFFFF
            running = _Running(self._transfer, giver, scope, loop.create_future(), last_s=time.monotonic())
            self._running = running
            try:
                await self._send(giver, message_of(Kind.ASK, running.transfer, scope.pack()))
                await self._until_done(running)
                if not prune:
                    return from_entries(*_nothing(self._connections), self._node)
                return await loop.run_in_executor(self._executor, self._prune, running)
            except OSError as error:
                raise TransferError(f"connections from node {giver}: {error}") from error
            finally:
                self._running = None

    async def _until_done(self, running: _Running) -> int:
        while True:
            rest = running.last_s + SILENCE_S - time.monotonic()
            try:
                async with asyncio.timeout(max(rest, 0.001)):
                    return await asyncio.shield(running.done)
            except TimeoutError:
                if time.monotonic() >= running.last_s + SILENCE_S:
                    raise TransferError(
                        f"connections from node {running.giver}: nothing for {SILENCE_S:.0f} s"
                    ) from None

    def received(self, peer: int, kind: Kind, transfer: int, body: memoryview) -> None:
        """A PART or END has come."""
        running = self._running
        if running is None or (peer, transfer) != (running.giver, running.transfer) or running.done.done():
            return
        running.last_s = time.monotonic()
        if kind is Kind.PART:
            # One worker, so parts are written in order and before the END that follows them.
            asyncio.get_running_loop().run_in_executor(self._executor, self._write, running, body)
        else:
            self._ended(running, body)

    def _ended(self, running: _Running, body: memoryview) -> None:
        count, end = read_end(body)
        if end is not End.COMPLETE:
            text = f"connections from node {running.giver}: {end.name.lower()}"
            running.done.set_exception(TransferError(text))
            return
        loop = asyncio.get_running_loop()
        written = loop.run_in_executor(self._executor, lambda: running.count)
        written.add_done_callback(lambda task: self._check_count(running, count, task.result()))

    @staticmethod
    def _check_count(running: _Running, announced: int, written: int) -> None:
        if running.done.done():
            return
        if announced == written:
            running.done.set_result(written)
        else:
            text = f"connections from node {running.giver}: {announced} announced, {written} arrived"
            running.done.set_exception(TransferError(text))

    def _write(self, running: _Running, body: memoryview) -> None:
        """Write one part into the map; runs in the worker thread."""
        try:
            records = unpack_records(body)
        except RecordsError:
            return  # shows as a wrong count at the end
        count = len(records)
        records = records[well_formed(records)]
        keys, values = to_entries(records, monotonic_s())
        hashes = hash_keys(keys)
        running.received.add(hashes)
        stale = running.newer.contains(hashes)
        if stale.any():
            keys, values = keys[~stale], values[~stale]
        with contextlib.suppress(OSError):
            self.fetched += self._connections.update(keys, values)
            running.count += count
            # Writing is progress too: a slow machine may have much to write after the last part has come.
            running.last_s = time.monotonic()

    def _prune(self, running: _Running) -> Records:
        """Drop what the giver does not have; return own entries it does not know. Runs in the worker thread."""
        own: list[tuple[Keys, Values]] = []
        for keys, values in self._connections.chunks():
            chosen = running.scope.select(keys, values)
            keys, values = keys[chosen], values[chosen]
            hashes = hash_keys(keys)
            unknown = ~(running.received.contains(hashes) | running.newer.contains(hashes))
            mine = unknown & (values["owner"] == self._node) & live(values)
            own.append((keys[mine], values[mine]))
            self.dropped += self._connections.delete(keys[unknown & ~mine])
        if not own:
            own = [_nothing(self._connections)]
        return from_entries(np.concatenate([k for k, _ in own]), np.concatenate([v for _, v in own]), self._node)


def _nothing(connections: Map) -> tuple[Keys, Values]:
    return np.zeros(0, connections.spec.key), np.zeros(0, connections.spec.value)
