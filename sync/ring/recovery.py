# SPDX-License-Identifier: Apache-2.0
"""911: the right to regenerate a lost token, and the request to join, are one message (thesis section 3.5).

The thesis passes the 911 from node to node along a list that may hold dead nodes, each costing a failure budget. Here
the caller asks all members at once and each answers it directly; the failure budgets of several dead nodes run side by
side. A member whose copy of the token is newer answers NO and calls itself, without waiting for its own timeout.
"""

from __future__ import annotations

from sync.ring.lineage import extends
from sync.ring.messages import Call, Verdict
from sync.ring.token import JOINER, Token


def judge(call: Call, caller: int, incarnation: int, local: int, copy: Token | None, token_lives: bool) -> Verdict:
    """Answer a call. ``copy``: this node's last token, None without a ring; ``token_lives``: it has the token or
    is handing it on right now.
    """
    if copy is None:
        return Verdict.STARTING
    if not call.member:
        return Verdict.REJECTED
    entry = copy.member(caller)
    newer = extends(copy.lineage, copy.hop, call.epoch, call.hop)
    if entry is None or entry.incarnation != incarnation or entry.flags & JOINER:
        theirs_died = newer or any(known.id == call.epoch for known in copy.lineage)
        return Verdict.REJECTED if theirs_died and outweighs(len(copy.members), call.members) else Verdict.LEFT_OUT
    if token_lives:
        return Verdict.NO
    if call.epoch == copy.epoch:
        # Equal hops do not happen, every hop is one node's; the higher id wins all the same (thesis, in its text).
        return Verdict.NO if (copy.hop, local) > (call.hop, caller) else Verdict.YES
    if newer:
        return Verdict.NO
    return Verdict.YES if call.epoch.number > copy.epoch.number else Verdict.REJECTED


def outweighs(members: int, others: int) -> bool:
    """May a newer branch of so many members swallow an older one? Not a large group by a splinter of it."""
    return 2 * members >= others


class Calling:
    """A 911 in progress at its origin."""

    __slots__ = ("handles", "id", "refused", "waiting")

    def __init__(self, id: int, members: list[int]) -> None:
        self.id = id
        self.waiting = set(members)
        """Members that have neither answered nor been found dead."""
        self.refused: set[int] = set()
        """Members to regenerate without: dead, or of another branch."""
        self.handles: dict[int, int] = {}
        """Transport handle -> member."""

    def answered(self, member: int, verdict: Verdict) -> None:
        if member in self.waiting:
            self.waiting.discard(member)
            if verdict is not Verdict.YES:
                self.refused.add(member)

    def failed(self, member: int) -> None:
        self.waiting.discard(member)
        self.refused.add(member)

    @property
    def granted(self) -> bool:
        return not self.waiting
