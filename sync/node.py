# SPDX-License-Identifier: Apache-2.0
"""A ring node without I/O: the transport and the ring put together behind ``step(now, event) -> effects``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from sync.config import Policy, RingConfig
from sync.events import (
    CriticalResource,
    Datagrams,
    Direct,
    Done,
    Effect,
    Eligible,
    Event,
    Leave,
    Left,
    LinkLost,
    Multicast,
    PeerMessage,
    Reason,
    Refusal,
    Refused,
    Rejoin,
    Standing,
    Timer,
    View,
)
from sync.link import PeerLink
from sync.ring.admission import Admission
from sync.ring.membership import States, TokenEvent, TokenState
from sync.ring.messages import (
    CHANNEL_CONTROL,
    CHANNEL_TOKEN,
    Answer,
    Beacon,
    Call,
    Haste,
    Malformed,
    Refuse,
    Relay,
    Relayed,
    decode,
)
from sync.ring.open_group import OpenGroup
from sync.ring.regeneration import Ring
from sync.ring.token import Token
from sync.transport.effects import (
    Arrived,
    Asked,
    Backlogged,
    Delivered,
    Randomness,
    Resolve,
    Transmit,
    TransportConfig,
    Undelivered,
)
from sync.transport.effects import Reason as Lost
from sync.transport.transport import Transport

_RESERVED_CHANNELS = (CHANNEL_TOKEN, CHANNEL_CONTROL)


class Node:
    """One node of a ring.

    ``incarnation``: 1..2^64-1, never used by this node before. ``rng``: where the transport's challenges come from.
    ``view_number``: the highest one this node has seen in an earlier life, if it remembers; keeps its history of
    views growing over restarts.
    """

    def __init__(
        self, config: RingConfig, *, incarnation: int, rng: Randomness, now: float, view_number: int = 0
    ) -> None:
        self.config = config
        self.transport = Transport(
            transport_config(config), local=config.node, incarnation=incarnation, rng=rng, peers=config.peers
        )
        self._link = PeerLink(self.transport, config.timers.failure_after)
        self._ring = Ring(config, self._link, incarnation, now, view_number)
        self._admission = Admission(config, self._ring, now)
        self._now = now
        self._peers = dict(config.peers)
        """Whom the transport reaches: the eligible, and whoever is still a member though no longer eligible."""
        self._direct: dict[int, int] = {}
        self._open_group = OpenGroup(config, self._ring)
        self._absent: set[Reason] = set()
        """Why the node is out of the ring: it left, it is shut out, or both."""
        self._transmit: list[Transmit | Resolve] = []
        self._events: dict[type, Callable[[Any], None]] = {
            Datagrams: self._on_datagrams,
            Timer: lambda event: None,
            Multicast: self._on_multicast,
            Direct: self._on_direct,
            Leave: lambda event: self._withdraw(Reason.LEFT_RING),
            Rejoin: lambda event: self._return(Reason.LEFT_RING),
            LinkLost: lambda event: self.transport.link_lost(self._now, event.link),
            CriticalResource: self._on_critical_resource,
            Eligible: self._on_eligible,
            Standing: self._on_standing,
        }
        admission, open_group = self._admission, self._open_group
        self._messages: dict[type, Callable[[int, int, Any], None]] = {
            Token: self._on_token,
            Call: lambda peer, incarnation, m: admission.on_call(self._now, peer, incarnation, m),
            Answer: lambda peer, incarnation, m: admission.on_answer(self._now, peer, m),
            Refuse: lambda peer, incarnation, m: self._on_refuse(peer, m),
            Haste: lambda peer, incarnation, m: self._on_haste(),
            Beacon: lambda peer, incarnation, m: admission.on_beacon(self._now, peer, incarnation, m),
            Relay: lambda peer, incarnation, m: open_group.on_relay(self._now, peer, m, self._objection()),
            Relayed: lambda peer, incarnation, m: open_group.on_relayed(m),
        }
        self._transport_effects: dict[type, Callable[[Any], None]] = {
            Arrived: self._on_arrived,
            Delivered: self._on_delivered,
            Asked: lambda effect: self._ring.asked(self._now),
            Undelivered: self._on_given_back,
            Transmit: self._transmit.append,
            Resolve: self._transmit.append,
        }

    # ------------------------------------------------------------------------------------------------ the interface

    def step(self, now: float, event: Event) -> list[Effect]:
        """Feed one event; returns what is to be done, in order. A clock that steps back stands still instead.

        Who is late is judged at ``Timer`` alone, which must come after everything that has arrived: a process that
        was stalled would otherwise condemn peers whose answers wait in its sockets.
        """
        ring = self._ring
        now = self._now = ring.now = max(now, self._now)
        self._events[type(event)](event)
        self._run_transport()
        if type(event) is Timer and self._judge(now):
            self._run_transport()
        if now >= ring.eating_until and ring.eating:
            ring.release(now)
            ring.deliver()
            self._run_transport()
        if ring.leaving:
            self._check_left_behind()
        if len(self._peers) > len(ring.eligible):
            self._forget_strangers()
            self._run_transport()
        effects: list[Effect] = [*self._transmit, *ring.effects]
        self._transmit.clear()
        ring.effects.clear()
        return effects

    def deadline(self) -> float:
        """When to feed ``Timer``, after what has arrived until then; infinity if never."""
        ring = self._ring
        nearest = min(
            self.transport.deadline(),
            self._link.deadline(),
            ring.eating_until,
            ring.hungry_until if ring.passed_acknowledged else inf,
            self._admission.deadline(),
        )
        return min(nearest, self._open_group.deadline())

    @property
    def states(self) -> States:
        """Token state and view state, with counts of every transition."""
        return self._ring.states

    @property
    def view(self) -> View | None:
        """The last committed view; None before the first."""
        return self._ring.view

    @property
    def queued_bytes(self) -> int:
        """Payload waiting for the token at this node."""
        return self._ring.outbox.bytes

    @property
    def counters(self) -> dict[str, int]:
        """Everything that happened, by reason; the transport's counters under ``transport_``."""
        counters = {reason.name.lower(): count for reason, count in self._ring.counters.items()}
        counters["newcomer_dropped"] += self._ring.discovery.dropped
        counters.update({f"transport_{name}": count for name, count in self.transport.counters.as_dict().items()})
        return counters

    # -------------------------------------------------------------------------------------------------- transport

    def _on_datagrams(self, event: Datagrams) -> None:
        receive = partial(self.transport.receive, self._now)
        for link, source, data, segment_size in event.batch:
            receive(link, source, data, segment_size)

    def _run_transport(self) -> None:
        """Let transport and ring answer each other until neither has anything more to say."""
        handlers = self._transport_effects
        while effects := self.transport.take():
            for effect in effects:
                handlers[type(effect)](effect)

    def _on_arrived(self, effect: Arrived) -> None:
        peer, incarnation, channel, buffer = effect
        payload = memoryview(buffer) if isinstance(buffer, bytearray) else buffer
        if channel not in _RESERVED_CHANNELS:
            self._ring.effects.append(PeerMessage(peer, incarnation, channel, payload))
            return
        if channel == CHANNEL_TOKEN and self._ring.accept_quietly(self._now, payload):
            self._admission.fed()
            return
        try:
            message = decode(payload)
        except Malformed as error:
            self._ring.trace(Reason.MALFORMED, peer, detail=str(error))
            return
        self._messages[type(message)](peer, incarnation, message)

    def _on_delivered(self, effect: Delivered) -> None:
        handle = effect.handle
        ring = self._ring
        ring.delivered(handle)
        self._admission.delivered(self._now, handle)
        if (tag := self._direct.pop(handle, None)) is not None:
            ring.effects.append(Done(tag, -1))
        if ring.leaving_done and ring.passed_acknowledged:
            self._gone()

    def _on_given_back(self, effect: Undelivered) -> None:
        if effect.reason is Lost.REMOVED:
            self._link.fail_later(self._now, effect.handle)
        else:
            self._on_undelivered(effect.handle, effect.reason is Lost.RESTARTED)

    def _on_undelivered(self, handle: int, restarted: bool = False) -> None:
        ring = self._ring
        if not restarted and self._admission.lost_sight(self._now, handle):
            return
        if ring.undelivered(self._now, handle, restarted):
            self._check_left_behind()
        self._admission.undelivered(self._now, handle, restarted)
        if (tag := self._direct.pop(handle, None)) is not None:
            ring.effects.append(Refused(tag, Refusal.UNREACHABLE))
        self._open_group.undelivered(handle)

    # ---------------------------------------------------------------------------------------------- ring messages

    def _on_token(self, peer: int, incarnation: int, token: Token) -> None:
        self._ring.accept(self._now, peer, token)
        if not self._ring.joining:
            self._admission.fed()

    def _on_refuse(self, peer: int, message: Refuse) -> None:
        self._admission.on_refuse(self._now, peer, message)
        self._check_left_behind()

    def _on_haste(self) -> None:
        ring = self._ring
        ring.haste = True
        if ring.eating:
            ring.eating_until = self._now

    # ------------------------------------------------------------------------------------------------------ timers

    def _judge(self, now: float) -> bool:
        """Let transport and ring find out who or what is late; True when there was something to do."""
        ring = self._ring
        worked = False
        if now >= self.transport.deadline():
            self.transport.tick(now)
            self._run_transport()
        for handle in self._link.failed(now):
            self._on_undelivered(handle)
            worked = True
        if now >= self._admission.deadline() or (now >= ring.hungry_until and ring.passed_acknowledged):
            self._admission.tick(now)
            worked = True
        self._open_group.expire(now)
        return worked

    # ---------------------------------------------------------------------------------------------------- requests

    def _on_multicast(self, event: Multicast) -> None:
        ring = self._ring
        if event.via is not None:
            self._open_group.ask(self._now, event, event.via)
            return
        refusal = self._objection()
        if refusal is None:
            refusal = ring.outbox.put(event.tag, event.channel, event.order, event.payloads, event.bulk, event.urgent)
        if refusal is not None:
            ring.effects.append(Refused(event.tag, refusal))
        elif ring.outbox.urgent:
            ring.ask_haste(self._now)

    def _objection(self) -> Refusal | None:
        ring = self._ring
        if ring.out or ring.leaving:
            return Refusal.LEFT
        if ring.view is not None and not ring.view.serving:
            return Refusal.NOT_SERVING
        return None

    def _on_direct(self, event: Direct) -> None:
        if event.channel in _RESERVED_CHANNELS:
            raise ValueError(f"channel {event.channel} belongs to the ring; use 1 or 16..255")
        if event.peer not in self._ring.eligible:
            self._ring.effects.append(Refused(event.tag, Refusal.UNKNOWN_PEER))
            return
        try:
            handle = self.transport.send(self._now, event.peer, event.channel, event.payload)
        except Backlogged:
            self._ring.effects.append(Refused(event.tag, Refusal.QUEUE_FULL))
        else:
            self._direct[handle] = event.tag

    # ---------------------------------------------------------------------------------------------- in and out

    def _on_critical_resource(self, event: CriticalResource) -> None:
        if self.config.policy is not Policy.CRITICAL:
            return
        if event.available:
            self._return(Reason.SHUT_OUT)
        else:
            self._withdraw(Reason.SHUT_OUT)

    def _withdraw(self, reason: Reason) -> None:
        """Leave properly when there is a ring to leave, at once otherwise."""
        ring = self._ring
        if self._absent:
            self._absent.add(reason)
            return
        self._absent.add(reason)
        token = ring.token
        if ring.joining or token is None or ring.states.token is TokenState.STARVING or len(token.members) == 1:
            self._gone()
        else:
            ring.leaving = True
            ring.ask_haste(self._now)

    def _check_left_behind(self) -> None:
        """The last member it could have handed the token to is gone too."""
        ring = self._ring
        if ring.leaving_done and ring.token is not None and not ring.token.members:
            self._gone()

    def _gone(self) -> None:
        ring = self._ring
        for reason in self._absent:
            ring.trace(reason, 0)
        ring.withdraw()
        self._admission.leave()
        ring.effects.append(Left(struck_off=not self._absent))
        if not self._absent:
            self._come_back()

    def _return(self, reason: Reason) -> None:
        ring = self._ring
        self._absent.discard(reason)
        if self._absent:
            return
        if ring.out:
            self._come_back()
        elif not ring.leaving_done:
            ring.leaving = False

    def _come_back(self) -> None:
        self._ring.trace(Reason.RETURNED, 0)
        self._ring.states.on_token(TokenEvent.RETURN)
        self._admission.join(self._now)

    def _on_eligible(self, event: Eligible) -> None:
        """Members that are struck off stay within reach until they have left: they must hear of it."""
        ring = self._ring
        addresses = {(path.link, path.address) for config in event.peers.values() for path in config.paths}
        for peer in self._peers.keys() - event.peers.keys():
            if any((path.link, path.address) in addresses for path in self._peers[peer].paths):
                self._forget_peer(peer)
        for peer, config in event.peers.items():
            self.transport.set_peer(peer, config)
            self._peers[peer] = config
        ring.eligible = set(event.peers)
        ring.ask_haste(self._now)

    def _forget_strangers(self) -> None:
        token = self._ring.token
        for peer in self._peers.keys() - self._ring.eligible:
            if token is None or token.member(peer) is None:
                self._forget_peer(peer)

    def _forget_peer(self, peer: int) -> None:
        del self._peers[peer]
        self.transport.remove_peer(peer)

    def _on_standing(self, event: Standing) -> None:
        self._ring.standing = event.value
        token = self._ring.token
        if token is not None and self._ring.eating:
            self._ring.weigh(token)


def transport_config(config: RingConfig) -> TransportConfig:
    """The transport's settings that follow from the ring's."""
    return TransportConfig(
        cluster=config.cluster,
        keys=config.keys,
        encrypt=config.encrypt,
        failure_after_s=config.timers.failure_after,
        rto_floor_s=min(0.008, config.timers.failure_after / 5),
    )
