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


class Leases(Delivery):
    """Tells, visit by visit, until when nobody can have gone on without this node."""

    def __init__(self, config: RingConfig, link: Link, incarnation: int, now: float, view_number: int) -> None:
        super().__init__(config, link, incarnation, now, view_number)
        self._last_pass = -inf
        self._promised = True
        """No member of the view is known to follow another branch."""
        self._genuine = False
        """The token has come round to this node, it was not regenerated here."""

    def _view_committed(self) -> None:
        self._promised = True

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
        """This node leaves its group or gives it up, and with it what the group has promised: nobody need wait."""
        self._last_pass = -inf
        self._genuine = False
        if self.view is not None:
            self.effects.append(TokenVisit(0, self.now, 0))
