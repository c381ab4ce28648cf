# SPDX-License-Identifier: Apache-2.0
"""What only one part of a divided cluster, or one node, may do at a time: serve under a majority, hold a lock."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sync.config import Policy
from sync.events import View
from tests.sim.violation import Identity, Violation

if TYPE_CHECKING:
    from sync.shared.locks import Lock
    from tests.sim.checkers import Record, ViewKey
    from tests.sim.instance import Instance


class Grant(NamedTuple):
    """Whom a lock was given to: node, incarnation and ticket."""

    fencing: int
    owner: tuple[int, int, int]


Place = tuple[int, Grant]
"""A position in the stream, and the newest grant there."""
NOBODY = Grant(0, (0, 0, 0))


class Exclusive:
    """Rules across all nodes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.eligible_alike = True
        """Never have two changes of the eligible members overlapped: then no two majorities need have one in common."""
        self._grants: defaultdict[ViewKey, list[Place]] = defaultdict(lambda: [(-1, NOBODY)])
        """View -> grants that any node in it has seen, by position; the first is what had been granted before."""
        self._newest: defaultdict[Identity, Grant] = defaultdict(lambda: NOBODY)

    # ---------------------------------------------------------------------------------------------------- majority

    def serving(self, identity: Identity, view: View, others: list[Instance]) -> None:
        """Two parts that serve have a member in common. ``others``: nodes that may take their view for what is."""
        if self.policy is not Policy.MAJORITY or not view.serving or not self.eligible_alike:
            return
        for other in others:
            theirs = other.node.view
            if theirs is not None and theirs.serving and not set(view.members) & set(theirs.members):
                raise Violation(
                    "one majority", f"{identity} serves in {view.members}, {other.identity} in {theirs.members}"
                )

    # ----------------------------------------------------------------------------------------------------- fencing

    def enters(self, identity: Identity, view: ViewKey, *, joined: bool) -> None:
        """What this node has seen granted lies before all grants of the view; unless it starts over in it."""
        if joined:
            self._newest[identity] = NOBODY
        newest = self._newest[identity]
        grants = self._grants[view]
        if newest.fencing > grants[0][1].fencing:
            grants[0] = (-1, newest)
        for later in grants[1:2]:
            self._compare(identity, grants[0], later)

    def granted(self, identity: Identity, view: ViewKey, position: int, lock: Lock) -> None:
        """This copy says that the lock is held, as of this position: numbers grow with the position, at all nodes."""
        grant = Grant(lock.fencing, (lock.holder.node, lock.holder.session, lock.holder.ticket))
        if grant == self._newest[identity]:
            return
        self._newest[identity] = grant
        grants = self._grants[view]
        place = bisect_right(grants, position, key=lambda entry: entry[0])
        there = position, grant
        self._compare(identity, grants[place - 1], there)
        for later in grants[place : place + 1]:
            self._compare(identity, there, later)
        grants.insert(place, there)

    @staticmethod
    def _compare(identity: Identity, earlier: Place, later: Place) -> None:
        (before, old), (after, new) = earlier, later
        if new.fencing < old.fencing or (new.fencing == old.fencing and new.owner != old.owner):
            raise Violation("fencing", f"{identity} knows {new} at {after} and {old} at {before} of one history")

    # ----------------------------------------------------------------------------------------------------- holders

    def holders(self, holders: list[Record]) -> None:
        """Of nodes that have gone through the same views, or under a majority of all, one acts as the holder."""
        majority = self.policy is Policy.MAJORITY and self.eligible_alike
        for index, one in enumerate(holders):
            for other in holders[:index]:
                if majority or one.key in other.path or other.key in one.path:
                    raise Violation("one holder", f"{one.identity} and {other.identity} both act as the lock's holder")
