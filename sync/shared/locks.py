# SPDX-License-Identifier: Apache-2.0
"""Named locks with a lease, a fair queue and fencing numbers: the replicated part, which knows no clock.

A lease ends in the replicated state only by an EXPIRE command that names the fencing number and the number of renewals
its sender had seen; a renewal ordered before it makes it void. Who sends it and when is in leases.py.

Fencing numbers are values of the replicated Lamport clock: they grow from holder to holder and survive merges. Two
parts of a split ring can each grant the same lock; where that must not be, choose the majority partition policy.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import limits
from .results import Done, Granted, Outcome, Owner, Refusal, Refused


class Waiter(NamedTuple):
    """One request in a lock's queue."""

    owner: Owner
    lease_ms: int


@dataclass(slots=True)
class Lock:
    """A held lock. A lock that nobody holds does not exist."""

    holder: Owner
    fencing: int
    lease_ms: int
    renewals: int = 0
    waiters: deque[Waiter] = field(default_factory=deque)


class LockTable:
    """All locks of one replica. Every method returns outcomes for whoever they concern."""

    def __init__(self) -> None:
        self._locks: dict[str, Lock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def get(self, name: str) -> Lock | None:
        """The lock while it is held, else None."""
        return self._locks.get(name)

    def all(self) -> dict[str, Lock]:
        """Held locks by name."""
        return self._locks

    def acquire(self, name: str, owner: Owner, lease_ms: int, wait: bool, clock: int) -> list[Outcome]:
        """Grant, queue or refuse."""
        lock = self._locks.get(name)
        if lock is None:
            if len(self._locks) >= limits.LOCKS_MAX:
                return [Outcome(owner, Refused(Refusal.TOO_MANY_LOCKS))]
            self._locks[name] = Lock(owner, clock, lease_ms)
            return [Outcome(owner, Granted(clock))]
        if not wait:
            return [Outcome(owner, Refused(Refusal.LOCK_TAKEN))]
        if len(lock.waiters) >= limits.WAITERS_MAX:
            return [Outcome(owner, Refused(Refusal.TOO_MANY_WAITERS))]
        lock.waiters.append(Waiter(owner, lease_ms))
        return []

    def renew(self, name: str, owner: Owner, holding: int) -> list[Outcome]:
        """Another lease for the request with ticket `holding` of the same origin."""
        lock = self._held(name, owner, holding)
        if lock is None:
            return [Outcome(owner, Refused(Refusal.NOT_HOLDER))]
        lock.renewals += 1
        return [Outcome(owner, Done(lock.fencing))]

    def release(self, name: str, owner: Owner, holding: int, clock: int) -> list[Outcome]:
        """Give the lock back; the next in the queue has it with the same command."""
        lock = self._held(name, owner, holding)
        if lock is None:
            return [Outcome(owner, Refused(Refusal.NOT_HOLDER))]
        return [Outcome(owner, Done(lock.fencing)), *self._pass_on(name, lock, clock)]

    def expire(self, name: str, fencing: int, renewals: int, clock: int) -> list[Outcome]:
        """End a lease, if it is still the one the sender saw."""
        lock = self._locks.get(name)
        if lock is None or lock.fencing != fencing or lock.renewals != renewals:
            return []
        return self._pass_on(name, lock, clock)

    def withdraw(self, owner: Owner) -> bool:
        """Take a waiting request out of its queue."""
        for lock in self._locks.values():
            for waiter in lock.waiters:
                if waiter.owner == owner:
                    lock.waiters.remove(waiter)
                    return True
        return False

    def release_departed(self, sessions: dict[int, int], clock: int) -> list[Outcome]:
        """Take locks and places in queues from every owner that is not among the members' sessions."""
        outcomes: list[Outcome] = []
        for name, lock in sorted(self._locks.items()):
            lock.waiters = deque(w for w in lock.waiters if sessions.get(w.owner.node) == w.owner.session)
            if sessions.get(lock.holder.node) != lock.holder.session:
                outcomes += self._pass_on(name, lock, clock)
        return outcomes

    def _held(self, name: str, owner: Owner, holding: int) -> Lock | None:
        lock = self._locks.get(name)
        return lock if lock is not None and lock.holder == owner._replace(ticket=holding) else None

    def _pass_on(self, name: str, lock: Lock, clock: int) -> list[Outcome]:
        if not lock.waiters:
            del self._locks[name]
            return []
        waiter = lock.waiters.popleft()
        lock.holder, lock.lease_ms, lock.fencing, lock.renewals = waiter.owner, waiter.lease_ms, clock, 0
        return [Outcome(waiter.owner, Granted(clock))]

    def export(self) -> list[Any]:
        """Plain form, equal on equal replicas."""
        return [
            [
                name,
                lock.holder,
                lock.fencing,
                lock.lease_ms,
                lock.renewals,
                list(lock.waiters),
            ]
            for name, lock in sorted(self._locks.items())
        ]

    def adopt(self, plain: list[Any]) -> None:
        """Replace everything by an export."""
        self._locks = {
            name: Lock(
                Owner(*holder), fencing, lease_ms, renewals, deque(Waiter(Owner(*owner), ms) for owner, ms in waiters)
            )
            for name, holder, fencing, lease_ms, renewals, waiters in plain
        }
