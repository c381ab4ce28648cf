# SPDX-License-Identifier: Apache-2.0
"""Shared data and locks on top of the simulated ring, and what must hold for them.

Copies that have applied the same part of one view's stream are equal; a transaction's writes appear together; fencing
numbers of a lock only grow for as long as a copy's history goes on; who believes to hold a lock is its holder in the
copy of that node.
"""

from __future__ import annotations

import random

from sync.events import Deliver, Direct, Event, Multicast, Order, Refusal, Standing, View
from sync.shared import (
    CHANNEL,
    Answered,
    Granted,
    Kind,
    LockLost,
    MulticastCommand,
    Operation,
    Replaced,
    SendPeer,
    SharedData,
    StandingChanged,
)
from sync.shared.requests import TooManyRequests
from tests.sim.checkers import Checkers, Violation

LOCK = "sim/lock"
PAIRS = 3
OPEN_MAX = 40
SHARED_TAG = 1 << 40
"""Tags of the workload lie below, those of the shared data from here on."""


class SharedWorkload:
    """One node's copy with a small workload: pairs of items that must stay equal, a lock, a counter."""

    def __init__(self, node: int, incarnation: int, checkers: Checkers) -> None:
        self.identity = (node, incarnation)
        self.shared = SharedData(node, incarnation)
        self._checkers = checkers
        self._held: dict[int, int] = {}
        """Ticket of a lock this node believes to hold -> fencing number."""
        self._fencing = 0
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
                    shared.submit(now, Kind.ACQUIRE, LOCK, 10_000, rng.random() < 0.5)
                case 4 if self._held:
                    ticket = next(iter(self._held))
                    del self._held[ticket]
                    shared.submit(now, Kind.RELEASE, LOCK, ticket)
        except TooManyRequests:
            return

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
                case Replaced():
                    self._held.clear()
                    self._fencing = 0
        return events

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
        # A copy that was fetched may contain more than this node has delivered: its own position counts.
        self._checkers.copy(self.identity, shared._position, shared.digest())
        items = shared.replica.items
        for pair in range(PAIRS):
            values = {item and item.value for item in (items.get(f"pair/{pair}/{side}") for side in "ab")}
            if len(values) > 1:
                raise Violation("transactions", f"{self.identity} shows half a transaction of pair {pair}")

    def view_changed(self, now: float, view: View) -> None:
        self.shared.on_view(now, view)
        self._check()

    def from_peer(self, now: float, peer: int, payload: bytes) -> None:
        self.shared.on_peer(now, peer, payload)

    def left(self) -> None:
        self._held.clear()
        self._fencing = 0
        self.shared.on_left()

    def deadline(self) -> float:
        return self.shared.deadline()

    def unsettled(self) -> str | None:
        """What is missing to a settled copy."""
        if not self.shared.complete:
            return f"copy is {self.shared.phase.value}"
        if self._tags:
            return f"requests without an outcome: {self._tags}"
        lock = self.shared.replica.locks.get(LOCK)
        mine = lock is not None and lock.holder.node == self.identity[0]
        if self._held and not (mine and lock is not None and lock.fencing in self._held.values()):
            return f"believes to hold the lock ({self._held}), the copy says {lock}"
        return None

    def digest(self) -> bytes:
        return self.shared.digest()
