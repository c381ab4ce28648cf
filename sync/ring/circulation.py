# SPDX-License-Identifier: Apache-2.0
"""The token's way through one node: accept, hold, change the ring, add messages, pass on, deliver.

Thesis section 3.5 (pseudo-code events 1, 2, 4 and 6) with the changes described in docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple, Protocol

from sync.config import TOKEN_BYTES_MAX, Mode, RingConfig
from sync.events import Deliver, Done, Effect, Order, Reason, Refusal, Refused, TokenVisit, Trace, View, ViewChanged
from sync.ring.discovery import Discovery
from sync.ring.lineage import LINEAGE_KEPT, Epoch, EpochId, divergence, extends, related
from sync.ring.membership import States, TokenEvent, TokenState, ViewEvent, ViewState
from sync.ring.messages import (
    CHANNEL_CONTROL,
    CHANNEL_TOKEN,
    MEMBERS_MAX,
    Buffers,
    Haste,
    Message,
    Refuse,
    Relayed,
    encode,
    encode_token,
)
from sync.ring.multicast import Limits, Outbox, RelayTag, Stream, Tag
from sync.ring.token import JOINER, Farewell, Kind, Member, Parcel, Proposal, Token

HASTE = b"".join(encode(Haste()))
DRIFT_MARGIN = 0.99
"""Two clocks may differ in speed by this much before a lease outlives a failure budget."""


class Link(Protocol):
    """What the ring needs of the transport."""

    def send(self, now: float, peer: int, channel: int, buffers: Buffers) -> int: ...

    def send_unreliable(self, now: float, peer: int, channel: int, payload: bytes) -> None: ...

    def cancel(self, handle: int) -> None: ...


class _Passed(NamedTuple):
    """The token as it was last sent."""

    peer: int
    handle: int
    epoch: EpochId
    hop: int


class _Parked(NamedTuple):
    """A token of another group that waits for our own to be merged into it."""

    token: Token
    sender: int
    until: float


class Circulation:
    """One node's part in the ring. ``token`` is the live token while Eating, else the copy of the last visit."""

    def __init__(self, config: RingConfig, link: Link, incarnation: int, now: float, view_number: int) -> None:
        self.config = config
        self.timers = config.timers
        self.local = config.node
        self.incarnation = incarnation
        self.link = link
        self.eligible = set(config.peers)
        self.states = States()
        self.discovery = Discovery(config)
        self.outbox = Outbox(
            Limits(config.queue_bytes_max, config.queue_requests_max, config.message_bytes_max, config.visit_bytes_max)
        )
        self.stream = Stream()
        self.token: Token | None = None
        self.view: View | None = None
        self.view_number = view_number
        """Highest view number this node has reserved or committed."""
        self.standing = 0
        self.joining = True
        """Asks to be taken in; its own history, if any, counts only if nobody does."""
        self.leaving = False
        self.awaiting_view = False
        self.haste = False
        self.haste_asked = False
        self.eating_until = inf
        self.hungry_until = inf
        self.passed: _Passed | None = None
        self.passed_acknowledged = True
        self.parked: _Parked | None = None
        self.now = now
        """The instant of the current step."""
        self.effects: list[Effect] = []
        self.counters: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self._epoch_number = 0
        self._last_pass = -inf
        self._last_visit = now
        self._promised = True
        """No member of the view is known to follow another branch."""
        self._genuine = False
        """The token has come round to this node, it was not regenerated here."""
        self._inflight: dict[int, list[tuple[Tag, int]]] = {}
        self._order = Order.SAFE if config.mode is Mode.CONSISTENT else Order.AGREED

    # --------------------------------------------------------------------------------------------------- accepting

    @property
    def eating(self) -> bool:
        return self.states.token is TokenState.EATING

    @property
    def out(self) -> bool:
        return self.states.token is TokenState.OUT

    @property
    def token_lives(self) -> bool:
        """This node has the token, or is handing it on right now."""
        return self.eating or not self.passed_acknowledged

    def accept(self, now: float, sender: int, token: Token) -> None:
        """A token has arrived: take it, park it or refuse it."""
        if self.out or self.leaving_done:
            self._refuse(now, sender, token, Reason.TOKEN_UNWANTED)
            return
        entry = token.member(self.local)
        if entry is None or entry.incarnation != self.incarnation:
            self._refuse(now, sender, token, Reason.TOKEN_NOT_MEMBER)
        elif entry.flags & JOINER:
            self._accept_invitation(now, sender, token, entry)
        elif (objection := self._objection(token)) is not None:
            self._refuse(now, sender, token, objection)
        else:
            self._adopt(now, token, entry, invited=False)
            self._begin_visit(now)

    def _objection(self, token: Token) -> Reason | None:
        copy = self.token
        if copy is None:
            return Reason.TOKEN_NOT_MEMBER
        if extends(token.lineage, token.hop, copy.epoch, copy.hop):
            return Reason.TOKEN_STALE if self.eating else None
        if extends(copy.lineage, copy.hop + 1, token.epoch, token.hop):
            return Reason.TOKEN_STALE
        return Reason.TOKEN_DIVERGED

    def _accept_invitation(self, now: float, sender: int, token: Token, entry: Member) -> None:
        copy = self.token
        if copy is None or self.joining or self._farewell(token) is not None:
            self._adopt(now, token, entry, invited=True)
            self._begin_visit(now)
        elif self.states.token is TokenState.STARVING or self.parked is not None or token.rank() <= copy.rank():
            self._refuse(now, sender, token, Reason.TOKEN_UNRANKED)
        else:
            self.trace(Reason.TOKEN_PARKED, sender)
            self.parked = _Parked(token, sender, now + self.timers.merge_wait)
            if self.eating:
                self.eating_until = now
            else:
                self.ask_haste(now)

    def _farewell(self, token: Token) -> Farewell | None:
        """The place in our own history from which this token takes us over, if our group was merged into its."""
        copy = self.token
        if copy is None or self.eating:
            return None
        for farewell in token.farewells:
            if farewell.epoch == copy.epoch and farewell.hop >= copy.hop:
                return farewell
        return None

    def _adopt(self, now: float, token: Token, entry: Member, *, invited: bool) -> None:
        """Make this token ours. Invited: finish the old history and begin anew with the token's."""
        if self.passed is not None:
            # The token is back: whatever became of our last transmission, it need not be repeated.
            self.link.cancel(self.passed.handle)
        self.passed = None
        self.passed_acknowledged = True
        self.hungry_until = inf
        if self.eating:
            self.trace(Reason.TOKEN_ABANDONED, 0)
            self.states.on_token(TokenEvent.ABANDON)
        self.states.on_token(TokenEvent.ACCEPT)
        self.trace(Reason.TOKEN_ACCEPTED, 0, token)
        if invited:
            self._start_over(token)
            if self.parked is not None and self.parked.token is not token:
                self._give_up_merge(now)
        entry.flags &= ~JOINER
        entry.last_hop = token.hop
        token.standing = max(token.standing, self.standing)
        self.token = token
        self.joining = False
        self._epoch_number = max(self._epoch_number, token.epoch.number)
        self._genuine = True
        if invited:
            self.stream.take(token.parcels)
            self._settle_view_number()
        else:
            self._take(token.parcels)
        self._settle()

    def _start_over(self, token: Token) -> None:
        farewell = self._farewell(token)
        if farewell is not None:
            self.stream.stable = farewell.position
            self.deliver()
        self._lose_inflight(Refusal.HISTORY_LOST)
        self.revoke_lease()
        self.stream = Stream(token.parcels[0].position if token.parcels else token.next_position)
        self.awaiting_view = True
        if self.states.view is not ViewState.CHAOS:
            self.states.on_view(ViewEvent.UNCERTAIN)

    def _settle_view_number(self) -> None:
        """A view of a number this node has already used elsewhere would contradict its history: replace it."""
        token = self.token
        assert token is not None
        clash = False
        for parcel in token.pending_views():
            proposal = Proposal.decode(parcel.body)
            if (self.local, self.incarnation) in proposal.members and proposal.number <= self.view_number:
                clash = True
                if parcel.order == Order.SAFE:
                    self._take([token.cancel(parcel)])
        if clash:
            self.propose()
        for parcel in token.pending_views():
            self._reserve(parcel)

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

    def _settle(self) -> None:
        """Prune the token, learn what is stable, follow the view state."""
        token = self.token
        assert token is not None
        token.settle()
        self.stream.stable = token.stable
        if self.states.view is ViewState.RESERVE and not self.stream.pending_views():
            self.states.on_view(ViewEvent.CANCELLED)
        if self.states.view is ViewState.CHAOS and not self.awaiting_view and not self.stream.pending_views():
            self.states.on_view(ViewEvent.RESUMED)

    def _begin_visit(self, now: float) -> None:
        token = self.token
        assert token is not None
        if self._hurry(token):
            self.release(now)
        else:
            self.eating_until = now + self.timers.turn_idle
        self.deliver()

    def _hurry(self, token: Token) -> bool:
        return bool(
            self.local != token.resting_place
            or token.hop < token.busy_until
            or self.haste
            or self.outbox.urgent
            or self.leaving
            or self.parked is not None
            or self.discovery.waiting
        )

    def _refuse(self, now: float, sender: int, token: Token, reason: Reason) -> None:
        self.trace(reason, sender, token)
        copy = self.token if not self.joining else None
        lineage: tuple[Epoch, ...] = ()
        followers = 0
        if copy is not None:
            lineage = tuple(copy.lineage[-LINEAGE_KEPT:])
            followers = copy.followers(divergence(lineage, token.lineage))
            self.defected(token.members)
        self.control(now, sender, Refuse(reason, token.epoch, token.hop, lineage, followers))

    # --------------------------------------------------------------------------------------------------- releasing

    def release(self, now: float) -> None:
        """End of the visit: change the ring, add messages, pass the token on (or keep it, when alone)."""
        token = self.token
        assert token is not None
        if self.parked is not None:
            token = self._try_merge(now, token)
        if self.haste:
            token.hasten()
        self.haste = self.haste_asked = False
        self._expel(token)
        self._invite(now, token)
        if token.hop >= token.quiet_until and not self.awaiting_view:
            self._load(token)
        if self.leaving and token.member(self.local) is not None:
            self._step_out(token)
        self._settle()
        if not any(member.flags & JOINER for member in token.members):
            token.farewells = []
        if len(token.members) == 1 and token.members[0].id == self.local:
            self._keep(now)
        elif token.members:
            self._pass(now, token)

    def _pass(self, now: float, token: Token) -> None:
        peer = token.successor(self.local).id
        timers = self.timers
        members = len(token.members)
        handle = self.link.send(now, peer, CHANNEL_TOKEN, encode_token(token, token.hop + 1))
        self.passed = _Passed(peer, handle, token.epoch, token.hop + 1)
        self.passed_acknowledged = False
        self.states.on_token(TokenEvent.PASS)
        self.trace(Reason.TOKEN_PASSED, peer, token)
        # A loaded ring turns more slowly than an idle one; what it took last time is no reason for alarm.
        turn = min(1.4 * (now - self._last_visit), 2 * timers.failure_after)
        self._last_visit = now
        hungry = max(timers.hungry, turn) + members * timers.hungry_per_member
        self.hungry_until = now + hungry
        self.eating_until = inf
        if self._genuine:
            self._renew_lease(now, token)

    def _renew_lease(self, now: float, token: Token) -> None:
        """Tell how long nobody in this node's view can have excluded it.

        Whoever excludes it has tried for a failure budget to reach it, with a token or a 911, and has begun after
        this node's pass before the present one: the token it could not hand over, or waited for in vain, had left
        here by then. (Counting from the present pass would be wrong: the predecessor may still be trying, its
        acknowledgements lost.) This holds only if the token has come round to this node, not if it was regenerated
        here, and while no member of this node's view has been taken off the list.
        """
        self._genuine = False
        previous, self._last_pass = self._last_pass, now
        if previous == -inf or self.view is None or self.awaiting_view or not self._promised:
            return
        if self.states.view is not ViewState.AGREEMENT:
            ring = {(member.id, member.incarnation) for member in token.members}
            if not ring.issuperset(zip(self.view.members, self.view.incarnations, strict=True)):
                return
        lease = previous + self.timers.failure_after * DRIFT_MARGIN
        self.effects.append(TokenVisit(token.hop, lease, len(token.members)))

    def defected(self, members: Iterable[Member]) -> None:
        """Members of this node's view follow another branch, and will exclude it without waiting: no lease from now on.

        Until a view is committed in which they are not, or are anew.
        """
        view = self.view
        if view is not None:
            ours = set(zip(view.members, view.incarnations, strict=True))
            if any((member.id, member.incarnation) in ours and member.id != self.local for member in members):
                self._promised = False
                self.revoke_lease()

    def revoke_lease(self) -> None:
        """This node gives its group up, and with it what the group has promised: the others need not wait."""
        self._last_pass = -inf
        self._genuine = False
        if self.view is not None:
            self.effects.append(TokenVisit(0, self.now, 0))

    def _keep(self, now: float) -> None:
        self._last_pass = -inf
        self.eating_until = now + self.timers.turn_idle
        self.hungry_until = inf
        self.deliver()
        if self.view is not None and len(self.view.members) == 1:
            lease = now + self.timers.failure_after * DRIFT_MARGIN
            self.effects.append(TokenVisit(self.token.hop if self.token else 0, lease, 1))

    def _expel(self, token: Token) -> None:
        """Members that are no longer eligible leave."""
        wrong = [m.id for m in token.members if m.id != self.local and m.id not in self.eligible]
        for node in wrong:
            self.trace(Reason.NOT_ELIGIBLE, node)
            self._remove(token, node)
        if wrong:
            self.propose()

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

    def _load(self, token: Token) -> None:
        if not self.outbox:
            return
        if self.outbox.urgent:
            token.hasten()
        parcels = []
        for load in self.outbox.take(TOKEN_BYTES_MAX - token.payload_bytes()):
            parcel = token.append(self.local, load.channel, load.order, load.messages, load.body)
            parcels.append(parcel)
            if load.tags:
                self._inflight[parcel.position] = load.tags
        self.stream.take(parcels)

    def _step_out(self, token: Token) -> None:
        self.trace(Reason.LEFT_RING, 0)
        self._remove(token, self.local)
        if token.members:
            self.propose()

    def _remove(self, token: Token, node: int) -> None:
        before = token.parcels[:]
        token.remove(node)
        self.stream.take([new for old, new in zip(before, token.parcels, strict=True) if new is not old])

    def propose(self) -> None:
        """Put a view of the present members onto the token."""
        token = self.token
        assert token is not None
        token.view_number = max(token.view_number, self.view_number)
        parcel = token.propose(self.local, self._order, self.config.serving(len(token.members)))
        self.trace(Reason.VIEW_PROPOSED, 0, token)
        self._take([parcel])

    @property
    def leaving_done(self) -> bool:
        """This node has taken itself off the list and only sees to it that the token gets away."""
        return self.leaving and self.token is not None and self.token.member(self.local) is None

    # ------------------------------------------------------------------------------------- failures, regeneration

    def delivered(self, handle: int) -> None:
        if self.passed is not None and self.passed.handle == handle:
            self.passed_acknowledged = True

    def undelivered(self, now: float, handle: int, restarted: bool) -> bool:
        """Failure on delivery; True when it concerned the token.

        ``restarted``: it went to an incarnation of the peer that is gone. The token may name the new one: send it
        again; a node it does not name refuses it at once.
        """
        passed, token = self.passed, self.token
        if passed is None or token is None or passed.handle != handle:
            return False
        if restarted:
            again = self.link.send(now, passed.peer, CHANNEL_TOKEN, encode_token(token, passed.hop))
            self.passed = passed._replace(handle=again)
            return True
        self.exclude(now, passed.peer, Reason.PEER_UNREACHABLE)
        return True

    def refused(self, now: float, peer: int, refuse: Refuse) -> bool:
        """A peer has refused the token. True when this node gave its own token up for the peer's branch."""
        passed, token = self.passed, self.token
        if (
            passed is None
            or token is None
            or (peer, refuse.epoch, refuse.hop) != (passed.peer, passed.epoch, passed.hop)
        ):
            self.trace(Reason.STALE_MESSAGE, peer)
            return False
        if related(refuse.lineage, token.lineage) and not self.leaving_done:
            # Two branches of one group live. The one with fewer followers yields; of equals, the older.
            ours = token.followers(divergence(token.lineage, refuse.lineage))
            if (refuse.followers, refuse.lineage[-1].id) > (ours, token.epoch):
                self.abandon(peer)
                return True
        self.exclude(now, peer, Reason.PEER_REFUSED)
        return False

    def exclude(self, now: float, peer: int, reason: Reason) -> None:
        """The token could not be handed to ``peer``: go on without it.

        It may have the token all the same (its acknowledgement was lost). So this is a regeneration, with a new
        epoch: who has followed the other branch refuses this one, and the other way round.
        """
        self.trace(reason, peer)
        self.passed = None
        self.passed_acknowledged = True
        self.hungry_until = inf
        self.states.on_token(TokenEvent.DELIVERY_FAILED)
        self._lost(now, {peer})
        self._fork({peer})
        self.release(now)
        self.deliver()

    def regenerate(self, now: float, without: set[int]) -> None:
        """The 911 was granted."""
        self.trace(Reason.TOKEN_REGENERATED, 0)
        self.states.on_token(TokenEvent.GRANT)
        self._lost(now, without)
        self._fork(without)
        self.release(now)
        self.deliver()

    def _lost(self, now: float, peers: set[int]) -> None:
        """These could not be reached: remember it, and call them back soon in case it was a mistake."""
        for peer in peers:
            entry = self.token.member(peer) if self.token is not None else None
            self.discovery.failed(peer, now, invited=entry is not None and bool(entry.flags & JOINER))
        self.discovery.next_beacon = min(self.discovery.next_beacon, now + self.timers.failure_after)

    def _fork(self, without: set[int]) -> None:
        token = self.token
        assert token is not None
        self._epoch_number += 1
        token.fork(self.local, self.incarnation, self._epoch_number)
        removed = [node for node in without if token.member(node) is not None]
        for node in removed:
            self._remove(token, node)
        if removed and token.members:
            self.propose()
        self._settle()

    def alone(self, now: float) -> None:
        """Form a ring of one, with our own history if there is one."""
        self.trace(Reason.ALONE, 0)
        self.joining = False
        self.states.on_token(TokenEvent.ALONE)
        if self.token is None:
            self._epoch_number += 1
            token = Token()
            token.hop = 1
            token.lineage = [Epoch(EpochId(self._epoch_number, self.local, self.incarnation), 1)]
            token.members = [Member(self.local, self.incarnation, 1)]
            token.standing = self.standing
            self.token = token
            self.stream = Stream()
            self.awaiting_view = False
            self.propose()
        else:
            self._fork({member.id for member in self.token.members} - {self.local})
        self.release(now)
        self.deliver()

    def abandon(self, peer: int) -> None:
        """Drop our own token or our hope for it: a newer branch of the group exists; ask to be let in."""
        self.trace(Reason.TOKEN_ABANDONED, peer)
        self.states.on_token(TokenEvent.ABANDON)
        self.revoke_lease()
        self.passed = None
        self.passed_acknowledged = True
        self.joining = True
        self.eating_until = self.hungry_until = inf

    # ----------------------------------------------------------------------------------------------------- merging

    def _try_merge(self, now: float, own: Token) -> Token:
        """Merge our token into the parked one if our group is at rest, else bring it to rest first."""
        parked = self.parked
        assert parked is not None
        if not own.at_rest or own.member(self.local) is None:
            own.quiet_until = own.hop + 2 * len(own.members) + 1
            own.hasten()
            return own
        self.parked = None
        token = parked.token
        self.trace(Reason.MERGED, parked.sender, token)
        self.stream.stable = own.next_position
        self.deliver()
        others = own.ring_from(self.local)[1:]
        token.standing = max(token.standing, own.standing)
        token.view_number = max(token.view_number, own.view_number)
        token.farewells.append(Farewell(own.epoch, own.hop, own.next_position))
        entry = token.member(self.local)
        assert entry is not None
        self.states.on_token(TokenEvent.ABANDON)
        self.joining = True
        self._adopt(now, token, entry, invited=True)
        self._epoch_number = max(self._epoch_number, own.epoch.number) + 1
        token.fork(self.local, self.incarnation, self._epoch_number)
        for member in reversed(others):
            # An entry of the other group for a node that is with us in truth is out of date.
            self._remove(token, member.id)
            token.invite(self.local, member.id, member.incarnation, 0)
        self.propose()
        return token

    def _give_up_merge(self, now: float) -> None:
        parked, self.parked = self.parked, None
        assert parked is not None
        self._refuse(now, parked.sender, parked.token, Reason.MERGE_GIVEN_UP)

    def adopt_parked(self, now: float) -> None:
        """The own group has let this node go: the parked token takes it in at once."""
        parked, self.parked = self.parked, None
        if parked is not None and (entry := parked.token.member(self.local)) is not None:
            self._adopt(now, parked.token, entry, invited=True)
            self._begin_visit(now)

    def expire_parked(self, now: float) -> None:
        if self.parked is not None and now >= self.parked.until:
            self._give_up_merge(now)

    # ---------------------------------------------------------------------------------------------------- delivery

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
        if not self.awaiting_view and view is not None:
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
        self.awaiting_view = False
        self._promised = True
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

    # ----------------------------------------------------------------------------------------------------- service

    def relay_result(self, tag: RelayTag, position: int, refusal: int) -> None:
        if tag.peer in self.eligible:
            self.control(self.now, tag.peer, Relayed(tag.tag, position, refusal))

    def control(self, now: float, peer: int, message: Message) -> int:
        return self.link.send(now, peer, CHANNEL_CONTROL, encode(message))

    def ask_haste(self, now: float) -> None:
        """Something urgent waits here: wherever the token is, hurry it along."""
        token = self.token
        if self.eating:
            self.eating_until = now
        elif token is not None and not self.haste_asked and token.hop + len(token.members) > token.busy_until:
            self.haste_asked = True
            holder = token.resting_place
            if holder != self.local and holder in self.eligible:
                self.link.send_unreliable(now, holder, CHANNEL_CONTROL, HASTE)

    def withdraw(self) -> None:
        """Out of the ring: forget the group, refuse what waits."""
        if not self.out:
            self.states.on_token(TokenEvent.WITHDRAW)
        self._lose_inflight(Refusal.HISTORY_LOST)
        for tag in self.outbox.drain():
            self._fail(tag, Refusal.LEFT)
        self.token = None
        self.view = None
        self.passed = None
        self.parked = None
        self.passed_acknowledged = True
        self.joining = True
        self.leaving = False
        self.stream = Stream()
        self.discovery.clear()
        self.eating_until = self.hungry_until = inf

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
