# SPDX-License-Identifier: Apache-2.0
"""Locks, barriers, elections, counters and queues, as a program sees them.

Each is a request to the replicated state, so each survives the death of any participant. What a request was granted
to a caller that has given up waiting is given back.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from .data import OutcomeUnknown, Requester, RequestRefused, Transaction, succeeded
from .shared import BarrierMode, Done, Granted, Kind, Operation, Passed, Refusal, SharedData, Taken
from .shared.leases import Held
from .shared.limits import LEASE_MS_MAX, LEASE_MS_MIN
from .shared.requests import Requests

LEASE_S = 10.0
ELECTION_PREFIX = "election/"
COUNTER_PREFIX = "counter/"


class Coordinator(Requester, Protocol):
    """The driver, as the primitives need it."""

    shared: SharedData

    def holds(self, ticket: int) -> bool:
        """Is the lock acquired with this ticket ours for certain?"""

    async def turn(self, kind: Kind, *arguments: Any) -> tuple[int, Any]:
        """Submit a request that waits for its turn; (ticket, result). A caller that gives up gets nothing granted."""

    def on_lock_lost(self, ticket: int, callback: Callable[[], None]) -> None:
        """Call once if the lock acquired with this ticket ends without our release."""


class LockLostError(Exception):
    """The lock ended while it was being used: the lease ran out or the group's state was replaced."""


