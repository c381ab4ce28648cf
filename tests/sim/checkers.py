# SPDX-License-Identifier: Apache-2.0
"""What must hold, judged from outside: by what nodes deliver and hold, never by the code that decides it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from sync.config import Mode, Policy
from sync.events import Deliver, Order, Reason, View
from sync.ring.membership import TokenState
from sync.ring.token import JOINER
from tests.sim.exclusive import Exclusive
from tests.sim.violation import Identity, Violation

if TYPE_CHECKING:
    from tests.sim.instance import Instance

ViewKey = tuple[object, ...]

RELAYED_LANE = 2
"""Lanes 0 and 1 are an origin's small and bulk requests, each in order; relayed ones may overtake each other."""

ROUNDING_S = 1e-9
"""A lease revoked this very instant may come back from a drifting clock a few bits later."""

LINEAGE_BOUND = 64
PENDING_BOUND = 4000
NEWCOMERS_BOUND = 64


def view_key(view: View) -> ViewKey:
    return view.number, tuple(sorted(zip(view.members, view.incarnations, strict=True))), view.position, view.origin


class Record:
    """What one incarnation of a node has delivered."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.view: View | None = None
        self.key: ViewKey = ()
        self.path: set[ViewKey] = set()
        """The views it has gone through since it last started over."""
        self.next_position = -1
        self.digest = 0
        self.count = 0
        self.seen: set[bytes] = set()
        """What it has delivered since it last started over; ``delivered``: ever."""
        self.delivered: set[bytes] = set()
        self.newest: dict[tuple[int, int, int], int] = {}
        self.lease = -1.0


class Checkers:
    """All rules over one run."""

    def __init__(self, mode: Mode, policy: Policy, leases: bool) -> None:
        self.mode = mode
        self.exclusive = Exclusive(policy)
        self.leases = leases
        self.sent: set[bytes] = set()
        self.records: dict[Identity, Record] = {}
        self._held: dict[tuple[object, int], Identity] = {}
        self._numbers: dict[int, list[frozenset[Identity]]] = defaultdict(list)
        self._messages: dict[tuple[ViewKey, int], tuple[object, ...]] = {}
        self._closed: dict[tuple[ViewKey, ViewKey], tuple[int, int, Identity]] = {}
        self._copies: dict[tuple[ViewKey, int], tuple[bytes, Identity]] = {}
        self.views = 0
        self.delivered = 0

    def record(self, instance: Instance) -> Record:
        identity = instance.identity
        record = self.records.get(identity)
        if record is None:
            record = self.records[identity] = Record(identity)
        return record

    def trusts(self, instance: Instance, now: float) -> bool:
        """May this node take its view for what is? Where clocks jump, nobody can tell."""
        return not self.leases or self.record(instance).lease > now

    # ----------------------------------------------------------------------------------------------------- tokens

    def tokens(self, instance: Instance, others: list[Instance]) -> None:
        """At most one accepted token per group: a hop of an epoch is one node's; one eater per epoch."""
        ring = instance.ring
        token = ring.token
        if token is None or ring.states.token is not TokenState.EATING:
            return
        holder = self._held.setdefault((token.epoch, token.hop), instance.identity)
        if holder != instance.identity:
            raise Violation(
                "one token", f"hop {token.hop} of {token.epoch} accepted by {holder} and {instance.identity}"
            )
        for other in others:
            if other is instance or other.ring.states.token is not TokenState.EATING or other.ring.token is None:
                continue
            if other.ring.token.epoch == token.epoch:
                raise Violation("one token", f"{instance.identity} and {other.identity} both eat in {token.epoch}")

    # ------------------------------------------------------------------------------------------------------ views

    def view_changed(self, instance: Instance, view: View, living: list[Instance], now: float) -> None:
        self.views += 1
        record = self.record(instance)
        identities = frozenset(zip(view.members, view.incarnations, strict=True))
        if record.identity not in identities:
            raise Violation("view contains its node", f"{record.identity} committed {view}")
        if record.view is not None and view.number <= record.view.number:
            raise Violation("views grow", f"{record.identity} committed {view.number} after {record.view.number}")
        if view.group != min(view.members) or not view.joined < set(view.members):
            raise Violation("view well formed", f"{view}")
        if self.mode is Mode.CONSISTENT:
            self._consistent_history(record.identity, view, identities)
            self._reserved_by_all(instance, view, identities, living)
        self._virtual_synchrony(record, view)
        self._excluded_leases(record, view, identities, living, now)
        self.exclusive.serving(record.identity, view, [other for other in living if self.trusts(other, now)])
        self.exclusive.enters(record.identity, view_key(view), joined=record.identity[0] in view.joined)
        if record.identity[0] in view.joined:
            # It starts over with the group's state; what it delivered before belongs to a history that is given up.
            record.seen.clear()
            record.newest.clear()
            record.path.clear()
        record.view = view
        record.key = view_key(view)
        record.path.add(record.key)
        record.next_position = view.position + 1
        record.digest = record.count = 0

    def _consistent_history(self, identity: Identity, view: View, members: frozenset[Identity]) -> None:
        for other in self._numbers[view.number]:
            if other != members and other & members:
                raise Violation(
                    "consistent history",
                    f"view {view.number} is {sorted(members)} at {identity}, {sorted(other)} elsewhere",
                )
        if members not in self._numbers[view.number]:
            self._numbers[view.number].append(members)

    @staticmethod
    def _reserved_by_all(instance: Instance, view: View, members: frozenset[Identity], living: list[Instance]) -> None:
        for other in living:
            if other.identity in members and other.ring.view_number < view.number:
                raise Violation(
                    "view reserved by all",
                    f"{instance.identity} committed {view.number}, {other.identity} knows {other.ring.view_number}",
                )

    def _virtual_synchrony(self, record: Record, view: View) -> None:
        """Nodes that go together from one view to the next have delivered the same in between."""
        if record.view is None or record.identity[0] in view.joined:
            return
        transition = (record.key, view_key(view))
        result = (record.digest, record.count, record.identity)
        first = self._closed.setdefault(transition, result)
        if first[:2] != result[:2]:
            raise Violation(
                "atomicity",
                f"between views {record.view.number} and {view.number} {first[2]} delivered {first[1]} messages, "
                f"{record.identity} {record.count}, or others",
            )

    def _excluded_leases(
        self, record: Record, view: View, members: frozenset[Identity], living: list[Instance], now: float
    ) -> None:
        """Whoever is excluded by a member of its own view has no lease any more."""
        if not self.leases or record.view is None or record.identity[0] in view.joined:
            return
        before = set(zip(record.view.members, record.view.incarnations, strict=True))
        for other in living:
            theirs = other.node.view
            # What counts is going on from the other's view. A node that lags may come to one the other has left behind;
            # and the other may have invited this node into a group of which it has never been.
            trusting = theirs is not None and view_key(theirs) in record.path
            if trusting and other.identity in before and other.identity not in members:
                lease = self.record(other).lease
                if lease > now + ROUNDING_S:
                    raise Violation(
                        "lease",
                        f"{record.identity} committed a view without {other.identity}, whose lease lasts "
                        f"{(lease - now) * 1000:.3f} ms more",
                    )

    # --------------------------------------------------------------------------------------------------- messages

    def deliver(self, instance: Instance, batch: Deliver, living: list[Instance]) -> None:
        record = self.record(instance)
        if record.view is None or batch.view != record.view.number:
            raise Violation("delivery in a view", f"{record.identity} delivered {batch.position} in {batch.view}")
        if batch.position < record.next_position:
            raise Violation("positions grow", f"{record.identity}: {batch.position} after {record.next_position - 1}")
        record.next_position = batch.position + batch.messages
        if batch.order is Order.SAFE:
            self._received_by_all(instance, batch, living)
        for index, payload in enumerate(batch.payloads()):
            self._one_message(record, batch, batch.position + index, bytes(payload))

    def _one_message(self, record: Record, batch: Deliver, position: int, payload: bytes) -> None:
        self.delivered += 1
        identity = record.identity
        content = (batch.origin, batch.channel, batch.order, payload)
        known = self._messages.setdefault((record.key, position), content)
        if known != content:
            raise Violation("agreed order", f"position {position} of view {record.view and record.view.number} differs")
        record.digest = hash((record.digest, position, content))
        record.count += 1
        if batch.channel != WORKLOAD_CHANNEL:
            return
        if payload not in self.sent:
            raise Violation("no invented message", f"{identity} delivered {payload[:40]!r}")
        if payload in record.seen:
            raise Violation("no duplicate", f"{identity} delivered {payload[:40]!r} twice")
        record.seen.add(payload)
        record.delivered.add(payload)
        number, incarnation, bulk = map(int, payload.split(b" ", 3)[:3])
        lane = (batch.origin, incarnation, bulk)
        if bulk != RELAYED_LANE and number < record.newest.get(lane, -1):
            raise Violation("origin order", f"{identity} delivered {number} of {lane} after {record.newest[lane]}")
        record.newest[lane] = number

    @staticmethod
    def _received_by_all(instance: Instance, batch: Deliver, living: list[Instance]) -> None:
        """A safe message is delivered only when every member of the ring has it."""
        token = instance.ring.token
        if token is None:
            return
        members = {(m.id, m.incarnation) for m in token.members if not m.flags & JOINER}
        epochs = {epoch.id for epoch in token.lineage}
        if instance.epoch_before not in epochs:
            return  # In this very step it changed over to another group, having delivered in its old one.
        for other in living:
            if other.identity not in members or other.ring.token is None or other.ring.joining:
                continue
            if other.ring.token.epoch in epochs and other.ring.stream.next_position <= batch.position:
                raise Violation(
                    "safe order",
                    f"{instance.identity} delivered {batch.position}, {other.identity} has only what is "
                    f"before {other.ring.stream.next_position}",
                )

    def copy(self, identity: Identity, position: int, digest: bytes) -> None:
        """Complete copies of the shared data are equal wherever they have applied the same part of the stream."""
        first = self._copies.setdefault((self.records[identity].key, position), (digest, identity))
        if first[0] != digest:
            raise Violation("equal copies", f"at {position}, {first[1]} and {identity} hold different data")

    # ----------------------------------------------------------------------------------------------------- bounds

    def bounds(self, instance: Instance) -> None:
        ring = instance.ring
        if ring.counters[Reason.MALFORMED]:
            raise Violation("well formed", f"{instance.identity} could not decode what a peer had sent")
        sizes = {
            "outbox": (ring.outbox.bytes, instance.config.queue_bytes_max),
            "stream": (len(ring.stream), PENDING_BOUND),
            "lineage": (len(ring.token.lineage) if ring.token else 0, LINEAGE_BOUND),
            "parcels": (len(ring.token.parcels) if ring.token else 0, PENDING_BOUND),
            "farewells": (len(ring.token.farewells) if ring.token else 0, 16),
        }
        for name, (size, most) in sizes.items():
            if size > most:
                raise Violation("bounded", f"{name} of {instance.identity} holds {size}, at most {most}")


WORKLOAD_CHANNEL = 20
