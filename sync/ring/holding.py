# SPDX-License-Identifier: Apache-2.0
"""What a node does to the token while it has it: who is in the ring, and which messages travel.

Thesis section 3.5 (pseudo-code event 6), with the changes described in docs/protocol.md.
"""

from __future__ import annotations

from sync.config import TOKEN_BYTES_MAX, Mode, Policy, RingConfig
from sync.events import Order, Reason
from sync.ring.delivery import Link
from sync.ring.discovery import Discovery
from sync.ring.leases import Leases
from sync.ring.messages import MEMBERS_MAX
from sync.ring.multicast import MUCH_BYTES
from sync.ring.token import JOINER, STRUCK, Member, Token

FLOOD_BYTES_PER_S = 64 << 20
"""Whoever sends that much has more to send: it gets on while the token turns at network speed, and the next visit takes
all of it. A token that rested would leave with the first few messages."""


class Holding(Leases):
    """Changes the list of members and adds messages; the token is this node's meanwhile."""

    def __init__(self, config: RingConfig, link: Link, incarnation: int, now: float, view_number: int) -> None:
        super().__init__(config, link, incarnation, now, view_number)
        self.discovery = Discovery(config)
        self.leaving = False
        """Takes itself off the list at its next visit."""
        self._struck: dict[int, int] = {}
        """Member that has been asked to go -> hop at which this node first saw it asked."""
        self._order = Order.SAFE if config.mode is Mode.CONSISTENT else Order.AGREED

    def _expel(self, token: Token) -> None:
        """Ask members that are no longer eligible to go: each takes itself off the list, and ends its lease with it.

        One that has had the token since then and is still there does not listen: it is removed.
        """
        strangers = [m for m in token.members if m.id != self.local and m.id not in self.eligible]
        deaf = [m.id for m in strangers if m.flags & STRUCK and m.last_hop > self._struck.get(m.id, token.hop)]
        self._struck = {m.id: self._struck.get(m.id, token.hop) for m in strangers if m.flags & STRUCK}
        for member in strangers:
            if not member.flags & STRUCK:
                self.trace(Reason.NOT_ELIGIBLE, member.id)
                member.flags |= STRUCK
                self._struck[member.id] = token.hop
                token.hasten()
        for node in deaf:
            self.trace(Reason.STAYED_ON, node)
            self._remove(token, node)
        if deaf:
            self.propose()

    def _must_go(self, token: Token, own: Member) -> bool:
        """Has this node been asked to go? If nobody is left of those who asked, it stays."""
        if not own.flags & STRUCK:
            return False
        if len(token.members) == 1:
            own.flags &= ~STRUCK
            return False
        self.trace(Reason.NOT_ELIGIBLE, self.local)
        self.leaving = True
        return True

    def _invite(self, now: float, token: Token) -> None:
        invited = False
        for newcomer in self.discovery.take(now):
            present = token.member(newcomer.node)
            known = present is not None and present.incarnation == newcomer.incarnation and not present.flags & JOINER
            if known or newcomer.node not in self.eligible or len(token.members) >= MEMBERS_MAX:
                continue
            self.trace(Reason.PEER_INVITED, newcomer.node)
            if present is not None:
                self._remove(token, newcomer.node)
            token.invite(self.local, newcomer.node, newcomer.incarnation, newcomer.view_number)
            invited = True
        if invited:
            self.propose()

    def _reconsider(self, token: Token) -> None:
        """Whether a majority is present depends on how many are eligible: when that has changed, the first member says
        anew whether the group serves. One alone does, as the members' lists may differ for a while."""
        view = self.view
        if self.config.policy is not Policy.MAJORITY or view is None or self.awaiting_view:
            return
        if not token.members or token.members[0].id != self.local or self.stream.pending_views():
            return
        if view.serving != self._may_serve():
            self.propose()

    def _may_serve(self) -> bool:
        """Under the partition policy, by this node's list: members that are not on it count for nothing."""
        assert self.token is not None
        counted = sum(member.id in self.eligible or member.id == self.local for member in self.token.members)
        return self.config.serving(counted, len(self.eligible) + 1)

    def _load(self, token: Token, since_last: float) -> None:
        """Add what has been queued in the `since_last` seconds since this node let go of the token."""
        if not self.outbox:
            return
        urgent, before = self.outbox.urgent, self.outbox.bytes
        parcels = []
        for load in self.outbox.take(TOKEN_BYTES_MAX - token.payload_bytes()):
            parcel = token.append(self.local, load.channel, load.order, load.messages, load.body)
            parcels.append(parcel)
            if load.tags:
                self._inflight[parcel.position] = load.tags
        self.stream.take(parcels)
        floods = before - self.outbox.bytes >= max(MUCH_BYTES, FLOOD_BYTES_PER_S * since_last)
        if urgent and (floods or any(parcel.order == Order.SAFE for parcel in parcels)):
            token.hasten()
        elif urgent:
            token.hasten_turn()

    def _step_out(self, token: Token) -> None:
        self.trace(Reason.LEFT_RING, 0)
        self.revoke_lease()
        self._remove(token, self.local)
        if token.members:
            self.propose()

    def _remove(self, token: Token, node: int) -> None:
        before = token.parcels[:]
        token.remove(node)
        cancelled = [new for old, new in zip(before, token.parcels, strict=True) if new is not old]
        for parcel in cancelled:
            self.trace(Reason.VIEW_CANCELLED, parcel.origin, token)
        self.stream.take(cancelled)

    def propose(self) -> None:
        """Put a view of the present members onto the token."""
        token = self.token
        assert token is not None
        token.view_number = max(token.view_number, self.view_number)
        parcel = token.propose(self.local, self._order, self._may_serve())
        self.trace(Reason.VIEW_PROPOSED, 0, token)
        self._take([parcel])

    @property
    def leaving_done(self) -> bool:
        """This node has taken itself off the list and only sees to it that the token gets away."""
        return self.leaving and self.token is not None and self.token.member(self.local) is None
