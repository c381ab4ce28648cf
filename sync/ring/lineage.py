# SPDX-License-Identifier: Apache-2.0
"""Which token continues which: epochs, and the line of epochs a token descends from.

The thesis orders tokens by a sequence number alone; an old token still in flight is then indistinguishable from a
regenerated one. Here every regeneration (after a lost token, after a failed delivery, after a merge) begins a new epoch
at the hop after the last one its creator knows. A token carries its line of epochs, so a node can tell whether a token
continues what it has seen itself. A token that does not is refused, whatever its numbers: this, not the vote of the
911 message, is what keeps one token per group.
"""

from collections.abc import Sequence
from typing import NamedTuple

LINEAGE_KEPT = 4
"""Epochs kept although every member has passed them, so that stragglers of an older branch are recognised."""


class EpochId(NamedTuple):
    """Identity of an epoch; the order of ids decides which of two diverged branches survives."""

    number: int
    creator: int
    incarnation: int


NO_EPOCH = EpochId(0, 0, 0)


class Epoch(NamedTuple):
    """An epoch and the hop at which it begins."""

    id: EpochId
    first_hop: int


Lineage = Sequence[Epoch]


def extends(lineage: Lineage, hop: int, epoch: EpochId, last_hop: int) -> bool:
    """Does a token of this lineage, at this hop, continue the history of a node that was last at (epoch, last_hop)?"""
    ends = hop
    for candidate in reversed(lineage):
        if candidate.id == epoch:
            return last_hop < ends
        ends = candidate.first_hop
    return False


def related(one: Lineage, other: Lineage) -> bool:
    """Do both branches come from one group?"""
    ids = {epoch.id for epoch in one}
    return any(epoch.id in ids for epoch in other)


def divergence(one: Lineage, other: Lineage) -> int:
    """The first hop that is not common to two branches of one group."""
    ids_one, ids_other = {epoch.id for epoch in one}, {epoch.id for epoch in other}
    own = [epoch.first_hop for epoch in one if epoch.id not in ids_other]
    theirs = [epoch.first_hop for epoch in other if epoch.id not in ids_one]
    # A pruned lineage lacks old epochs of the other; what counts are those behind the common ones.
    common = max((epoch.first_hop for epoch in one if epoch.id in ids_other), default=0)
    return min((hop for hop in (*own, *theirs) if hop > common), default=common)


def pruned(lineage: list[Epoch], seen_by_all: int) -> list[Epoch]:
    """The lineage without epochs that ended before every member's last visit, ``LINEAGE_KEPT`` of them excepted."""
    while len(lineage) > LINEAGE_KEPT and lineage[1].first_hop <= seen_by_all:
        lineage = lineage[1:]
    return lineage
