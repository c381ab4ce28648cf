# SPDX-License-Identifier: Apache-2.0
"""Multicasts of nodes outside of the ring, sent through a member (open group, thesis section 3.8)."""

from __future__ import annotations

from math import inf

from sync.config import RingConfig
from sync.events import Done, Multicast, Order, Reason, Refusal, Refused
from sync.ring.messages import Relay, Relayed
from sync.ring.multicast import RelayTag
from sync.ring.regeneration import Ring

RELAY_PATIENCE = 10
"""A relayed message is given up after that many failure budgets."""


class _Request:
    """A message sent through a member."""

    __slots__ = ("handle", "tag", "until")

    def __init__(self, tag: int, handle: int, until: float) -> None:
        self.tag = tag
        self.handle = handle
        self.until = until


class OpenGroup:
    """Both ends: a node that asks a member, and a member that is asked. Bounded by ``relays_max``."""

    def __init__(self, config: RingConfig, ring: Ring) -> None:
        self._config = config
        self._ring = ring
        self._requests: dict[int, _Request] = {}
        self._last_id = 0

    def deadline(self) -> float:
        return min([request.until for request in self._requests.values()]) if self._requests else inf

    def ask(self, now: float, event: Multicast, via: int) -> None:
        """Have ``via`` multicast the one message of this event."""
        ring = self._ring
        if via not in ring.eligible:
            refusal = Refusal.UNKNOWN_PEER
        elif len(event.payloads) != 1 or len(event.payloads[0]) > self._config.message_bytes_max:
            refusal = Refusal.TOO_LARGE
        elif len(self._requests) >= self._config.relays_max:
            refusal = Refusal.QUEUE_FULL
        else:
            self._last_id += 1
            handle = ring.control(now, via, Relay(self._last_id, event.channel, event.order, event.payloads[0]))
            until = now + RELAY_PATIENCE * ring.timers.failure_after
            self._requests[self._last_id] = _Request(event.tag, handle, until)
            return
        ring.effects.append(Refused(event.tag, refusal))

    def undelivered(self, handle: int) -> None:
        self._fail([id for id, request in self._requests.items() if request.handle == handle], Refusal.UNREACHABLE)

    def expire(self, now: float) -> None:
        """The member that took the message may be gone: whether it was delivered is unknown."""
        self._fail([id for id, request in self._requests.items() if now >= request.until], Refusal.HISTORY_LOST)

    def _fail(self, ids: list[int], refusal: Refusal) -> None:
        for id in ids:
            self._ring.effects.append(Refused(self._requests.pop(id).tag, refusal))

    def on_relay(self, now: float, peer: int, message: Relay, objection: Refusal | None) -> None:
        """A node outside asks this one. ``objection``: why it takes no requests at present."""
        ring = self._ring
        tag = RelayTag(peer, message.tag)
        refusal = Refusal.LEFT if ring.joining else objection
        if refusal is None:
            refusal = ring.outbox.put(tag, message.channel, Order(message.order), [message.payload], False)
        if refusal is not None:
            ring.trace(Reason.RELAY_REFUSED, peer)
            ring.relay_result(tag, -1, refusal)
        else:
            ring.ask_haste(now)

    def on_relayed(self, message: Relayed) -> None:
        request = self._requests.pop(message.tag, None)
        if request is None:
            self._ring.trace(Reason.STALE_MESSAGE, 0)
        elif message.refusal:
            self._ring.effects.append(Refused(request.tag, Refusal(message.refusal)))
        else:
            self._ring.effects.append(Done(request.tag, message.position))
