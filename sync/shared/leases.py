# SPDX-License-Identifier: Apache-2.0
"""Time limits of locks: when a holder stops trusting its lease, and when the group may end it.

No clocks are compared. The holder counts from before it asked, the group from after it saw the request, so the holder
always gives up first. A lock granted after a wait is trusted for half a lease and renewed at once: the group adds half
a lease of grace, more than a member's delivery can lag without the member being excluded.
"""

from dataclasses import dataclass

from .locks import Lock
from .results import Owner

CHECK_INTERVAL_S = 0.25  # how often the group's side looks for ended leases
EXPIRE_RETRY_S = 1.0  # an EXPIRE that had no effect is sent again after this time
GRACE = 1.5  # the group's side waits for this multiple of the lease


@dataclass(slots=True)
class _Watched:
    holder: Owner
    fencing: int
    renewals: int
    ends: float


class LeaseWatch:
    """The group's side. Every member runs one, the coordinator acts on it, so a new coordinator knows the times."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    def observe(self, now: float, name: str, lock: Lock | None) -> None:
        """A command about the lock was applied."""
        if lock is None:
            self._watched.pop(name, None)
            return
        known = self._watched.get(name)
        if known is not None and (known.fencing, known.renewals) == (lock.fencing, lock.renewals):
            return
        ends = now + GRACE * lock.lease_ms / 1000
        self._watched[name] = _Watched(lock.holder, lock.fencing, lock.renewals, ends)

    def restart(self, now: float, locks: dict[str, Lock]) -> None:
        """Locks may have changed in bulk; leases already being timed keep their times."""
        for name in self._watched.keys() - locks.keys():
            del self._watched[name]
        for name, lock in locks.items():
            self.observe(now, name, lock)

    def due(self, now: float) -> list[tuple[str, int, int]]:
        """(name, fencing, renewals) of leases that have ended."""
        ended = [(name, watched) for name, watched in self._watched.items() if watched.ends <= now]
        for _, watched in ended:
            watched.ends = now + EXPIRE_RETRY_S
        return [(name, watched.fencing, watched.renewals) for name, watched in ended]

    def __len__(self) -> int:
        return len(self._watched)


@dataclass(slots=True)
class Held:
    """The holder's side: one lock of ours. `valid_until` is in this node's monotonic seconds."""

    name: str
    ticket: int
    fencing: int
    lease_s: float
    valid_until: float
    renew_at: float
    renewing: int = 0  # ticket of the renewal under way
    asked_at: float = 0.0  # when that renewal was submitted

    @classmethod
    def granted(cls, now: float, asked_at: float, name: str, ticket: int, fencing: int, lease_s: float) -> "Held":
        """A grant delivered at `now` to a request submitted at `asked_at`."""
        fresh = asked_at + lease_s
        trusted = now + lease_s / 2
        return cls(name, ticket, fencing, lease_s, max(fresh, trusted), asked_at + lease_s / 3)

    def renewed(self) -> None:
        """The renewal under way took effect."""
        self.valid_until = max(self.valid_until, self.asked_at + self.lease_s)
        self.renew_at = self.asked_at + self.lease_s / 3
        self.renewing = 0
