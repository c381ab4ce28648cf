# SPDX-License-Identifier: Apache-2.0
"""Requests of this node: submitted, ordered, answered; and the locks that answers have made ours."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import limits
from .barriers import BarrierTable
from .commands import BarrierMode, Kind
from .effects import Answered, Effect, LockLost
from .leases import Held
from .locks import LockTable
from .queues import QueueTable
from .replica import Replica
from .results import Granted, Outcome, Owner, Passed, Refused, Result, Taken, Unknown

RENEWAL_RETRY_S = 1.0


class TooManyRequests(RuntimeError):
    """REQUESTS_MAX requests of this node are unanswered: wait for some of them before submitting more."""


@dataclass(slots=True)
class Request:
    """One request without an answer. `ordered`: its command has come out of the stream."""

    kind: int
    arguments: Sequence[Any]
    asked_at: float
    ordered: bool = False


class Requests:
    """Bookkeeping for one incarnation of one node."""

    def __init__(self, local: int, session: int) -> None:
        self._local, self._session = local, session
        self._next_ticket = 1
        self._open: dict[int, Request] = {}
        self.held: dict[int, Held] = {}  # locks of ours, by the ticket that acquired them

    def __len__(self) -> int:
        return len(self._open)

    def owner(self, ticket: int) -> Owner:
        """How replicas call the request with this ticket."""
        return Owner(self._local, self._session, ticket)

    @property
    def next_ticket(self) -> int:
        """The ticket `open` will give."""
        return self._next_ticket

    def open(self, now: float, kind: int, arguments: Sequence[Any]) -> int:
        """Register a request, return its ticket. Raises TooManyRequests."""
        if len(self._open) >= limits.REQUESTS_MAX:
            raise TooManyRequests(f"{len(self._open)} requests are unanswered (REQUESTS_MAX)")
        ticket = self._next_ticket
        self._next_ticket += 1
        self._open[ticket] = Request(kind, arguments, now)
        if kind == Kind.RELEASE:
            # Ours no more from here on: should the release get lost, the lease ends, because nobody renews it.
            self.held.pop(arguments[1], None)
        return ticket

    def mark_ordered(self, origin: int, session: int, ticket: int) -> None:
        """A command came out of the stream; if it is ours, it will not come again."""
        if origin == self._local and session == self._session:
            request = self._open.get(ticket)
            if request is not None:
                request.ordered = True

    def answer(self, now: float, outcomes: Iterable[Outcome]) -> list[Effect]:
        """Pick our own outcomes out of everybody's."""
        effects: list[Effect] = []
        for (node, session, ticket), result in outcomes:
            if node == self._local and session == self._session:
                effects += self._answer(now, ticket, result)
        return effects

    def _answer(self, now: float, ticket: int, result: Result) -> list[Effect]:
        request = self._open.pop(ticket, None)
        if request is None:
            return []
        if request.kind == Kind.RENEW:
            return self._renewal_answered(request, result)
        if isinstance(result, Granted):
            name, lease_ms, _ = request.arguments
            held = Held.granted(now, request.asked_at, name, ticket, result.fencing, lease_ms / 1000)
            self.held[ticket] = held
        return [Answered(ticket, result)]

    def _renewal_answered(self, request: Request, result: Result) -> list[Effect]:
        name, holding = request.arguments
        held = self.held.get(holding)
        if held is None:
            return []
        if isinstance(result, Refused | Unknown):
            del self.held[holding]
            return [LockLost(name, holding, held.fencing)]
        held.renewed()
        return []

    def fail(self, ticket: int, result: Result) -> list[Effect]:
        """The ring did not take the command, or cannot say whether it was ordered."""
        request = self._open.get(ticket)
        if request is None or request.ordered:
            return []
        del self._open[ticket]
        # A renewal is tried again while the lease lasts.
        return [] if request.kind == Kind.RENEW else [Answered(ticket, result)]

    def ended_leases(self, now: float) -> list[Effect]:
        """Locks whose lease is over by our own clock."""
        ended = [held for held in self.held.values() if held.valid_until <= now]
        for held in ended:
            del self.held[held.ticket]
        return [LockLost(held.name, held.ticket, held.fencing) for held in ended]

    def renewals_due(self, now: float) -> list[Held]:
        """Locks to renew now."""
        due = [held for held in self.held.values() if held.renew_at <= now]
        for held in due:
            held.renew_at = now + min(RENEWAL_RETRY_S, held.lease_s / 6)
        return [held for held in due if held.renewing not in self._open]

    def forget_lock(self, name: str, replica: Replica) -> list[Effect]:
        """A lease on `name` may have been ended by the group: tell if it was ours."""
        lost = [h for h in self.held.values() if h.name == name and not self._still_ours(h, replica.locks)]
        for held in lost:
            del self.held[held.ticket]
        return [LockLost(held.name, held.ticket, held.fencing) for held in lost]

    def reconcile(self, now: float, replica: Replica) -> list[Effect]:
        """Our copy was replaced: find out what became of everything that had been ordered before."""
        effects: list[Effect] = []
        for held in [h for h in self.held.values() if not self._still_ours(h, replica.locks)]:
            del self.held[held.ticket]
            effects.append(LockLost(held.name, held.ticket, held.fencing))
        waiting, turns = _standing(replica)
        for ticket, request in list(self._open.items()):
            owner = self.owner(ticket)
            if request.ordered and owner not in waiting:
                effects += self._answer(now, ticket, turns.get(owner, Unknown()))
        return effects

    def forgotten(self, now: float, replica: Replica) -> list[Effect]:
        """Commands that waited for a complete copy are given up: ours that were among them have no outcome."""
        waiting, turns = _standing(replica)
        kept = waiting | turns.keys()
        lost = [t for t, request in self._open.items() if request.ordered and self.owner(t) not in kept]
        return [effect for ticket in lost for effect in self._answer(now, ticket, Unknown())]

    def _still_ours(self, held: Held, locks: LockTable) -> bool:
        lock = locks.get(held.name)
        return lock is not None and lock.holder == self.owner(held.ticket) and lock.fencing == held.fencing


def _standing(replica: Replica) -> tuple[set[Owner], dict[Owner, Result]]:
    """Who still waits, and what those hold who have had their turn."""
    waiting: set[Owner] = set()
    turns: dict[Owner, Result] = {}
    for lock in replica.locks.all().values():
        turns[lock.holder] = Granted(lock.fencing)
        waiting.update(waiter.owner for waiter in lock.waiters)
    _barriers_standing(replica.barriers, waiting, turns)
    _queues_standing(replica.queues, waiting, turns)
    return waiting, turns


def _barriers_standing(barriers: BarrierTable, waiting: set[Owner], turns: dict[Owner, Result]) -> None:
    for barrier in barriers.all().values():
        waiting.update(barrier.arrivals)
        if barrier.mode == BarrierMode.FIRST:
            waiting.discard(barrier.arrivals[0])
            turns[barrier.arrivals[0]] = Passed(barrier.generation, True)


def _queues_standing(queues: QueueTable, waiting: set[Owner], turns: dict[Owner, Result]) -> None:
    for queue in queues.all().values():
        waiting.update(queue.takers)
        turns.update((owner, Taken(*element)) for owner, element in queue.taken.items())
