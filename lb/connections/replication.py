# SPDX-License-Identifier: Apache-2.0
"""Keeps the gateways' connection tables equal: the stream of records, the transfer to a joiner, and repair.

A gateway that joins takes the whole table from a member before it counts as complete. After that, records keep it up
to date. Once in a while every gateway publishes a digest of the entries it owns; whoever finds that its copy differs,
twice in a row, fetches the buckets that do. UDP connections that go on are told again, so that peers' copies do
not expire while the owner's live on.
"""

import asyncio
import logging
import random
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from ebpf.layout import State
from ebpf.maps import Maps
from ebpf.ring_buffer import RingBuffer
from lb.configuration.node import NodeConfig
from lb.connections.exchange import RECORDS_PER_MESSAGE_MAX, RecordReceiver, RecordSender, monotonic_s
from lb.connections.giver import Giver
from lb.connections.joining import Joining
from lb.connections.records import Digest, Records, RecordsError, from_entries, live, pack_records
from lb.connections.taker import Taker
from lb.connections.transfer import Kind, Scope, TransferError, read_message
from lb.process.workers import worker_pool
from sync.driver import MulticastFailed, Ring
from sync.events import Deliver, PeerMessage, TokenVisit, View

CHANNEL_RECORDS = 16
CHANNEL_TRANSFER = 18
CHANNEL_DIGESTS = 20

# While records come they are drained this often, and for a while after; else whenever the token has been here. What is
# drained hastens the token: more often would have it turn for a trickle of connections, and every turn costs every
# gateway a wake-up; less often would let records wait for as long as an idle turn.
DRAIN_EVERY_S = 0.008
BUSY_FOR_S = 1.0
REPAIR_INTERVAL_S = 30.0
REPAIR_BUCKETS_MAX = 16

_DIGEST_HEADER = struct.Struct("<B7x")
log = logging.getLogger("lb.replication")


