# SPDX-License-Identifier: Apache-2.0
"""Shared data and locks on top of the simulated ring, and what must hold for them.

Copies that have applied the same part of one view's stream are equal; a transaction's writes appear together; fencing
numbers of a lock only grow, for one node and along every history of all nodes; who believes to hold a lock is its
holder in the copy of that node.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from sync.events import Deliver, Direct, Event, Multicast, Order, Refusal, Standing, View
from sync.shared import (
    CHANNEL,
    Answered,
    Granted,
    Kind,
    LockLost,
    MulticastCommand,
    Operation,
    SendPeer,
    SharedData,
    StandingChanged,
)
from sync.shared.locks import Lock
from sync.shared.requests import TooManyRequests
from tests.sim.checkers import Checkers
from tests.sim.violation import Violation

LOCK = "sim/lock"
PAIRS = 3
OPEN_MAX = 40
LEASE_AWAITED_MS = 1000
SHARED_TAG = 1 << 40
"""Tags of the workload lie below, those of the shared data from here on."""


class SharedWorkload:
    """One node's copy with a small workload: pairs of items that must stay equal, a lock, a counter."""

    def __init__(self, node: int, incarnation: int, checkers: Checkers, lock_lease_ms: int) -> None:
        self.identity = (node, incarnation)
        self.shared = SharedData(node, incarnation)
        self._checkers = checkers
        self._lock_lease_ms = lock_lease_ms
        self._held: dict[int, int] = {}
        """Ticket of a lock this node believes to hold -> fencing number."""
        self._fencing = 0
        self._awaited = 0
        """Number of a lock that nobody here knows to be ours."""
        self._tags: dict[int, int] = {}
        self._next_tag = SHARED_TAG + (node << 32)
        self._stopped = False

    def act(self, now: float, rng: random.Random) -> None:
        shared = self.shared
        if len(self._tags) > OPEN_MAX:
            return
        try:
            match rng.randrange(5):
                case 0 | 1:
                    pair, value = rng.randrange(PAIRS), rng.randbytes(rng.choice((1, 8, 300)))
                    sets = [(Operation.SET, f"pair/{pair}/{side}", value) for side in ("a", "b")]
                    shared.write(now, sets)
                case 2:
                    shared.write(now, [(Operation.ADD, "count", 1)])
                case 3:
                    shared.submit(now, Kind.ACQUIRE, LOCK, self._lock_lease_ms, rng.random() < 0.5)
                case 4 if self._held:
                    self._release(now)
        except TooManyRequests:
            return

    def contend(self, now: float, rng: random.Random) -> None:
        """Release the lock, or ask for it."""
        if self._held:
            self._release(now)
        elif len(self._tags) <= OPEN_MAX:
            self.shared.submit(now, Kind.ACQUIRE, LOCK, self._lock_lease_ms, rng.random() < 0.8)

    def _release(self, now: float) -> None:
        ticket = next(iter(self._held))
        del self._held[ticket]
        self.shared.submit(now, Kind.RELEASE, LOCK, ticket)

    def take(self, now: float) -> list[Event]:
        """What the copy wants of the ring."""
        self.shared.tick(now)
        events: list[Event] = []
        for effect in self.shared.take():
            match effect:
                case MulticastCommand(ticket, payload):
                    events.append(Multicast(self._tag(ticket), CHANNEL, [payload], Order.AGREED))
                case SendPeer(node, payload):
                    events.append(Direct(self._tag(0), node, CHANNEL, payload))
                case StandingChanged(value):
                    events.append(Standing(value))
                case Answered(ticket, Granted(fencing)):
                    self._granted(ticket, fencing)
                case LockLost(_, ticket, _):
                    self._held.pop(ticket, None)
        return events

    def acting(self, now: float) -> bool:
        """Does a program here take the lock for its own?"""
        held = self.shared.requests.held
        return any(held[ticket].name == LOCK and self.shared.holds(now, ticket) for ticket in held)

    def _tag(self, ticket: int) -> int:
        self._next_tag += 1
        if ticket:
            self._tags[self._next_tag] = ticket
        return self._next_tag

    def _granted(self, ticket: int, fencing: int) -> None:
        if fencing <= self._fencing:
            raise Violation("fencing", f"{self.identity} got {fencing} after {self._fencing}")
        self._fencing = fencing
        self._held[ticket] = fencing

    def done(self, tag: int) -> None:
        self._tags.pop(tag, None)

    def refused(self, tag: int, refusal: Refusal) -> None:
        ticket = self._tags.pop(tag, None)
        if ticket is not None:
            if refusal is Refusal.HISTORY_LOST:
                self.shared.on_lost(ticket)
            else:
                self.shared.on_refused(ticket)

    def delivered(self, now: float, batch: Deliver) -> None:
        if batch.channel == CHANNEL:
            with self._nothing_granted_unserved():
                self.shared.on_batch(now, batch.origin, batch.position, batch.payloads())
            self._check()
            self._weigh()

    def _weigh(self) -> None:
        """As a program would: all members say the same of the same state, and now this, now that."""
        count = self.shared.replica.items.get("count")
        if count is not None:
            self.shared.set_in_use(count.version % 2 == 1)

    def _check(self) -> None:
        shared = self.shared
        if not shared.complete:
            return
        lock = shared.replica.locks.get(LOCK)
        if lock is not None:
            self._checkers.exclusive.granted(
                self.identity, self._checkers.records[self.identity].key, shared._position, lock
            )
        # A copy that was fetched may contain more than this node has delivered: its own position counts.
        self._checkers.copy(self.identity, shared._position, shared.digest())
        items = shared.replica.items
        for pair in range(PAIRS):
            values = {item and item.value for item in (items.get(f"pair/{pair}/{side}") for side in "ab")}
            if len(values) > 1:
                raise Violation("transactions", f"{self.identity} shows half a transaction of pair {pair}")

    def view_changed(self, now: float, view: View) -> None:
        with self._nothing_granted_unserved():
            self.shared.on_view(now, view)
        self._check()

    @contextmanager
    def _nothing_granted_unserved(self) -> Iterator[None]:
        """Where nobody serves, no lock is given to anybody. (A copy that becomes complete catches up on what was.)"""
        shared = self.shared
        complete, before = shared.complete, len(shared._effects)
        yield
        view = shared.view
        if complete and view is not None and not view.serving:
            for effect in shared._effects[before:]:
                if isinstance(effect, Answered) and isinstance(effect.result, Granted):
                    raise Violation("nobody serves", f"{self.identity} was granted the lock in {view.members}")

    def from_peer(self, now: float, peer: int, payload: bytes) -> None:
        self.shared.on_peer(now, peer, payload)

    def left(self) -> None:
        self.shared.on_left()

    def deadline(self) -> float:
        return self.shared.deadline()

    def unsettled(self) -> str | None:
        """What is missing to a settled copy."""
        if not self.shared.complete:
            return f"copy is {self.shared.phase.value}"
        if self._tags:
            return f"requests without an outcome: {self._tags}"
        asked = self.shared.requests._open.items()
        if unanswered := [ticket for ticket, request in asked if request.kind != Kind.ACQUIRE]:
            return f"requests without an answer: {unanswered}"
        lock = self.shared.replica.locks.get(LOCK)
        mine = lock is not None and lock.holder.node == self.identity[0]
        if self._held and not (mine and lock is not None and lock.fencing in self._held.values()):
            return f"believes to hold the lock ({self._held}), the copy says {lock}"
        return self._forgotten(lock if mine else None) or self._skipped(lock)

    def _forgotten(self, mine: Lock | None) -> str | None:
        """A lock of ours of which nobody here knows ends with its lease; the first such lock is waited for. Only where
        leases are short: the others end too, but hardly within the time a test has."""
        if mine is None or self._lock_lease_ms > LEASE_AWAITED_MS or mine.holder.ticket in self._held:
            return None
        self._awaited = self._awaited or mine.fencing
        if mine.fencing != self._awaited:
            return None
        return f"holds the lock without knowing it: {mine}"

    def _skipped(self, lock: Lock | None) -> str | None:
        """Who waits for the lock is in its queue, or has it."""
        requests = self.shared.requests
        known = {waiter.owner for waiter in lock.waiters} if lock is not None else set()
        waiting = [ticket for ticket, request in requests._open.items() if request.kind == Kind.ACQUIRE]
        skipped = [ticket for ticket in waiting if requests.owner(ticket) not in known]
        return f"waits for a lock that forgot it: {skipped}, {lock}" if skipped else None

    def digest(self) -> bytes:
        return self.shared.digest()
