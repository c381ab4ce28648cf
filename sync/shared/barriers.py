# SPDX-License-Identifier: Apache-2.0
"""Barriers, replicated: a first-comer's and an all-of-N one. Both outlive the death of any participant.

FIRST: the first to come passes at once and acts; the others wait until it leaves, then pass without acting. If it dies,
the longest waiting passes as the first. ALL: everybody waits until `parties` are there, or, with 0 parties, until
every member of the view is; those who die no longer count.
"""

from dataclasses import dataclass, field
from typing import Any

from . import limits
from .commands import BarrierMode
from .results import Done, Outcome, Owner, Passed, Refusal, Refused


@dataclass(slots=True)
class Barrier:
    """A barrier in use. `arrivals` are those waiting, and for FIRST the acting one in front."""

    mode: int
    parties: int
    generation: int
    arrivals: list[Owner] = field(default_factory=list)


class BarrierTable:
    """All barriers of one replica."""

    def __init__(self) -> None:
        self._barriers: dict[str, Barrier] = {}

    def get(self, name: str) -> Barrier | None:
        """The barrier while somebody is at it, else None."""
        return self._barriers.get(name)

    def all(self) -> dict[str, Barrier]:
        """Barriers in use, by name."""
        return self._barriers

    def enter(
        self, name: str, owner: Owner, mode: int, parties: int, members: frozenset[int], clock: int
    ) -> list[Outcome]:
        """Arrive; the outcome comes when the barrier opens for this request."""
        barrier = self._barriers.get(name)
        if barrier is None:
            if len(self._barriers) >= limits.BARRIERS_MAX:
                return [Outcome(owner, Refused(Refusal.TOO_MANY_BARRIERS))]
            barrier = self._barriers[name] = Barrier(mode, parties, clock)
        if (barrier.mode, barrier.parties) != (mode, parties):
            return [Outcome(owner, Refused(Refusal.BARRIER_MISMATCH))]
        if len(barrier.arrivals) >= limits.WAITERS_MAX:
            return [Outcome(owner, Refused(Refusal.TOO_MANY_WAITERS))]
        barrier.arrivals.append(owner)
        if mode == BarrierMode.FIRST:
            return [Outcome(owner, Passed(barrier.generation, True))] if len(barrier.arrivals) == 1 else []
        return self._open_if_complete(name, barrier, members)

    def leave(self, name: str, owner: Owner, arrived: int) -> list[Outcome]:
        """FIRST: the acting one is done, everybody passes. Anyone else: no longer waits."""
        barrier = self._barriers.get(name)
        arrival = owner._replace(ticket=arrived)
        if barrier is None or arrival not in barrier.arrivals:
            return [Outcome(owner, Refused(Refusal.NOT_AT_BARRIER))]
        if barrier.mode == BarrierMode.FIRST and barrier.arrivals[0] == arrival:
            del self._barriers[name]
            passed = [Outcome(other, Passed(barrier.generation, False)) for other in barrier.arrivals[1:]]
            return [Outcome(owner, Done(barrier.generation)), *passed]
        self._remove(name, barrier, arrival)
        return [Outcome(owner, Done(barrier.generation))]

    def withdraw(self, owner: Owner) -> bool:
        """Take a waiting request away from its barrier; the acting one of a FIRST barrier is not waiting."""
        for name, barrier in self._barriers.items():
            waiting = barrier.arrivals[1:] if barrier.mode == BarrierMode.FIRST else barrier.arrivals
            if owner in waiting:
                self._remove(name, barrier, owner)
                return True
        return False

    def settle(self, sessions: dict[int, int]) -> list[Outcome]:
        """Forget departed arrivals; open what is complete now, and let a new first act where the first has died."""
        outcomes: list[Outcome] = []
        for name, barrier in sorted(self._barriers.items()):
            acting = barrier.arrivals[0]
            barrier.arrivals = [o for o in barrier.arrivals if sessions.get(o.node) == o.session]
            if not barrier.arrivals:
                del self._barriers[name]
            elif barrier.mode == BarrierMode.ALL:
                outcomes += self._open_if_complete(name, barrier, frozenset(sessions))
            elif barrier.arrivals[0] != acting:
                outcomes.append(Outcome(barrier.arrivals[0], Passed(barrier.generation, True)))
        return outcomes

    def _open_if_complete(self, name: str, barrier: Barrier, members: frozenset[int]) -> list[Outcome]:
        if barrier.parties:
            complete = len(barrier.arrivals) >= barrier.parties
        else:
            complete = members <= {owner.node for owner in barrier.arrivals}
        if not complete:
            return []
        del self._barriers[name]
        return [
            Outcome(owner, Passed(barrier.generation, number == 0)) for number, owner in enumerate(barrier.arrivals)
        ]

    def _remove(self, name: str, barrier: Barrier, owner: Owner) -> None:
        barrier.arrivals.remove(owner)
        if not barrier.arrivals:
            del self._barriers[name]

    def export(self) -> list[Any]:
        """Plain form, equal on equal replicas."""
        return [[n, b.mode, b.parties, b.generation, b.arrivals] for n, b in sorted(self._barriers.items())]

    def adopt(self, plain: list[Any]) -> None:
        """Replace everything by an export."""
        self._barriers = {
            name: Barrier(mode, parties, generation, [Owner(*owner) for owner in arrivals])
            for name, mode, parties, generation, arrivals in plain
        }
