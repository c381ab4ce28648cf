# SPDX-License-Identifier: Apache-2.0
"""A node's copy of the shared data: its phases, and what the ordered stream does to it.

The lowest of the layers (own_copy, catching_up, comparison, group): each is a class that extends the one below, because
all of them are about the one copy this node has.
"""

from collections import Counter, deque
from collections.abc import Sequence
from enum import Enum
from math import inf
from typing import Any

from ..events import View
from . import rounds, transfer
from .commands import Kind, encode
from .effects import Complete, Effect, MulticastCommand
from .fetching import Deferral, Deferred, Fetcher
from .leases import LeaseWatch
from .replica import Replica
from .requests import Requests

COMPARE_INTERVAL_S = 60.0  # between two comparisons of all copies
LOCK_KINDS = frozenset({Kind.ACQUIRE, Kind.RENEW, Kind.RELEASE, Kind.EXPIRE, Kind.WITHDRAW})


class Phase(Enum):
    """Where this node's copy stands."""

    OUTSIDE = "in no view"
    FETCHING = "another state is on its way"
    COMPARING = "waiting for every member's report"
    READY = "complete"


class Copy:
    """The copy, the part of the stream it contains, and what waits until it is complete."""

    def __init__(self, local: int, session: int, compare_interval_s: float) -> None:
        self._local, self._session = local, session
        self._compare_interval_s = compare_interval_s
        self.replica = Replica()
        self.requests = Requests(local, session)
        self.phase = Phase.OUTSIDE
        self.counters: Counter[str] = Counter()
        self._view: View | None = None
        self._position = -1  # of the last part of the stream that the copy contains
        self._incomplete: frozenset[int] = frozenset()  # members known to be fetching
        self._synchronised = True
        self._comparison = 0
        self._reports: dict[int, rounds.Report] = {}
        self._deferral = Deferral()
        self._fetcher = Fetcher(local)
        self._donor = transfer.Donor(self.replica)
        self._told_complete = False
        self._given_up = 0  # highest clock of the histories this node has given up: nothing here is older
        self._trusted_until = -inf
        self._waiting: deque[tuple[int, int, Sequence[Any], bool]] = deque()  # submitted while incomplete
        self._leases = LeaseWatch()
        self._next_check = inf
        self._next_compare = inf
        self._audited = 0
        self._heard = -1  # the place in the stream that has been delivered here, whatever has become of it
        self._standing = 0
        self._in_use = False
        self._effects: list[Effect] = []

    def _apply(self, now: float, place: Deferred) -> None:
        if isinstance(place.what, View):
            self._settle(now, place.what)
            return
        command = place.what
        if command.kind == Kind.FETCHED:
            self._incomplete -= {place.origin}
        self.requests.mark_ordered(place.origin, command.session, command.ticket)
        outcomes = self.replica.apply(place.origin, command)
        self._effects += self.requests.answer(now, outcomes)
        if command.kind in LOCK_KINDS and command.kind != Kind.WITHDRAW:
            name = command.arguments[0]
            self._leases.observe(now, name, self.replica.locks.get(name))
            if command.kind == Kind.EXPIRE:
                self.counters["leases_ended"] += 1
                self._effects += self.requests.forget_lock(name, self.replica)
        self._position = place.position

    def _settle(self, now: float, view: View) -> None:
        sessions = dict(zip(view.members, view.incarnations, strict=True))
        founder = sessions[min(frozenset(view.members) - view.joined)]
        self._effects += self.requests.answer(now, self.replica.settle(sessions, 0, founder, view.serving))
        self._leases.restart(now, self.replica.locks.all())
        self._position = view.position

    def _defer(self, place: Deferred) -> None:
        if not self._deferral.add(place):
            # The state fetched must be newer than what was dropped here.
            self.counters["deferred_overflows"] += 1
            self._fetcher.stop()
            self._fetcher.begin(place.position)
            self._fetcher.deadline = 0.0
            self._synchronised = False

    def _become_ready(self, now: float) -> None:
        self._synchronised = True
        self._fetcher.stop()
        for place in self._deferral.take():
            if place.position > self._position:
                self._apply(now, place)
        self._phase_to(Phase.READY)
        self._leases.restart(now, self.replica.locks.all())
        self._flush_waiting()

    def _flush_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for ticket, kind, arguments, urgent in waiting:
            payload = encode(kind, self._stamp, self._session, ticket, *arguments)
            self._effects.append(MulticastCommand(ticket, payload, urgent))

    @property
    def _stamp(self) -> int:
        """Clock that this node's commands carry."""
        return max(self.replica.clock, self._given_up)

    def _phase_to(self, phase: Phase) -> None:
        if phase is self.phase:
            return
        self.phase = phase
        self.counters[f"entered_{phase.name.lower()}"] += 1
        # A comparison of complete copies is no news to anybody.
        if phase is not Phase.COMPARING and self._told_complete != (phase is Phase.READY):
            self._told_complete = phase is Phase.READY
            self._effects.append(Complete(self._told_complete))

    def _multicast(self, kind: Kind, *arguments: Any) -> None:
        payload = encode(kind, self._stamp, self._session, 0, *arguments)
        self._effects.append(MulticastCommand(0, payload))
