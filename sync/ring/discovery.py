# SPDX-License-Identifier: Apache-2.0
"""Who wants to come in, who may be invited, and when absent members are called.

Beacons and the order in which groups merge follow thesis section 3.7.3, with two changes: groups are ranked by
(standing, size, group id) instead of the id alone, so that a lone node that starts does not take over a loaded ring;
and a node is invited only after it has acknowledged a message of ours, so that a node which can send but not
receive does not stall the ring for a failure budget per beacon.
"""

from __future__ import annotations

from dataclasses import dataclass

from sync.config import RingConfig
from sync.ring.messages import Verdict

DAMPING_FORGET = 5.0
"""Seconds after which a failed invitation no longer counts."""

FREE_INVITATIONS = 1
FREE_EXCLUSIONS = 3
"""So many failures within ``DAMPING_FORGET`` have no consequence."""


@dataclass(slots=True)
class Newcomer:
    """A node that may be invited at the next visit of the token."""

    node: int
    incarnation: int
    view_number: int
    since: float


@dataclass(slots=True)
class _Damping:
    failures: int
    until: float
    forget: float


class Discovery:
    """Newcomers, the handshake before an invitation, damping. Bounded by ``newcomers_max``."""

    def __init__(self, config: RingConfig) -> None:
        self._timers = config.timers
        self._max = config.newcomers_max
        self._ready: dict[int, Newcomer] = {}
        self._answered: dict[int, Newcomer] = {}
        self._damping: dict[int, _Damping] = {}
        self.next_beacon = 0.0
        self.dropped = 0

    @property
    def waiting(self) -> bool:
        return bool(self._ready)

    def offered(self, handle: int, newcomer: Newcomer) -> None:
        """An answer (REJECTED or WELCOME) is on its way; its acknowledgement proves that the newcomer hears us."""
        if len(self._answered) >= self._max:
            self.dropped += 1
            self._answered.pop(next(iter(self._answered)))
        self._answered[handle] = newcomer

    def acknowledged(self, handle: int, now: float) -> bool:
        """True when this makes a newcomer ready."""
        newcomer = self._answered.pop(handle, None)
        if newcomer is None or not self.invitable(newcomer.node, now) or len(self._ready) >= self._max:
            self.dropped += newcomer is not None
            return False
        newcomer.since = now
        self._ready[newcomer.node] = newcomer
        return True

    def unacknowledged(self, handle: int) -> None:
        self._answered.pop(handle, None)

    def take(self, now: float) -> list[Newcomer]:
        """Those to invite at this visit; requests older than the ``newcomer`` time are dropped."""
        if not self._ready:
            return []
        fresh = [n for n in self._ready.values() if now - n.since <= self._timers.newcomer]
        self.dropped += len(self._ready) - len(fresh)
        self._ready.clear()
        return fresh

    def forget(self, node: int) -> None:
        self._ready.pop(node, None)

    def clear(self) -> None:
        self._ready.clear()
        self._answered.clear()

    def invitable(self, node: int, now: float) -> bool:
        damping = self._damping.get(node)
        return damping is None or now >= damping.until

    def failed(self, node: int, now: float, *, invited: bool) -> None:
        """Delivery to this node failed: if that goes on, leave it alone for a while, longer each time.

        ``invited``: it was an invitation that failed; a member may have been excluded by mistake and has more credit.
        """
        damping = self._damping.get(node)
        failures = damping.failures + 1 if damping is not None and now < damping.forget else 1
        excess = failures - (FREE_INVITATIONS if invited else FREE_EXCLUSIONS)
        pause = min(self._timers.failure_after * 2**excess, self._timers.damping_max) if excess > 0 else 0.0
        self._damping[node] = _Damping(failures, now + pause, now + pause + DAMPING_FORGET)


class Joining:
    """A node without a ring: calls everyone, and forms a ring of its own when nobody takes it in."""

    __slots__ = ("_lower", "_timers", "_until", "starters", "taken")

    def __init__(self, config: RingConfig, now: float) -> None:
        self._timers = config.timers
        self._until = now + self._timers.alone
        self._lower = True
        self.taken = 0
        """How often a group has promised to take this node in."""

    def answered(self, now: float, verdict: Verdict, lower: bool) -> None:
        """An answer to our call; ``lower``: it comes from a lower node id."""
        if verdict is Verdict.REJECTED and self.taken < 8:
            self.taken += 1
            self._until = max(self._until, now + self._timers.alone)
        elif verdict is Verdict.STARTING and lower and self._lower:
            # The lower node forms the ring; one more period for it to do so.
            self._lower = False
            self._until += self._timers.alone

    @property
    def until(self) -> float:
        return self._until
