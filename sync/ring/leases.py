# SPDX-License-Identifier: Apache-2.0
"""How long this node may rely on being a member: the lease that guards what it owns."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from sync.config import RingConfig
from sync.events import TokenVisit
from sync.ring.delivery import Delivery, Link
from sync.ring.membership import ViewState
from sync.ring.token import Member, Token

DRIFT_MARGIN = 0.99
"""Two clocks may differ in speed by this much before a lease outlives a failure budget."""

RESTED_MASK = (1 << 32) - 1


class Leases(Delivery):
    """Tells, visit by visit, until when nobody can have gone on without this node."""

    def __init__(self, config: RingConfig, link: Link, incarnation: int, now: float, view_number: int) -> None:
        super().__init__(config, link, incarnation, now, view_number)
        self._last_pass = -inf
        self._rested_us = 0
        """``Token.rested_us`` at that pass."""
        self._promised = True
        """No member of the view is known to follow another branch."""
        self._genuine = False
        """The token has come round to this node, it was not regenerated here."""

    def _view_committed(self) -> None:
        self._promised = True

    def _renew_lease(self, token: Token) -> None:
        """Tell how long nobody in this node's view can have excluded it.

        To be told when the token arrives. Whoever excludes this node has tried for a failure budget to reach it, with
        a token or a 911, and has begun after this node's last pass: the token it could not hand over, or waited for in
        vain, had left here by then. (Counting from the present visit would be wrong: the predecessor may still be
        trying, its acknowledgements lost.) What the token has rested on its way here comes on top: the predecessor had
        it only after that, and the others wait for longer than a rest before they call. This holds only if the token
        has come round to this node, not if it was regenerated here, and while no member of this node's view has been
        taken off the list.
        """
        previous = self._last_pass
        if previous == -inf or self.view is None or self.awaiting_view or not self._promised:
            return
        if self.states.view is not ViewState.AGREEMENT:
            ring = {(member.id, member.incarnation) for member in token.members}
            if not ring.issuperset(zip(self.view.members, self.view.incarnations, strict=True)):
                return
        lease = previous + (self._rested(token) + self.timers.failure_after) * DRIFT_MARGIN
        self.effects.append(TokenVisit(token.hop, lease, len(token.members)))

    def _rested(self, token: Token) -> float:
        """Seconds the token has rested since this node's last pass; none, if it was regenerated from an older copy."""
        rested_us = token.rested_us - self._rested_us & RESTED_MASK
        return min(rested_us / 1e6, self.timers.turn_idle) if rested_us <= RESTED_MASK >> 1 else 0.0

    def _note_pass(self, now: float, token: Token) -> None:
        """The token leaves. Regenerated here, it says nothing about how the others fare."""
        if self._genuine:
            self._genuine = False
            self._last_pass, self._rested_us = now, token.rested_us

    def _note_rest(self, token: Token, seconds: float) -> None:
        """The token has rested here. Never more than a rest is meant to be: the others begin to call after that."""
        token.rested_us = token.rested_us + int(min(seconds, self.timers.turn_idle) * 1e6) & RESTED_MASK

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
        """This node leaves its group or gives it up, and with it what the group has promised: nobody need wait."""
        self._last_pass = -inf
        self._genuine = False
        if self.view is not None:
            self.effects.append(TokenVisit(0, self.now, 0))