class Replication:
    """Replication of one gateway. `on_complete(bool)` is told when the table becomes complete or stops being it."""

    def __init__(
        self,
        node: NodeConfig,
        maps: Maps,
        ring: Ring,
        spawn: Callable[[Coroutine[Any, Any, Any], str], None],
        on_complete: Callable[[bool], None],
    ) -> None:
        self._node = node.node.id
        self._maps = maps
        self._ring = ring
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._worker = worker_pool(node, 1, "connections")
        self._source = RingBuffer(maps.records)
        self.sender = RecordSender(self._node, self._source, self._offer)
        self.receiver = RecordReceiver(
            maps.connections, self._worker, self._loop.call_soon_threadsafe, on_shed=self._shed
        )
        self.giver = Giver(self._node, maps.connections, self._worker, self._send, lambda: self.complete)
        self.taker = Taker(self._node, maps.connections, self._worker, self._send)
        self.receiver.on_writing = self.taker.note_writing
        self.joining = Joining(self._node, "connections", self._fetch, on_complete)
        self.repairs = 0
        self.repaired_entries = 0
        self.refused_messages = 0
        self._repairing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._busy_until = 0.0
        self._suspects: dict[int, frozenset[int]] = {}
        self._comparing = False
        self._closed = False
        ring.subscribe(CHANNEL_RECORDS, self._records)
        ring.subscribe(CHANNEL_DIGESTS, self._digest)
        ring.on_token(self._token)
        ring.subscribe_peer(CHANNEL_TRANSFER, self._transfer_message)

    def start(self) -> None:
        """Begin draining the packet path's records."""
        self._repairing = self._loop.create_task(self._repair_for_ever(), name="repair of connections")

    async def close(self) -> None:
        """Stop; the tables stay."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._repairing is not None:
            self._repairing.cancel()
            await asyncio.gather(self._repairing, return_exceptions=True)
        await self.joining.close()
        await self.giver.close()
        self.receiver.close()
        self._worker.shutdown(wait=True)

    @property
    def complete(self) -> bool:
        """Whether this gateway's table is its group's."""
        return self.joining.complete

    def counts(self) -> dict[str, int]:
        """Counters by name, for metrics."""
        sent, received = self.sender.counts, self.receiver.counts
        return {
            "sent": sent.sent,
            "send_refused": sent.refused,
            "backlog": self.sender.backlog,
            "received": received.written,
            "received_shed": received.shed,
            "received_malformed": received.malformed + received.refused_messages + self.refused_messages,
            "failed_writes": received.failed_writes,
            "transferred_in": self.taker.fetched,
            "transferred_out": self.giver.entries,
            "dropped_stale": self.taker.dropped,
            "repairs": self.repairs,
            "repaired": self.repaired_entries,
        }

    # --- the stream --------------------------------------------------------------------------------------------------

    def take_view(self, view: View) -> None:
        """A view was committed: who joins fetches the table, and whoever was alone begins to tell."""
        self.sender.alone = len(view.members) == 1
        self.joining.take_view(view)

    def _token(self, _visit: TokenVisit) -> None:
        if self._timer is None and self._source.backlog:
            self._poll()

    def _poll(self) -> None:
        now = self._loop.time()
        more = False
        if self._source.backlog or self.sender.backlog:
            self._busy_until = now + BUSY_FOR_S
            more = self.sender.poll()
        if now < self._busy_until:
            self._timer = self._loop.call_later(0.0 if more else DRAIN_EVERY_S, self._poll)
        else:
            self._timer = None

    def _offer(self, message: bytes) -> bool:
        return self._ring.offer(CHANNEL_RECORDS, message, urgent=True)

    def _records(self, batch: Deliver) -> None:
        if batch.origin != self._node:
            for payload in batch.payloads():
                self.receiver.receive(payload)

    def _shed(self) -> None:
        log.warning("records were shed: this gateway is slower than the ring; its table is repaired by and by")

    # --- transfer ----------------------------------------------------------------------------------------------------

    async def _send(self, peer: int, message: bytes) -> None:
        try:
            await self._ring.send(peer, CHANNEL_TRANSFER, message)
        except MulticastFailed as error:
            raise OSError(f"node {peer} was not reached: {error}") from None

    def _transfer_message(self, message: PeerMessage) -> None:
        if self._closed:
            return
        try:
            kind, transfer, body = read_message(message.payload)
            if kind is Kind.ASK:
                self.giver.asked(message.peer, transfer, Scope.unpack(body))
            else:
                self.taker.received(message.peer, kind, transfer, body)
        except RecordsError as error:
            self.refused_messages += 1
            log.warning("node %d: %s", message.peer, error)

    async def _fetch(self, giver: int) -> None:
        await self._publish(await self._take(giver, Scope()))

    async def _take(self, giver: int, scope: Scope) -> Records:
        # One thread for both kinds of writes, or a record could slip in between a transfer's check and its write.
        self.receiver.inline = False
        try:
            return await self.taker.fetch(giver, scope, prune=True)
        finally:
            self.receiver.inline = True

    async def _publish(self, records: Records) -> None:
        for first in range(0, len(records), RECORDS_PER_MESSAGE_MAX):
            message = pack_records(records[first : first + RECORDS_PER_MESSAGE_MAX])
            while not self._ring.offer(CHANNEL_RECORDS, message):
                await self._ring.wait_for_room()

    # --- repair ------------------------------------------------------------------------------------------------------

    async def _repair_for_ever(self) -> None:
        while True:
            # Gateways that were started together do not scan together.
            await asyncio.sleep(REPAIR_INTERVAL_S * random.uniform(0.8, 1.2))
            if self.complete and not self.sender.alone:
                digest, refresh = await self._loop.run_in_executor(self._worker, self._survey)
                self._ring.offer(CHANNEL_DIGESTS, _DIGEST_HEADER.pack(self._node) + digest.pack())
                await self._publish(refresh)

    def _survey(self) -> tuple[Digest, Records]:
        """Digest of the entries this gateway owns, and its live UDP connections to tell again. In the worker."""
        digest, horizon = Digest(), monotonic_s() - int(2 * REPAIR_INTERVAL_S)
        told: list[Records] = [from_entries(np.zeros(0, self._maps.connections.spec.key), _no_values(self._maps), 0)]
        for keys, values in self._maps.connections.chunks():
            mine = (values["owner"] == self._node) & live(values)
            digest.add(keys[mine], values[mine])
            again = mine & (values["state"] == State.UDP) & (values["last_seen_s"] >= max(horizon, 0))
            told.append(from_entries(keys[again], values[again], self._node))
        return digest, np.concatenate(told)

    def _digest(self, batch: Deliver) -> None:
        if self._closed or self._comparing or not self.complete or batch.origin == self._node:
            return
        try:
            for payload in batch.payloads():
                theirs = Digest.unpack(memoryview(payload)[_DIGEST_HEADER.size :])
        except RecordsError:
            self.refused_messages += 1
            return
        self._comparing = True
        self._spawn(self._compare(batch.origin, theirs), "compare connections")

    async def _compare(self, owner: int, theirs: Digest) -> None:
        try:
            mine = await self._loop.run_in_executor(self._worker, self._copy_of, owner)
            different = frozenset(int(bucket) for bucket in mine.differing(theirs))
            # Connections come and go between two surveys: only what differs for longer is a loss.
            lasting = sorted(different & self._suspects.get(owner, frozenset()))
            self._suspects[owner] = different
            if lasting:
                await self._repair(owner, tuple(lasting[:REPAIR_BUCKETS_MAX]))
        finally:
            self._comparing = False

    def _copy_of(self, owner: int) -> Digest:
        digest = Digest()
        for keys, values in self._maps.connections.chunks():
            theirs = (values["owner"] == owner) & live(values)
            digest.add(keys[theirs], values[theirs])
        return digest

    async def _repair(self, owner: int, buckets: tuple[int, ...]) -> None:
        before = self.taker.fetched
        try:
            await self._take(owner, Scope(owner, buckets))
        except TransferError as error:
            log.info("repair of connections: %s", error)
        finally:
            self.repairs += 1
            self.repaired_entries += self.taker.fetched - before


def _no_values(maps: Maps) -> np.ndarray[Any, Any]:
    return np.zeros(0, maps.connections.spec.value)
