# SPDX-License-Identifier: Apache-2.0
"""The token's way through one node: accepted, held, passed on; and the merging of two.

Thesis sections 3.5 (pseudo-code events 2 and 6) and 3.7.3, with the changes described in docs/protocol.md.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from sync.config import RingConfig
from sync.events import Order, Reason, Refusal, TokenVisit
from sync.ring.delivery import Link
from sync.ring.holding import Holding
from sync.ring.leases import DRIFT_MARGIN
from sync.ring.lineage import LINEAGE_KEPT, Epoch, EpochId, divergence, extends
from sync.ring.membership import TokenEvent, TokenState, ViewEvent, ViewState
from sync.ring.messages import CHANNEL_CONTROL, CHANNEL_TOKEN, Haste, Refuse, encode, encode_token
from sync.ring.quiet import QuietTurn, settled
from sync.ring.token import JOINER, Farewell, Member, Proposal, Token

HASTE = b"".join(encode(Haste()))
PATIENCE = 0.85
"""Of the time until 911: so long the return of an idle token is awaited before its delivery is asked about."""
PATIENCE_RESTED = 0.25
"""Of the failure budget: the same at its resting place, to which it returns at network speed."""
PATIENCE_MAX = 0.9, 0.5
"""Of the failure budget, on the way to the resting place and from there."""


class _Passed(NamedTuple):
    """The token as it was last sent."""

    peer: int
    handle: int
    epoch: EpochId
    hop: int
    unhurried: bool
    """An idle token: its delivery is asked about only when it does not come back."""
    quiet: QuietTurn | None
    """How it looks if nothing happens to it until it is back."""


class _Parked(NamedTuple):
    """A token of another group that waits for our own to be merged into it."""

    token: Token
    sender: int
    until: float


class Circulation(Holding):
    """Takes the token, works on it, passes it on."""

    def __init__(self, config: RingConfig, link: Link, incarnation: int, now: float, view_number: int) -> None:
        super().__init__(config, link, incarnation, now, view_number)
        self.standing = 0
        """What this node says of its group's state; 0: nothing."""
        self.joining = True
        """Asks to be taken in; its own history, if any, counts only if nobody does."""
        self.haste = False
        self.haste_asked = False
        self.passed: _Passed | None = None
        self.passed_acknowledged = True
        self.parked: _Parked | None = None
        self._epoch_number = 0
        self._last_visit = now
        self._away = 0.0
        """How long the token was away the last time."""
        self._rests_since = inf
        self._quiet: QuietTurn | None = None
        """The token that is here came back from a quiet turn."""

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

    def accept_quietly(self, now: float, data: bytes | memoryview) -> bool:
        """Take the token as `accept` would, if it is known for the one that was passed on, with nothing to be done."""
        passed = self.passed
        if (
            passed is None
            or (quiet := passed.quiet) is None
            or self.states.token is not TokenState.HUNGRY
            or self.states.view is not ViewState.AGREEMENT
            or self.joining
            or not quiet.returns(data)
        ):
            return False
        token = quiet.token
        self._take_hold(token)
        self._quiet = quiet
        self._genuine = True
        self._renew_lease(token)
        self._begin_visit(now)
        return True

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
        self._take_hold(token)
        if invited:
            self._start_over(token, entry)
            if self.parked is not None and self.parked.token is not token:
                self._give_up_merge(now)
        entry.flags &= ~JOINER
        entry.last_hop = token.hop
        self.token = token
        self.joining = False
        self._epoch_number = max(self._epoch_number, token.epoch.number)
        self._genuine = True
        if invited:
            self.stream.take(token.parcels)
            self._settle_view_number(entry.since)
        else:
            self._take(token.parcels)
        self._settle()
        self._renew_lease(token)

    def _take_hold(self, token: Token) -> None:
        if self.passed is not None:
            # The token is back: whatever became of our last transmission, it need not be repeated.
            self.link.cancel(self.passed.handle)
        self.passed = self._quiet = None
        self.passed_acknowledged = True
        self.hungry_until = self._rests_since = inf
        if self.eating:
            self.trace(Reason.TOKEN_ABANDONED, 0)
            self.states.on_token(TokenEvent.ABANDON)
        self.states.on_token(TokenEvent.ACCEPT)
        self.trace(Reason.TOKEN_ACCEPTED, 0, token)

    def _start_over(self, token: Token, entry: Member) -> None:
        farewell = self._farewell(token)
        if farewell is not None:
            self.stream.stable = farewell.position
            self.deliver()
        self._lose_inflight(Refusal.HISTORY_LOST)
        self.revoke_lease()
        self._struck.clear()
        self._begin_stream(token.parcels[0].position if token.parcels else token.next_position)
        self.awaiting_view = True
        self._invited_at = entry.since
        if self.states.view is not ViewState.CHAOS:
            self.states.on_view(ViewEvent.UNCERTAIN)

    def _settle_view_number(self, since: int) -> None:
        """A view of a number this node has already used elsewhere would contradict its history: replace it.

        Only views from its invitation on: it has not received those, so nobody can have committed them.
        """
        token = self.token
        assert token is not None
        clash = False
        for parcel in token.pending_views(since):
            proposal = Proposal.decode(parcel.body)
            if (self.local, self.incarnation) in proposal.members and proposal.number <= self.view_number:
                clash = True
                if parcel.order == Order.SAFE:
                    self.trace(Reason.VIEW_CANCELLED, parcel.origin, token)
                    self._take([token.cancel(parcel)])
        if clash:
            self.propose()
        for parcel in token.pending_views(since):
            self._reserve(parcel)

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
        self._away = now - self._last_visit
        if self._hurry(token):
            self.release(now)
        else:
            self.eating_until = now + self.timers.turn_idle
            self._rests_since = now
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
        if self._rests_since != inf:
            self._note_rest(token, now - self._rests_since)
            self._rests_since = inf
        quiet, self._quiet = self._quiet, None
        if quiet is not None and self._leave_alone(quiet):
            self._pass(now, token, quiet)
            return
        if self.parked is not None:
            token = self._try_merge(now, token)
        if self.haste:
            token.hasten_turn()  # whoever asked prolongs it when it has the token, if need be
        self.haste = self.haste_asked = False
        self.weigh(token)
        self._expel(token)
        self._invite(now, token)
        self._reconsider(token)
        if token.hop >= token.quiet_until and not self.awaiting_view:
            self._load(token, now - self._last_visit)
        own = token.member(self.local)
        if own is not None and (self.leaving or self._must_go(token, own)):
            self._step_out(token)
        self._settle()
        if not any(member.flags & JOINER for member in token.members):
            token.farewells = []
        if len(token.members) == 1 and token.members[0].id == self.local:
            self._keep(now)
        elif token.members:
            self._pass(now, token)

    def weigh(self, token: Token) -> None:
        """Say what the group's state is worth, if this node knows: one that has just been invited does not."""
        if self.standing and not self.awaiting_view:
            token.standing = self.standing

    def _leave_alone(self, quiet: QuietTurn) -> bool:
        """Nothing has come up in this visit that would change the token."""
        return not (
            self.haste
            or self.haste_asked
            or self.leaving
            or self.outbox
            or self.parked is not None
            or self.discovery.waiting
            or quiet.eligible is not self.eligible
            or quiet.token is not self.token
            or self.standing not in (0, quiet.token.standing)
        )

    def _pass(self, now: float, token: Token, quiet: QuietTurn | None = None) -> None:
        peer = quiet.successor if quiet is not None else token.successor(self.local).id
        timers = self.timers
        members = len(token.members)
        # A loaded ring turns more slowly than an idle one; what it took last time is no reason for alarm.
        turn = min(1.4 * (now - self._last_visit), 2 * timers.failure_after)
        self._last_visit = now
        rests = token.hop + members > token.busy_until
        hungry = max(timers.hungry_idle if rests else timers.hungry, turn) + members * timers.hungry_per_member
        self.hungry_until = now + hungry
        # An idle token is back within a turn, which says more than an acknowledgement, and costs nobody a wake-up.
        unhurried = token.hop >= token.busy_until and token.at_rest
        patience = self._patience(token, hungry) if unhurried else 0.0
        buffers = quiet.sent_on() if quiet is not None else encode_token(token, token.hop + 1)
        if quiet is None and unhurried and settled(token) and token.member(self.local) is not None:
            quiet = QuietTurn(token, self.local, self.eligible, b"".join(buffers))
        handle = self.link.send(now, peer, CHANNEL_TOKEN, buffers, patience)
        self.passed = _Passed(peer, handle, token.epoch, token.hop + 1, unhurried, quiet)
        self.passed_acknowledged = False
        self.states.on_token(TokenEvent.PASS)
        self.trace(Reason.TOKEN_PASSED, peer, token)
        self.eating_until = inf
        self._note_pass(now, token)

    def _patience(self, token: Token, hungry: float) -> float:
        """How long to wait for an idle token before asking whether its successor has it.

        Only its resting place misses it soon after a death; its question is passed on from member to member
        (``asked``), so that it takes nobody longer.
        """
        budget = self.timers.failure_after
        if self.local != token.resting_place:
            return min(PATIENCE * hungry, PATIENCE_MAX[0] * budget)
        usual = PATIENCE_RESTED * budget + len(token.members) * self.timers.hungry_per_member
        return min(max(usual, 1.4 * self._away), PATIENCE_MAX[1] * budget)

    def asked(self, now: float) -> None:
        """The predecessor misses an idle token that has been here: ask the successor in turn."""
        passed = self.passed
        if passed is not None and passed.unhurried and not self.passed_acknowledged:
            self.link.ask(now, passed.peer, passed.handle)

    def _keep(self, now: float) -> None:
        self._last_pass = -inf
        self.eating_until = now + self.timers.turn_idle
        self.hungry_until = inf
        self.deliver()
        if self.view is not None and len(self.view.members) == 1:
            lease = now + self.timers.failure_after * DRIFT_MARGIN
            self.effects.append(TokenVisit(self.token.hop if self.token else 0, lease, 1))

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
