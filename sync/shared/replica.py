# SPDX-License-Identifier: Apache-2.0
"""One copy of the shared state: a deterministic state machine fed by the ordered stream.

Two replicas that apply the same commands in the same order are equal, and `digest()` says so. Nothing here reads a
clock, a random number or the order of a set.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgpack

from .barriers import BarrierTable
from .commands import ABSENT, ANY_VERSION, Command, Kind
from .items import Bucket, ItemStore, RefusedWrite
from .locks import LockTable
from .queues import QueueTable
from .results import Committed, ConditionFailed, Done, Outcome, Owner, Refusal, Refused


class Replica:
    """Data items, locks, barriers, queues and the Lamport clock they share."""

    def __init__(self) -> None:
        self.lineage = 0  # the founding this state descends from; 0: nothing founded yet
        self.clock = 0
        self.doublings_at_loss = 0  # `doublings` when a member was first lost since one was last won; 0: none was
        self.serving = True  # False: the partition policy wants this part out of service
        self.sessions: dict[int, int] = {}  # incarnation of every member, as settled at the last view
        self.items = ItemStore()
        self.locks = LockTable()
        self.barriers = BarrierTable()
        self.queues = QueueTable()
        self._appliers: dict[int, Callable[[Owner, Sequence[Any]], list[Outcome]]] = {
            Kind.WRITE: self._write,
            Kind.ACQUIRE: self._acquire,
            Kind.RENEW: lambda owner, a: self.locks.renew(a[0], owner, a[1]),
            Kind.RELEASE: lambda owner, a: self.locks.release(a[0], owner, a[1], self.clock),
            Kind.EXPIRE: lambda owner, a: self.locks.expire(a[0], a[1], a[2], self.clock),
            Kind.ENTER: self._enter,
            Kind.LEAVE: lambda owner, a: self.barriers.leave(a[0], owner, a[1]),
            Kind.PUT: lambda owner, a: self.queues.put(a[0], owner, a[1], self.clock),
            Kind.TAKE: lambda owner, a: self.queues.take(a[0], owner, a[1]),
            Kind.ACKNOWLEDGE: lambda owner, a: self.queues.acknowledge(a[0], owner, a[1]),
            Kind.WITHDRAW: self._withdraw,
            Kind.FETCHED: lambda owner, a: [],
        }

    @property
    def doublings(self) -> int:
        """How much has happened since the founding: how often the clock has doubled.

        Parts of a divided group stay equal in this until one has gone through far more than the group had before: what
        counts between them is who is larger, not who happens to be the first beyond a power of two.
        """
        doublings, at_loss = self.clock.bit_length(), self.doublings_at_loss
        return at_loss if at_loss and doublings <= at_loss + 1 else doublings

    def apply(self, origin: int, command: Command) -> list[Outcome]:
        """Apply one command of `origin`; the outcomes are for any nodes. Advances the Lamport clock by at least one."""
        self.clock = max(self.clock, command.stamp) + 1
        owner = Owner(origin, command.session, command.ticket)
        if self.sessions.get(origin) != command.session:
            # An orphan: it was ordered after its origin had left. It must not acquire what nobody would release.
            return [Outcome(owner, Refused(Refusal.NOT_A_MEMBER))]
        if not self.serving and command.kind != Kind.FETCHED:
            # It was on its way when the view changed; another part may go on, and what is done here would be given up.
            return [Outcome(owner, Refused(Refusal.NOT_SERVING))]
        return self._appliers[command.kind](owner, command.arguments)

    def settle(self, sessions: dict[int, int], clock: int, founder: int, serving: bool) -> list[Outcome]:
        """Go on with these members: departed owners lose what they hold. `clock` is the highest among all of them.

        In a part that does not serve nothing changes hands: they may be alive and served in another.
        """
        if sessions.items() - self.sessions.items():
            self.doublings_at_loss = 0
        elif len(sessions) < len(self.sessions):
            self.doublings_at_loss = self.doublings
        self.sessions = dict(sessions)
        self.clock = max(self.clock, clock) + 1
        if not self.lineage:
            self.lineage = founder
        self.serving = serving
        if not serving:
            return []
        return [
            *self.locks.release_departed(sessions, self.clock),
            *self.barriers.settle(sessions),
            *self.queues.settle(sessions),
        ]

    # --- one method a kind that needs more than a line ---

    def _write(self, owner: Owner, arguments: Sequence[Any]) -> list[Outcome]:
        conditions, operations = arguments
        for index, (key, wanted) in enumerate(conditions):
            version = self.items.version(key)
            if version == ABSENT if wanted == ANY_VERSION else version != wanted:
                return [Outcome(owner, ConditionFailed(index, version))]
        try:
            planned, counters = self.items.plan(operations)
        except RefusedWrite as refusal:
            return [Outcome(owner, Refused(refusal.reason))]
        self.items.commit(planned, self.clock, owner.node)
        return [Outcome(owner, Committed(self.clock, tuple(counters)))]

    def _acquire(self, owner: Owner, arguments: Sequence[Any]) -> list[Outcome]:
        name, lease_ms, wait = arguments
        return self.locks.acquire(name, owner, lease_ms, wait, self.clock)

    def _enter(self, owner: Owner, arguments: Sequence[Any]) -> list[Outcome]:
        name, mode, parties = arguments
        return self.barriers.enter(name, owner, mode, parties, frozenset(self.sessions), self.clock)

    def _withdraw(self, owner: Owner, arguments: Sequence[Any]) -> list[Outcome]:
        waiting = owner._replace(ticket=arguments[0])
        found = self.locks.withdraw(waiting) or self.barriers.withdraw(waiting) or self.queues.withdraw(waiting)
        if not found:
            return [Outcome(owner, Refused(Refusal.NOT_HOLDER))]
        withdrawn = Outcome(waiting, Refused(Refusal.WITHDRAWN))
        return [withdrawn, Outcome(owner, Done()), *self.queues.serve()]

    # --- comparing and copying ---

    def export_rest(self) -> bytes:
        """Everything but the data items, in a form equal on equal replicas."""
        rest = [
            self.lineage,
            self.clock,
            self.doublings_at_loss,
            self.serving,
            sorted(self.sessions.items()),
            self.locks.export(),
            self.barriers.export(),
            self.queues.export(),
        ]
        packed: bytes = msgpack.packb(rest)
        return packed

    def digest(self) -> bytes:
        """16 bytes, equal on equal replicas."""
        state = blake2b(self.export_rest(), digest_size=16)
        for digest in self.items.digests():
            state.update(digest.to_bytes(8, "big"))
        return state.digest()

    def adopt(self, buckets: dict[int, Bucket], rest: bytes) -> None:
        """Become another replica: `buckets` replace ours where given, `rest` is its export."""
        lineage, clock, doublings, serving, sessions, locks, barriers, queues = msgpack.unpackb(rest, raw=False)
        self.lineage, self.clock, self.doublings_at_loss = lineage, clock, doublings
        self.serving = serving
        self.sessions = dict(sessions)
        self.locks.adopt(locks)
        self.barriers.adopt(barriers)
        self.queues.adopt(queues)
        self.items.replace(buckets, clock)
