# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel's connection tracking of all gateways equal, as far as a survivor needs it.

Every gateway tells the others what its kernel reports of assured entries, and writes what it is told into its own
kernel's table at once: after a death the survivor's firewall and translation know the connections already, and nothing
has to be committed. The kernel names in each event the socket that caused it, so what a gateway was told never goes
round again. Nobody owns an entry: it ends by the timeout that peers were told, moved on as long as packets pass
somewhere (`lb.conntrack.told`).
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from itertools import chain

from lb.configuration.fields import IpAddress
from lb.configuration.node import NodeConfig, split_address
from lb.connections.joining import Joining
from lb.connections.records import RecordsError
from lb.connections.transfer import Kind
from lb.conntrack.entries import SEED_BYTES, Entries, Hasher, Hashes, hash_addresses, pack_addresses, to_tell
from lb.conntrack.handover import Giver, Table, Taker, read_ask
from lb.conntrack.inbox import Inbox
from lb.conntrack.kernel import EventReader, TableWriter, check_conntrack, dump_table
from lb.conntrack.listener import Listener, monotonic_s
from lb.conntrack.survey import Survey
from lb.conntrack.told import Told
from lb.process.workers import worker_pool
from sync.driver import MulticastFailed, Ring
from sync.events import Deliver, PeerMessage, View

CHANNEL_ENTRIES = 22
CHANNEL_TABLE = 23

# A ring that takes no more is offered the same again after this time.
OFFER_AGAIN_S = 0.003
# As for connection records: entries hasten the token that often.
HASTEN_EVERY_S = 0.008
log = logging.getLogger("lb.conntrack")


