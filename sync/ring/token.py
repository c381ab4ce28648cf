# SPDX-License-Identifier: Apache-2.0
"""The token: who is in the ring, which messages are under way, and what one visit may do to it.

Pure data and pure operations. Differences to the thesis (figure 6): every member entry carries the hop of its last
visit, from which any holder sees what all members have received; membership changes are messages of the same total
order (a VIEW parcel), so that every member changes its view at the same place in the stream; see docs/protocol.md.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from sync.events import Order
from sync.ring.lineage import Epoch, EpochId, pruned

JOINER = 1
"""Invited, has not had the token yet: begins anew with this group's history."""
FRESH = 2
"""Not yet part of a committed view."""

STRUCK = 4
"""Eligible no longer: takes itself off the list at its next visit."""

COUNT_MAX = 1 << 62
"""Hops, positions, numbers of views and epochs beyond are refused: whoever counts on from one fits 64 bits for good."""

_VIEW_HEAD = struct.Struct("<QBB")
_VIEW_ENTRY = struct.Struct("<BQB")
_SERVING, _FOUNDING = 1, 2


class Kind(IntEnum):
    """What a parcel is."""

    MESSAGES = 0
    VIEW = 1
    CANCELLED = 2
    """Was a view; keeps its position and has no effect."""


class Member:
    """An entry of the ring list."""

    __slots__ = ("flags", "id", "incarnation", "last_hop", "since")

    def __init__(self, id: int, incarnation: int, last_hop: int, flags: int = 0, since: int = 0) -> None:
        self.id = id
        self.incarnation = incarnation
        self.last_hop = last_hop
        self.flags = flags
        self.since = since
        """Hop of the visit that invited it: what was added before, views that name it included, is not for it.

        The same incarnation may have been a member before and have wandered off without this group's notice: it is
        then still named in views from which it must not begin.
        """


class Parcel:
    """Messages of one origin and channel, or a view, under way."""

    __slots__ = ("added_hop", "body", "channel", "count", "kind", "order", "origin", "position")

    def __init__(
        self,
        position: int,
        count: int,
        origin: int,
        channel: int,
        order: int,
        kind: int,
        added_hop: int,
        body: bytes | memoryview,
    ) -> None:
        self.position = position
        self.count = count
        self.origin = origin
        self.channel = channel
        self.order = order
        self.kind = kind
        self.added_hop = added_hop
        self.body = body


class Farewell:
    """Where a group ended that was merged into this one: its members, all at rest at this point, switch over."""

    __slots__ = ("epoch", "hop", "position")

    def __init__(self, epoch: EpochId, hop: int, position: int) -> None:
        self.epoch = epoch
        self.hop = hop
        self.position = position


class Proposal:
    """The content of a VIEW parcel."""

    __slots__ = ("founding", "joined", "members", "number", "serving")

    def __init__(
        self,
        number: int,
        serving: bool,
        members: list[tuple[int, int]],
        joined: frozenset[int],
        *,
        founding: bool = False,
    ) -> None:
        self.number = number
        self.serving = serving
        self.members = members
        self.joined = joined
        self.founding = founding
        """None of the members had the group's state: what was sent before is lost with those who had."""

    def encode(self) -> bytes:
        flags = (_SERVING if self.serving else 0) | (_FOUNDING if self.founding else 0)
        head = _VIEW_HEAD.pack(self.number, flags, len(self.members))
        return head + b"".join(_VIEW_ENTRY.pack(id, inc, id in self.joined) for id, inc in self.members)

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Proposal:
        """Raises ValueError when the body is not a view."""
        if len(body) < _VIEW_HEAD.size:
            raise ValueError(f"view of {len(body)} bytes")
        number, flags, count = _VIEW_HEAD.unpack_from(body)
        if len(body) != _VIEW_HEAD.size + count * _VIEW_ENTRY.size or not count:
            raise ValueError(f"view with {count} members in {len(body)} bytes")
        entries = list(_VIEW_ENTRY.iter_unpack(body[_VIEW_HEAD.size :]))
        if number > COUNT_MAX or len({id for id, _, _ in entries}) != count or not all(id for id, _, _ in entries):
            raise ValueError(f"view {number} with a member twice, or member 0, or beyond {COUNT_MAX}")
        joined = frozenset(id for id, _, fresh in entries if fresh)
        members = [(id, inc) for id, inc, _ in entries]
        return cls(number, bool(flags & _SERVING), members, joined, founding=bool(flags & _FOUNDING))


