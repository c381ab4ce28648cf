# SPDX-License-Identifier: Apache-2.0
"""Connection tables from gateway to gateway: the whole table to a joiner, single buckets to repair a difference.

Whoever needs entries asks one other gateway, which reads its map in a thread and sends them as reliable unicast, at a
bounded rate and beside the ring, so that no token waits. Records that arrive over the ring meanwhile are newer than
what is transferred and are not overwritten. When all is there, entries that only the asker has are dropped, except
its own (its packet path may have opened them while it was away): those are returned for publishing.
"""

import asyncio
import contextlib
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from ebpf.layout import LAYOUT_VERSION, State
from ebpf.maps import Map
from lb.connections.exchange import Payload, monotonic_s
from lb.connections.records import (
    DIGEST_BUCKETS,
    Hashes,
    Keys,
    Records,
    RecordsError,
    Values,
    bucket_of,
    from_entries,
    hash_keys,
    live,
    pack_records,
    to_entries,
    unpack_records,
    well_formed,
)

PART_RECORDS_MAX = 4096
# About 400,000 entries a second: a million in under three seconds, and half a core idle beside it.
BYTES_PER_S_MAX = 32 << 20
SERVED_AT_ONCE_MAX = 2
WAITING_MAX = 8
SILENCE_S = 5.0
COMPACT_AFTER = 1 << 16

_HEADER = struct.Struct("<2sBBI")
_ASK = struct.Struct("<B7x32s")
_END = struct.Struct("<QB7x")
_MAGIC = b"CT"

Send = Callable[[int, bytes | bytearray], Awaitable[object]]


class Kind(IntEnum):
    """Messages of a transfer."""

    ASK = 1
    PART = 2
    END = 3


class End(IntEnum):
    """How a transfer ended at the giver."""

    COMPLETE = 0
    REFUSED = 1  # too many at once, or its own table is not complete
    FAILED = 2


class TransferError(Exception):
    """A transfer did not come to its end; another giver may do better."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which entries are meant: of one owner or (0) of all, in some digest buckets or (None) in all."""

    owner: int = 0
    buckets: tuple[int, ...] | None = None

    def pack(self) -> bytes:
        """Fixed-size bytes."""
        bits = np.zeros(DIGEST_BUCKETS, np.uint8)
        bits[slice(None) if self.buckets is None else list(self.buckets)] = 1
        return _ASK.pack(self.owner, np.packbits(bits).tobytes())

    @classmethod
    def unpack(cls, data: Payload) -> "Scope":
        """The inverse of `pack`. Raises RecordsError."""
        if len(data) != _ASK.size:
            raise RecordsError(f"connection transfer: an ask of {len(data)} bytes")
        owner, bits = _ASK.unpack(data)
        chosen = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8)))
        return cls(owner, None if len(chosen) == DIGEST_BUCKETS else tuple(int(bucket) for bucket in chosen))

    def select(self, keys: Keys, values: Values) -> npt.NDArray[np.bool_]:
        """Which entries are in scope."""
        chosen: npt.NDArray[np.bool_] = np.ones(len(keys), np.bool_)
        if self.owner:
            chosen &= values["owner"] == self.owner
        if self.buckets is not None:
            wanted = np.zeros(DIGEST_BUCKETS, np.bool_)
            wanted[list(self.buckets)] = True
            chosen &= wanted[bucket_of(hash_keys(keys))]
        return chosen


def _message(kind: Kind, transfer: int, body: bytes | bytearray) -> bytes:
    return _HEADER.pack(_MAGIC, kind, LAYOUT_VERSION & 0xFF, transfer) + bytes(body)


def read_message(data: Payload) -> tuple[Kind, int, memoryview]:
    """Kind, number of the transfer and body. Raises RecordsError."""
    if len(data) < _HEADER.size:
        raise RecordsError("connection transfer: too short")
    magic, kind, layout, transfer = _HEADER.unpack_from(data)
    if magic != _MAGIC or kind not in Kind.__members__.values():
        raise RecordsError("connection transfer: not a message of this kind")
    if layout != LAYOUT_VERSION & 0xFF:
        raise RecordsError(f"connection transfer: layout {layout}, this gateway has {LAYOUT_VERSION}")
    return Kind(kind), transfer, memoryview(data)[_HEADER.size :]


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
            await self._send(peer, _message(Kind.END, transfer, _END.pack(count, end)))

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
                message = _message(Kind.PART, transfer, pack_records(records))
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

    async def fetch(self, giver: int, scope: Scope = Scope(), *, prune: bool = False) -> Records:
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
                await self._send(giver, _message(Kind.ASK, running.transfer, scope.pack()))
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
        end = End.FAILED
        if len(body) == _END.size:
            count, code = _END.unpack(body)
            end = End(code) if code in End.__members__.values() else End.FAILED
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
