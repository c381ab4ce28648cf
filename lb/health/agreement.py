# SPDX-License-Identifier: Apache-2.0
"""Who checks a backend, and what the gateways make of the checkers' reports. Pure functions.

A backend is tried by a few gateways, not by all: n gateways with m backends cost 3·m checks, not n·m. A backend is
dead only when most of its checkers say so; a gateway with a broken link can so never eject a backend for all.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CHECKERS_PER_BACKEND = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What one gateway last found. `since` is its own wall clock in seconds, for people."""

    alive: bool
    detail: str
    since: float


def checkers(backend_id: int, members: Iterable[int], count: int = CHECKERS_PER_BACKEND) -> tuple[int, ...]:
    """The members that check this backend, by rendezvous hashing (Thaler and Ravishankar, 1998).

    A member that leaves or joins changes the checkers of only those backends it checks.
    """

    def rank(member: int) -> bytes:
        return hashlib.blake2b(b"%d/%d" % (backend_id, member), digest_size=8).digest()

    return tuple(sorted(sorted(members, key=rank)[:count]))


def verdict(reports: Mapping[int, Report], checking: Sequence[int]) -> bool:
    """Whether the backend is alive, from all reports by node id and the nodes that check it now.

    Dead needs more than half of the checkers. For a checker that has not reported yet stands the newest report of a
    former one, so that a change of members alone rarely moves a backend; where there is none, it counts for alive.
    A function of shared items alone: a gateway that joins later comes to the same result.
    """
    votes = [reports[node] for node in checking if node in reports]
    former = sorted((node for node in reports if node not in checking), key=lambda n: (-reports[n].since, n))
    votes += [reports[node] for node in former[: len(checking) - len(votes)]]
    return 2 * sum(not vote.alive for vote in votes) <= len(checking)


def slow_start_weight(weight: int, seconds_alive: float, slow_start_s: int) -> int:
    """The weight of a backend that came back `seconds_alive` ago: grows linearly, in tenths, and is never 0."""
    if weight == 0 or slow_start_s <= 0 or seconds_alive >= slow_start_s:
        return weight
    tenths = 1 + int(9 * max(0.0, seconds_alive) / slow_start_s)
    return max(1, weight * tenths // 10)