class Token:
    """The token, or a node's copy of it after its last visit. ``hop`` is the hop of the visit."""

    __slots__ = (
        "busy_until",
        "farewells",
        "hop",
        "lineage",
        "members",
        "next_position",
        "parcels",
        "quiet_until",
        "rested_us",
        "stable",
        "standing",
        "view_number",
    )

    def __init__(self) -> None:
        self.hop = 0
        self.lineage: list[Epoch] = []
        self.view_number = 0
        self.stable = 0
        """Every position below is received by all members."""
        self.next_position = 0
        self.busy_until = 0
        """The token turns at network speed up to this hop."""
        self.quiet_until = 0
        """Up to this hop no messages are added: the group is about to be merged into another."""
        self.rested_us = 0
        """How long the token has rested in all, in microseconds of the resting members' clocks, modulo 2^32."""
        self.standing = 0
        self.members: list[Member] = []
        self.parcels: list[Parcel] = []
        self.farewells: list[Farewell] = []

    @property
    def epoch(self) -> EpochId:
        return self.lineage[-1].id

    @property
    def resting_place(self) -> int:
        """The member that holds an idle token; the others pass it at once, which saves each a timer per turn."""
        return min([member.id for member in self.members])

    def rank(self) -> tuple[int, int, int]:
        """Of two groups the one of lower rank joins the other (the thesis compares the group id alone)."""
        ids = [member.id for member in self.members if not member.flags & JOINER]
        return self.standing, len(ids), min(ids, default=0)

    def followers(self, since: int) -> int:
        """How many members have had the token at this hop or later."""
        return sum(member.last_hop >= since and not member.flags & JOINER for member in self.members)

    @property
    def at_rest(self) -> bool:
        """Nothing is under way: every member has received and may deliver all there is."""
        return not self.parcels

    def payload_bytes(self) -> int:
        return sum([len(parcel.body) for parcel in self.parcels])

    def member(self, node: int) -> Member | None:
        for member in self.members:
            if member.id == node:
                return member
        return None

    def successor(self, node: int) -> Member:
        """Who is next after ``node``; for a node that has just left, the first of the list."""
        members = self.members
        for index, member in enumerate(members):
            if member.id == node:
                return members[(index + 1) % len(members)]
        return members[0]

    def seen_by_all(self) -> int:
        """What was added up to this hop has been received by every member."""
        return min([member.last_hop for member in self.members], default=self.hop)

    def settle(self) -> None:
        """Drop what all members have, whoever sent it and whether or not its origin still lives."""
        seen = self.seen_by_all()
        parcels = self.parcels
        done = 0
        for parcel in parcels:
            if parcel.added_hop > seen:
                break
            done += 1
            if parcel.kind == Kind.VIEW:
                self._welcome(parcel)
        if done:
            self.parcels = parcels = parcels[done:]
        self.stable = parcels[0].position if parcels else self.next_position
        if len(self.lineage) > 1:
            self.lineage = pruned(self.lineage, seen)

    def append(
        self, origin: int, channel: int, order: int, count: int, body: bytes | memoryview, kind: int = Kind.MESSAGES
    ) -> Parcel:
        parcel = Parcel(self.next_position, count, origin, channel, order, kind, self.hop, body)
        self.next_position += count
        self.parcels.append(parcel)
        return parcel

    def hasten(self) -> None:
        """Turn at network speed until everyone knows that everyone has the news: two turns and a hop."""
        self.busy_until = max(self.busy_until, self.hop + 2 * len(self.members) + 1)

    def hasten_turn(self) -> None:
        """Turn at network speed until everyone else has had the token: that is all agreed messages wait for."""
        self.busy_until = max(self.busy_until, self.hop + len(self.members) - 1)

    def _welcome(self, view: Parcel) -> None:
        """All have received this view: its members are new no longer, but for those who were invited (again) since."""
        named = Proposal.decode(view.body).members
        for member in self.members:
            invited_before = view.added_hop >= member.since
            if member.flags & FRESH and invited_before and (member.id, member.incarnation) in named:
                member.flags &= ~FRESH

    # ------------------------------------------------------------------------------------------------- membership

    def fork(self, creator: int, incarnation: int, number: int) -> None:
        """Begin a new epoch with a visit of its creator, from this copy."""
        self.hop += 1
        self.lineage = [*self.lineage, Epoch(EpochId(number, creator, incarnation), self.hop)]
        own = self.member(creator)
        if own is not None:
            own.last_hop = self.hop
        self.hasten()

    def propose(self, proposer: int, order: Order, serving: bool) -> Parcel:
        """Put a view of the present members into the stream, under the next unused number.

        It takes the place of a view cancelled in this visit: messages that were sent behind that one stay behind
        a change of the view, which is why parts of a divided group never deliver different messages in one view.
        """
        self.view_number += 1
        members = [(member.id, member.incarnation) for member in self.ring_from(proposer)]
        joined = frozenset(member.id for member in self.members if member.flags & FRESH)
        founding = len(joined) == len(members)
        if founding:
            # Nobody is left of those who had the group's state: one member's becomes the group's.
            joined -= {members[0][0]}
        proposal = Proposal(self.view_number, serving, members, joined, founding=founding)
        self.hasten()
        for index, parcel in enumerate(self.parcels):
            if parcel.kind == Kind.CANCELLED and parcel.added_hop == self.hop:
                twin = Parcel(parcel.position, 1, proposer, 0, order, Kind.VIEW, self.hop, proposal.encode())
                self.parcels[index] = twin
                return twin
        return self.append(proposer, 0, order, 1, proposal.encode(), Kind.VIEW)

    def ring_from(self, first: int) -> list[Member]:
        """The members in ring order, beginning with ``first``."""
        for index, member in enumerate(self.members):
            if member.id == first:
                return self.members[index:] + self.members[:index]
        return self.members

    def pending_views(self, since: int = 0) -> list[Parcel]:
        """Views under way that were added at this hop or later."""
        return [parcel for parcel in self.parcels if parcel.kind == Kind.VIEW and parcel.added_hop >= since]

    def cancel(self, parcel: Parcel) -> Parcel:
        """Replace a view nobody can have committed; it stays on the token until all know."""
        twin = Parcel(parcel.position, 1, parcel.origin, 0, parcel.order, Kind.CANCELLED, self.hop, b"")
        self.parcels[self.parcels.index(parcel)] = twin
        self.hasten()
        return twin

    def remove(self, node: int) -> None:
        """Take a member off the list and cancel the views it was to be part of but has not received.

        A view is committed only once all its members have received (reserved) it; nobody has committed these. Views
        it has received stay: another member may already have committed them.
        """
        gone = self.member(node)
        if gone is None:
            return
        index = self.members.index(gone)
        self.members = self.members[index + 1 :] + self.members[:index]
        for parcel in self.pending_views():
            named = (gone.id, gone.incarnation) in Proposal.decode(parcel.body).members
            if named and parcel.order == Order.SAFE and parcel.added_hop > gone.last_hop:
                self.cancel(parcel)

    def invite(self, after: int, node: int, incarnation: int, view_number: int) -> None:
        """Add a newcomer behind ``after``; it counts as having received what was added before this visit."""
        self.remove(node)
        entry = Member(node, incarnation, self.hop - 1, JOINER | FRESH, self.hop)
        index = next((i for i, m in enumerate(self.members) if m.id == after), len(self.members) - 1)
        self.members = [*self.members[: index + 1], entry, *self.members[index + 1 :]]
        self.view_number = max(self.view_number, view_number)
        self.hasten()