class ConntrackReplication:
    """Replication of one gateway's kernel table. `addresses()`: those that no other gateway can take over, by
    interface; `on_complete(bool)` is told when the table becomes complete or stops being it.

    Raises ConntrackUnavailable, with the remedy, when the kernel does not do what is needed.
    """

    def __init__(
        self,
        node: NodeConfig,
        ring: Ring,
        addresses: Callable[[], Mapping[str, Sequence[IpAddress]]],
        on_complete: Callable[[bool], None],
    ) -> None:
        self._node = node.node.id
        self._ring = ring
        self._addresses = addresses
        listen = node.ring.listen if node.ring is not None else ()
        self._ring_addresses = [ip_address(split_address(text)[0]) for text in listen]
        self._loop = asyncio.get_running_loop()
        check_conntrack()
        self._hasher = Hasher(secrets.token_bytes(SEED_BYTES))
        self._told = Told(self._hasher)
        self._writer = TableWriter()
        self._reader = EventReader(self._writer.port)
        self._listening, self._writing, self._reading = (
            worker_pool(node, 1, f"conntrack-{name}") for name in ("events", "writes", "reads")
        )
        self.inbox = Inbox(
            self._writer, self._told, self._hasher, self._writing, self._loop.call_soon_threadsafe, self._shed
        )
        self.listener = Listener(self._reader, self._hasher, self._told, self._own, self._hand_over, self._lost)
        self.survey = Survey(self._table, self._told, self._hasher, self._reading, self._publish, self._may_tell)
        self.giver = Giver(self._table, self._reading, self._send, lambda: self.complete, self._given)
        self.taker = Taker(self.inbox, self._writing, self._send)
        self.joining = Joining(self._node, "conntrack table", self._fetch, on_complete)
        self.sent = 0
        self.refused = 0
        self._outbox: deque[tuple[bytes, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._hastened_at = 0.0
        self._surveying: asyncio.Task[None] | None = None
        self._own_known: tuple[list[IpAddress], Hashes] = ([], hash_addresses(pack_addresses(())))
        self._closed = False
        ring.subscribe(CHANNEL_ENTRIES, self._entries)
        ring.subscribe_peer(CHANNEL_TABLE, self._table_message)

    def start(self) -> None:
        """Begin to listen to the kernel."""
        self._listening.submit(self._listen)
        self._surveying = self._loop.create_task(self.survey.run(), name="survey of conntrack")

    async def close(self) -> None:
        """Stop; the kernel's table stays."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._surveying is not None:
            self._surveying.cancel()
            await asyncio.gather(self._surveying, return_exceptions=True)
        await self.joining.close()
        await self.giver.close()
        self.listener.stop()
        for pool in (self._listening, self._writing, self._reading):
            await asyncio.to_thread(pool.shutdown)
        self.listener.close()
        self._reader.close()
        self._writer.close()

    @property
    def complete(self) -> bool:
        """Whether this gateway's table is its group's."""
        return self.joining.complete

    def counts(self) -> dict[str, int]:
        """Counters by name, for metrics."""
        events, inbox, written = self.listener.counts, self.inbox.counts, self._writer.counts
        return {
            "events": events.events,
            "events_lost": events.lost,
            "not_for_peers": events.not_for_peers,
            "superseded": events.superseded,
            "unread": self._reader.parser.unread,
            "sent": self.sent,
            "send_refused": self.refused,
            "received": inbox.received,
            "received_shed_messages": inbox.shed_messages,
            "received_malformed": inbox.malformed + inbox.refused_messages,
            "created": written.created,
            "changed": written.changed,
            "deleted": written.deleted,
            "present": written.present,
            "kernel_refused": written.refused,
            "failed_writes": inbox.failed_writes,
            "transferred_in": self.taker.fetched,
            "transferred_out": self.giver.entries,
            "surveys": self.survey.surveys,
            "surveys_failed": self.survey.failed,
            "told_by_survey": self.survey.told,
            **{f"kernel_refused_{name.lower()}": count for name, count in dict(self._writer.refusals).items()},
        }

    # --- what the kernel says ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            self.listener.run()
        except Exception:
            log.exception("conntrack events end here: entries reach peers by surveys only; restart lbd")

    def _own(self) -> Hashes:
        """Hashes of this gateway's own addresses. In any thread."""
        addresses, hashes = self._own_known
        now = [*self._ring_addresses, *chain.from_iterable(self._addresses().values())]
        if now != addresses:
            hashes = hash_addresses(pack_addresses(now))
            self._own_known = (now, hashes)
        return hashes

    def _table(self) -> Table:
        """What of the kernel's table is worth telling, in pieces."""
        for entries in dump_table():
            wanted = to_tell(entries, self._own())
            if len(wanted):
                yield wanted

    def _lost(self) -> None:
        self._loop.call_soon_threadsafe(self.survey.soon)

    # --- to the peers ------------------------------------------------------------------------------------------------

    def _hand_over(self, message: bytes, count: int) -> None:
        self._loop.call_soon_threadsafe(self._take_message, message, count)

    def _take_message(self, message: bytes, count: int) -> None:
        self._outbox.append((message, count))
        if self._timer is None and not self._closed:
            self._flush()

    def _flush(self) -> None:
        self._timer = None
        while self._outbox:
            message, count = self._outbox[0]
            if not self.listener.alone and not self._offer(message, count):
                self.refused += 1
                self._timer = self._loop.call_later(OFFER_AGAIN_S, self._flush)
                return
            self._outbox.popleft()
            self.listener.taken()

    def _offer(self, message: bytes, count: int) -> bool:
        now = self._loop.time()
        urgent = now - self._hastened_at >= HASTEN_EVERY_S
        offered = self._ring.offer(CHANNEL_ENTRIES, message, urgent=urgent)
        if offered:
            self.sent += count
            if urgent:
                self._hastened_at = now
        return offered

    async def _publish(self, message: bytes, count: int) -> None:
        while not self._offer(message, count):
            await self._ring.wait_for_room()

    def _may_tell(self) -> bool:
        return self.complete and not self.listener.alone

    # --- from the peers ----------------------------------------------------------------------------------------------

    def _entries(self, batch: Deliver) -> None:
        if batch.origin != self._node:
            for payload in batch.payloads():
                self.inbox.receive(payload)

    def _shed(self) -> None:
        log.warning("conntrack entries were shed: this gateway is slower than the ring; it asks for the table again")
        if not self.joining.fetching:
            self.joining.fetch_anew()

    # --- joining -----------------------------------------------------------------------------------------------------

    def take_view(self, view: View) -> None:
        """A view was committed: who joins fetches the table, and whoever was alone begins to tell."""
        self.listener.alone = len(view.members) == 1
        if self._node in view.joined:
            self._told.clear()
        self.joining.take_view(view)

    async def _send(self, peer: int, message: bytes | bytearray) -> None:
        try:
            await self._ring.send(peer, CHANNEL_TABLE, bytes(message))
        except MulticastFailed as error:
            raise OSError(f"node {peer} was not reached: {error}") from None

    def _table_message(self, message: PeerMessage) -> None:
        if self._closed:
            return
        try:
            kind, transfer, body = read_ask(message.payload)
        except RecordsError as error:
            self.inbox.counts.refused_messages += 1
            log.warning("node %d: %s", message.peer, error)
            return
        if kind is Kind.ASK:
            self.giver.asked(message.peer, transfer)
        else:
            self.taker.received(message.peer, kind, transfer, body)

    def _given(self, entries: Entries) -> None:
        """A joiner has these entries. If nobody else is there, everybody knows them."""
        view = self.joining.view
        if view is not None and len(view.members) == 2:
            self._told.note(entries, self._hasher(entries), monotonic_s())

    async def _fetch(self, giver: int) -> None:
        self._told.begin_transfer()
        try:
            await self.taker.fetch(giver)
        finally:
            self._told.end_transfer()
        # What only this gateway has.
        self.survey.soon()
