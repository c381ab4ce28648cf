# SPDX-License-Identifier: Apache-2.0
"""Both ends of a multicast: the queue of a node's own messages, and the stream in which everybody's are delivered.

Small messages are packed: one parcel carries any number of consecutive messages of one channel and order, as a table of
sizes and the payloads behind it. Nobody but the receiving application looks at single messages again.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sync.events import Order, Payload, Refusal
from sync.ring.token import Kind, Parcel

PARCELS_PER_VISIT_MAX = 12
"""12 parcels of each of 255 nodes fit the token's limit."""

MUCH_BYTES = 65536
"""So much payload hurries the token even if none of it is urgent."""


class RelayTag(NamedTuple):
    """Names a request that is carried out for a node outside of the ring."""

    peer: int
    tag: int


Tag = int | RelayTag


class Limits(NamedTuple):
    """See ``RingConfig`` for the meaning and the defaults."""

    queue_bytes: int
    queue_requests: int
    message_bytes: int
    visit_bytes: int


class _Request:
    __slots__ = ("bytes", "channel", "next", "order", "payloads", "tag")

    def __init__(self, tag: Tag, channel: int, order: Order, payloads: Sequence[Payload], size: int) -> None:
        self.tag = tag
        self.channel = channel
        self.order = order
        self.payloads = payloads
        self.bytes = size
        self.next = 0


class Load(NamedTuple):
    """What becomes one parcel. ``tags``: requests that end in it, with the index of their last message in it."""

    channel: int
    order: Order
    messages: int
    body: bytes
    tags: list[tuple[Tag, int]]


def pack(payloads: Sequence[Payload]) -> bytes:
    """A parcel's body."""
    count = len(payloads)
    if count == 1:
        return b"".join((len(payloads[0]).to_bytes(4, "little"), payloads[0]))
    return b"".join((struct.pack(f"<{count}I", *map(len, payloads)), *payloads))


class Outbox:
    """Messages that wait for the token: small requests first, bulk behind; bounded, with back-pressure."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0
        self.urgent = False
        """Something in it is urgent, or there is much of it: the token should hurry."""
        self._small: deque[_Request] = deque()
        self._bulk: deque[_Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._small or self._bulk)

    def put(
        self, tag: Tag, channel: int, order: Order, payloads: Sequence[Payload], bulk: bool, urgent: bool = True
    ) -> Refusal | None:
        """Queue a request, or say why not."""
        sizes = [len(payload) for payload in payloads]
        size = sum(sizes)
        limits = self.limits
        if not sizes or max(sizes) > limits.message_bytes:
            return Refusal.TOO_LARGE
        full = self.bytes and self.bytes + size > limits.queue_bytes
        if full or len(self._small) + len(self._bulk) >= limits.queue_requests:
            return Refusal.QUEUE_FULL
        self.bytes += size
        self.urgent = self.urgent or urgent or self.bytes >= MUCH_BYTES
        (self._bulk if bulk else self._small).append(_Request(tag, channel, order, payloads, size))
        return None

    def take(self, free: int) -> list[Load]:
        """What may go onto the token in this visit: at most ``visit_bytes``, or one larger message.

        ``free``: payload bytes the token has room for.
        """
        loads: list[Load] = []
        room = min(self.limits.visit_bytes, free)
        force = free >= self.limits.message_bytes
        for queue in (self._small, self._bulk):
            while queue and room > 0 and len(loads) < PARCELS_PER_VISIT_MAX:
                load, used = self._fill(queue, room, force and not loads)
                if load is None:
                    room = 0
                    break
                loads.append(load)
                room -= used
        self.urgent = self.bytes >= MUCH_BYTES or (self.urgent and bool(self))
        return loads

    def _fill(self, queue: deque[_Request], room: int, force: bool) -> tuple[Load | None, int]:
        """One parcel of consecutive requests of one channel and order."""
        channel, order = queue[0].channel, queue[0].order
        chosen: list[Payload] = []
        tags: list[tuple[Tag, int]] = []
        used = 0
        while queue and queue[0].channel == channel and queue[0].order == order:
            request = queue[0]
            size = self._move(request, chosen, room - used, force and not chosen)
            used += size
            self.bytes -= size
            if request.next < len(request.payloads):
                break
            tags.append((request.tag, len(chosen) - 1))
            queue.popleft()
        if not chosen:
            return None, 0
        return Load(channel, order, len(chosen), pack(chosen), tags), used

    @staticmethod
    def _move(request: _Request, chosen: list[Payload], room: int, force: bool) -> int:
        if request.next == 0 and request.bytes <= room:
            chosen.extend(request.payloads)
            request.next = len(request.payloads)
            return request.bytes
        used = 0
        while request.next < len(request.payloads):
            payload = request.payloads[request.next]
            if used + len(payload) > room and not (force and not used):
                break
            chosen.append(payload)
            used += len(payload)
            request.next += 1
            force = False
        return used

    def drop_started(self) -> list[Tag]:
        """Forget requests of which a part is on a token that is lost to this node; their tags."""
        tags = []
        for queue in (self._small, self._bulk):
            if queue and queue[0].next:
                request = queue.popleft()
                self.bytes -= sum(len(payload) for payload in request.payloads[request.next :])
                tags.append(request.tag)
        return tags

    def drain(self) -> list[Tag]:
        """Forget everything; the tags of what was queued."""
        tags = [request.tag for request in (*self._small, *self._bulk)]
        self._small.clear()
        self._bulk.clear()
        self.bytes = 0
        return tags


class Stream:
    """Received parcels in order of position, up to delivery."""

    def __init__(self, next_position: int = 0) -> None:
        self.next_position = next_position
        """Of the next message not yet received."""
        self.stable = 0
        self._pending: deque[Parcel] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def take(self, parcels: Sequence[Parcel]) -> None:
        """Take what is new of a token's parcels, and what has become of views that were cancelled."""
        for parcel in parcels:
            if parcel.position >= self.next_position:
                self._pending.append(parcel)
                self.next_position = parcel.position + parcel.count
            elif parcel.kind != Kind.MESSAGES:
                self._replace(parcel)

    def _replace(self, twin: Parcel) -> None:
        for index, parcel in enumerate(self._pending):
            if parcel.position == twin.position:
                self._pending[index] = twin

    def pending_views(self) -> list[Parcel]:
        return [parcel for parcel in self._pending if parcel.kind == Kind.VIEW]

    def ready(self) -> Iterator[Parcel]:
        """Parcels that may be delivered now: safe ones only when all have them, and nothing overtakes."""
        pending = self._pending
        while pending:
            parcel = pending[0]
            if parcel.order == Order.SAFE and parcel.kind != Kind.CANCELLED and parcel.position >= self.stable:
                return
            yield pending.popleft()
