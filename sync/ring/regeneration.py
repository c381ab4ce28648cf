# SPDX-License-Identifier: Apache-2.0
"""When the token cannot go on: exclusion, regeneration, a ring of one, giving way to another branch, leaving.

Thesis section 3.5 (pseudo-code events 4 and 5, and what follows a granted 911).
"""

from __future__ import annotations

from math import inf

from sync.events import Reason, Refusal
from sync.ring.circulation import Circulation
from sync.ring.lineage import Epoch, EpochId, divergence, related
from sync.ring.membership import TokenEvent, TokenState
from sync.ring.messages import CHANNEL_TOKEN, Refuse, encode_token
from sync.ring.token import JOINER, Member, Token


class Ring(Circulation):
    """One node's part in the ring, complete."""

    def delivered(self, handle: int) -> None:
        if self.passed is not None and self.passed.handle == handle:
            self.passed_acknowledged = True

    def lost_sight_of(self, handle: int) -> int | None:
        """The successor, if this failure on delivery says that it is gone, but not that the token is gone with it.

        An idle token is not acknowledged at once: the successor may have handed it on before it died. Another member
        can tell, if there is one.
        """
        passed, token = self.passed, self.token
        if passed is None or token is None or passed.handle != handle or not passed.unhurried or self.leaving_done:
            return None
        if self.states.token is not TokenState.HUNGRY or len(token.members) <= 2:
            return None
        self._end_pass()
        return passed.peer

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
        self._end_pass()
        self.states.on_token(TokenEvent.DELIVERY_FAILED)
        self._lost(now, {peer})
        self._fork({peer})
        self.release(now)
        self.deliver()

    def regenerate(self, now: float, without: set[int]) -> None:
        """The 911 was granted."""
        self.trace(Reason.TOKEN_REGENERATED, 0)
        self._end_pass()
        self.states.on_token(TokenEvent.GRANT)
        self._lost(now, without)
        self._fork(without)
        self.release(now)
        self.deliver()

    def _end_pass(self) -> None:
        """Whatever may still be heard of the last pass, a late refusal say, concerns a token that is history now."""
        self.passed = None
        self.passed_acknowledged = True
        self.hungry_until = inf

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
        self._end_pass()
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
            self._begin_stream()
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

    def withdraw(self) -> None:
        """Out of the ring: forget the group, refuse what waits."""
        if not self.out:
            self.states.on_token(TokenEvent.WITHDRAW)
        self.revoke_lease()
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
        self._begin_stream()
        self.discovery.clear()
        self.eating_until = self.hungry_until = inf