class Lock:
    """A named lock: `async with ring.lock("vip/10.0.0.1") as lock: ... lock.fencing`.

    The lease is renewed for as long as this node can reach the group. `valid` tells whether the lock is ours at this
    moment by our own clock; `fencing` grows from holder to holder and lets a storage refuse a late writer.
    """

    def __init__(self, coordinator: Coordinator, name: str, lease_s: float = LEASE_S, wait: bool = True) -> None:
        lease_ms = int(lease_s * 1000)
        if not LEASE_MS_MIN <= lease_ms <= LEASE_MS_MAX:
            raise ValueError(f"a lease of {lease_s} s is outside {LEASE_MS_MIN} ms..{LEASE_MS_MAX} ms")
        self.name = name
        self._coordinator, self._lease_ms, self._wait = coordinator, lease_ms, wait
        self._ticket = 0
        self.fencing = 0

    async def acquire(self) -> int:
        """Wait for the lock; the fencing number. Raises RequestRefused (LOCK_TAKEN when not waiting)."""
        if self._ticket:
            raise RuntimeError(f"lock {self.name!r} is already acquired through this object")
        while True:
            try:
                ticket, result = await self._coordinator.turn(Kind.ACQUIRE, self.name, self._lease_ms, self._wait)
                granted = succeeded(result)
            except OutcomeUnknown:
                continue  # our place in the queue is gone with the state it was in; asking again is harmless
            assert isinstance(granted, Granted)
            self._ticket, self.fencing = ticket, granted.fencing
            return self.fencing

    async def release(self) -> None:
        """Give the lock back. Releasing a lock that was lost is no error."""
        if not self._ticket:
            return
        ticket, self._ticket = self._ticket, 0
        try:
            succeeded(await self._coordinator.request(Kind.RELEASE, self.name, ticket))
        except OutcomeUnknown:
            return
        except RequestRefused as refused:
            if refused.reason not in (Refusal.NOT_HOLDER, Refusal.NOT_SERVING):
                raise

    @property
    def _held(self) -> Held | None:
        requests: Requests = self._coordinator.shared.requests
        return requests.held.get(self._ticket)

    @property
    def valid(self) -> bool:
        """True while the lock is ours for certain. False for a moment when the token is late: ask again, `on_lost`
        tells when it is over."""
        return self._coordinator.holds(self._ticket)

    @property
    def valid_until(self) -> float:
        """Monotonic seconds until which it is ours without another renewal; 0 if it is not."""
        held = self._held
        return held.valid_until if held is not None else 0.0

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call once if the lock, which is held now, ends without our release."""
        self._coordinator.on_lock_lost(self._ticket, callback)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lost = self._held is None
        await self.release()
        if lost and error is None:
            raise LockLostError(f"lock {self.name!r} (fencing {self.fencing}) was lost while it was held")


class Election:
    """Leader election: the leader is the holder of a lock. `await campaign()` returns when this node leads."""

    def __init__(self, coordinator: Coordinator, name: str, lease_s: float = LEASE_S) -> None:
        self._coordinator = coordinator
        self._lock = Lock(coordinator, ELECTION_PREFIX + name, lease_s)

    @property
    def leader(self) -> int | None:
        """Node id of the present leader, or None."""
        lock = self._coordinator.shared.replica.locks.get(self._lock.name)
        return lock.holder.node if lock is not None else None

    @property
    def leading(self) -> bool:
        """True while this node leads, by its own clock."""
        return self._lock.valid

    async def campaign(self) -> int:
        """Wait until elected; the term, which grows from leader to leader."""
        return await self._lock.acquire()

    async def resign(self) -> None:
        """Let another lead."""
        await self._lock.release()

    def on_deposed(self, callback: Callable[[], None]) -> None:
        """Call once if the leadership, which is held now, ends without our resignation."""
        self._lock.on_lost(callback)


class Counter:
    """A shared counter of 64 bits."""

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        self._coordinator, self._key = coordinator, COUNTER_PREFIX + name

    async def add(self, addend: int = 1) -> int:
        """Add; the sum that resulted at that place in the order."""
        result = succeeded(await self._coordinator.request(Kind.WRITE, [], [[Operation.ADD, self._key, addend]]))
        counters: tuple[int, ...] = result.counters  # type: ignore[union-attr]
        return counters[0]

    @property
    def value(self) -> int:
        """The sum as known here."""
        item = self._coordinator.shared.replica.items.get(self._key)
        return int.from_bytes(item.value, "big", signed=True) if item is not None else 0


async def wait_for_all(coordinator: Coordinator, name: str, parties: int = 0) -> bool:
    """Wait until `parties` requests (0: every member of the view) are at the barrier; True for the first of them."""
    while True:
        _, result = await coordinator.turn(Kind.ENTER, name, BarrierMode.ALL, parties)
        try:
            passed = succeeded(result)
        except OutcomeUnknown:
            continue
        assert isinstance(passed, Passed)
        return passed.first


class FirstComer:
    """`async with ring.first_comer("init") as first: if first: ...` - one acts, the others wait until it is done.

    If the one that acts dies, the longest waiting acts.
    """

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        self._coordinator, self._name = coordinator, name
        self._acting = 0

    async def __aenter__(self) -> bool:
        while True:
            ticket, result = await self._coordinator.turn(Kind.ENTER, self._name, BarrierMode.FIRST, 0)
            try:
                passed = succeeded(result)
            except OutcomeUnknown:
                continue
            assert isinstance(passed, Passed)
            self._acting = ticket if passed.first else 0
            return passed.first

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._acting:
            await self._coordinator.request(Kind.LEAVE, self._name, self._acting)


class Queue:
    """A shared FIFO queue of byte strings."""

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        self._coordinator, self.name = coordinator, name

    def __len__(self) -> int:
        """Elements waiting, as known here."""
        queue = self._coordinator.shared.replica.queues.get(self.name)
        return len(queue.elements) if queue is not None else 0

    def poll(self) -> bytes | None:
        """The oldest waiting element as known here, left where it is; None if there is none."""
        queue = self._coordinator.shared.replica.queues.get(self.name)
        return queue.elements[0][1] if queue is not None and queue.elements else None

    async def put(self, value: bytes) -> None:
        """Append. Raises RequestRefused (QUEUE_FULL)."""
        assert isinstance(succeeded(await self._coordinator.request(Kind.PUT, self.name, value)), Done)

    async def get(self, *, wait: bool = True) -> bytes:
        """Take the oldest element for good. Raises RequestRefused (QUEUE_EMPTY) when not waiting."""
        async with Taking(self._coordinator, self.name, wait) as value:
            return value

    def take(self, *, wait: bool = True) -> "Taking":
        """`async with queue.take() as value`: acknowledged at the end, given back if the block raises or we die."""
        return Taking(self._coordinator, self.name, wait)


class Taking:
    """One element of a queue in the hands of a caller."""

    def __init__(self, coordinator: Coordinator, name: str, wait: bool) -> None:
        self._coordinator, self._name, self._wait = coordinator, name, wait
        self._ticket = 0

    async def __aenter__(self) -> bytes:
        while True:
            self._ticket, result = await self._coordinator.turn(Kind.TAKE, self._name, self._wait)
            try:
                taken = succeeded(result)
            except OutcomeUnknown:
                continue
            assert isinstance(taken, Taken)
            return taken.value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self._coordinator.request(Kind.ACKNOWLEDGE, self._name, self._ticket)
        else:
            await self._coordinator.request(Kind.WITHDRAW, self._ticket)


class Coordination:
    """The part of a Ring that hands out the primitives."""

    _coordinator: Coordinator

    def transaction(self) -> Transaction:
        """Several writes that take effect together; see Transaction."""
        return Transaction(self._coordinator)

    def lock(self, name: str, *, lease_s: float = LEASE_S, wait: bool = True) -> Lock:
        """A named lock; see Lock."""
        return Lock(self._coordinator, name, lease_s, wait)

    def election(self, name: str, *, lease_s: float = LEASE_S) -> Election:
        """Leader election; see Election."""
        return Election(self._coordinator, name, lease_s)

    def counter(self, name: str) -> Counter:
        """A shared counter; see Counter."""
        return Counter(self._coordinator, name)

    def queue(self, name: str) -> Queue:
        """A shared FIFO queue; see Queue."""
        return Queue(self._coordinator, name)

    def first_comer(self, name: str) -> FirstComer:
        """A barrier at which one acts and the others wait; see FirstComer."""
        return FirstComer(self._coordinator, name)

    async def barrier(self, name: str, parties: int = 0) -> bool:
        """Wait until `parties` requests (0: every member) are here; True for the first."""
        return await wait_for_all(self._coordinator, name, parties)
