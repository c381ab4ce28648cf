# SPDX-License-Identifier: Apache-2.0
"""What a node gives out: messages in order, views, outcomes of its own requests.

The lowest of the ring's layers (delivery, leases, holding, circulation, regeneration): each is a class that extends the
one below, because all of them are about the one token this node has or waits for.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from sync.config import RingConfig
from sync.events import Deliver, Done, Effect, Order, Reason, Refusal, Refused, Trace, View, ViewChanged
from sync.ring.membership import States, ViewEvent, ViewState
from sync.ring.messages import CHANNEL_CONTROL, Buffers, Message, Relayed, encode
from sync.ring.multicast import Limits, Outbox, RelayTag, Stream, Tag
from sync.ring.token import JOINER, Kind, Parcel, Proposal, Token


class Link(Protocol):
    """What the ring needs of the transport."""

    def send(self, now: float, peer: int, channel: int, buffers: Buffers, patience: float = 0.0) -> int: ...

    def send_unreliable(self, now: float, peer: int, channel: int, payload: bytes) -> None: ...

    def seek(self, now: float, peer: int) -> None: ...

    def cancel(self, handle: int) -> None: ...

    def ask(self, now: float, peer: int, handle: int) -> None: ...


class Delivery:
    """State of one node's part in the ring, and its delivering end.

    ``token`` is the live token while Eating, else the copy of the last visit.
    """

    def __init__(self, config: RingConfig, link: Link, incarnation: int, now: float, view_number: int) -> None:
        self.config = config
        self.timers = config.timers
        self.local = config.node
        self.incarnation = incarnation
        self.link = link
        self.eligible = set(config.peers)
        self.states = States()
        self.outbox = Outbox(
            Limits(config.queue_bytes_max, config.queue_requests_max, config.message_bytes_max, config.visit_bytes_max)
        )
        self.stream = Stream()
        self.token: Token | None = None
        self.view: View | None = None
        self.view_number = view_number
        """Highest view number this node has reserved or committed."""
        self.awaiting_view = False
        """Invited, and not yet in a committed view: nothing is delivered or sent before it."""
        self._founded_at = 0
        """Hop at which nobody was left who had the group's state (``Proposal.founding``)."""
        self._invited_at = 0
        """Hop of the last invitation: views of the group's past, added before, are not for this node."""
        self.now = now
        """The instant of the current step."""
        self.eating_until = inf
        self.hungry_until = inf
        self.effects: list[Effect] = []
        self.counters: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self._inflight: dict[int, list[tuple[Tag, int]]] = {}
        """Position of an own parcel on the token -> requests that end in it, with the index of their last message."""

    def _begin_stream(self, position: int = 0) -> None:
        """Another history than before, from this position on."""
        self.stream = Stream(position)
        self._founded_at = 0

    def _take(self, parcels: list[Parcel]) -> None:
        self.stream.take(parcels)
        for parcel in parcels:
            if parcel.kind == Kind.VIEW:
                self._reserve(parcel)

    def _reserve(self, parcel: Parcel) -> None:
        proposal = Proposal.decode(parcel.body)
        if (self.local, self.incarnation) in proposal.members:
            self.view_number = max(self.view_number, proposal.number)
            if self.states.view is not ViewState.RESERVE:
                self.states.on_view(ViewEvent.RESERVED)

    def deliver(self) -> None:
        """Give out what may be given out."""
        if not len(self.stream):
            return
        for parcel in self.stream.ready():
            if parcel.kind == Kind.MESSAGES:
                self._deliver_messages(parcel)
            elif parcel.kind == Kind.VIEW:
                self._commit(parcel)

    def _deliver_messages(self, parcel: Parcel) -> None:
        view = self.view
        if not self.awaiting_view and view is not None and parcel.added_hop >= self._founded_at:
            split = 4 * parcel.count
            body = parcel.body if isinstance(parcel.body, memoryview) else memoryview(parcel.body)
            self.effects.append(
                Deliver(
                    parcel.channel,
                    parcel.origin,
                    Order(parcel.order),
                    view.number,
                    parcel.position,
                    parcel.count,
                    body[:split],
                    body[split:],
                )
            )
        if parcel.origin == self.local:
            for tag, index in self._inflight.pop(parcel.position, ()):
                self._done(tag, parcel.position + index)

    def _commit(self, parcel: Parcel) -> None:
        proposal = Proposal.decode(parcel.body)
        if (self.local, self.incarnation) not in proposal.members:
            return
        if self.view is not None and proposal.number <= self.view.number:
            return
        if self.awaiting_view and parcel.added_hop < self._invited_at:
            return
        self.awaiting_view = False
        if proposal.founding:
            # A member may have delivered some of it already, in another branch: nobody delivers it in this one.
            self._founded_at = parcel.added_hop
            self._lose_inflight(Refusal.HISTORY_LOST)
        self._view_committed()
        members = tuple(id for id, _ in proposal.members)
        self.view = View(
            proposal.number,
            members,
            min(members),
            proposal.joined,
            proposal.serving,
            parcel.position,
            tuple(incarnation for _, incarnation in proposal.members),
            parcel.origin,
        )
        self.view_number = max(self.view_number, proposal.number)
        if self.states.view is ViewState.CHAOS:
            self.states.on_view(ViewEvent.RESERVED)
        if self.states.view is ViewState.RESERVE and not self.stream.pending_views():
            self.states.on_view(ViewEvent.COMMITTED)
        self.trace(Reason.VIEW_COMMITTED, parcel.origin)
        self.effects.append(ViewChanged(self.view))

    def _lose_inflight(self, refusal: Refusal) -> None:
        for tags in self._inflight.values():
            for tag, _ in tags:
                self._fail(tag, refusal)
        self._inflight.clear()
        for tag in self.outbox.drop_started():
            self._fail(tag, refusal)

    def _done(self, tag: Tag, position: int) -> None:
        if isinstance(tag, RelayTag):
            self.relay_result(tag, position, 0)
        else:
            self.effects.append(Done(tag, position))

    def _fail(self, tag: Tag, refusal: Refusal) -> None:
        if isinstance(tag, RelayTag):
            self.relay_result(tag, -1, refusal)
        else:
            self.effects.append(Refused(tag, refusal))

    def _view_committed(self) -> None:
        """A new view is in force."""

    def relay_result(self, tag: RelayTag, position: int, refusal: int) -> None:
        if tag.peer in self.eligible:
            self.control(self.now, tag.peer, Relayed(tag.tag, position, refusal))

    def control(self, now: float, peer: int, message: Message) -> int:
        return self.link.send(now, peer, CHANNEL_CONTROL, encode(message))

    def trace(self, reason: Reason, peer: int, token: Token | None = None, detail: str = "") -> None:
        """Count, and tell when asked to."""
        self.counters[reason] += 1
        if self.config.trace:
            if token is not None:
                ring = ",".join(f"{m.id}{'+' if m.flags & JOINER else ''}" for m in token.members)
                detail = (
                    f"{token.epoch.number}.{token.epoch.creator} hop {token.hop} [{ring}] next {token.next_position}"
                )
            self.effects.append(Trace(reason, peer, detail))
