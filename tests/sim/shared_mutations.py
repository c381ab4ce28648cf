# SPDX-License-Identifier: Apache-2.0
"""The shared data broken on purpose: locks, transactions, what is done where nobody serves, and the transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sync.shared import SharedData
from sync.shared.catching_up import CatchingUp
from sync.shared.fetching import Deferral
from sync.shared.items import ItemStore
from sync.shared.leases import LeaseWatch
from sync.shared.locks import LockTable
from sync.shared.own_copy import Copy
from sync.shared.replica import Replica
from sync.shared.requests import Requests

Patch = tuple[Any, str, Any]
"""(object, attribute, what is put in its place)"""


def _reuse_fencing_numbers() -> list[Patch]:
    """A node's own numbers seldom repeat in this way; those of several nodes do."""
    acquire, pass_on = LockTable.acquire, LockTable._pass_on

    def granted(self: LockTable, name: str, owner: Any, lease_ms: int, wait: bool, clock: int) -> Any:
        return acquire(self, name, owner, lease_ms, wait, clock & ~7)

    def passed_on(self: LockTable, name: str, lock: Any, clock: int) -> Any:
        return pass_on(self, name, lock, clock & ~7)

    return [(LockTable, "acquire", granted), (LockTable, "_pass_on", passed_on)]


def _never_end_a_lease() -> list[Patch]:
    return [(LeaseWatch, "due", lambda self, now: [])]


def _renew_what_was_released() -> list[Patch]:
    whole = Requests.open

    def keep(self: Requests, now: float, kind: int, arguments: Sequence[Any]) -> int:
        held = dict(self.held)
        ticket = whole(self, now, kind, arguments)
        self.held.update(held)
        return ticket

    return [(Requests, "open", keep)]


def _trust_the_locks_lease_alone() -> list[Patch]:
    def holds(self: SharedData, now: float, ticket: int) -> bool:
        held = self.requests.held.get(ticket)
        return held is not None and now < held.valid_until

    return [(SharedData, "holds", holds)]


def _forget_who_waits() -> list[Patch]:
    def drop(self: LockTable, name: str, lock: Any, clock: int) -> list[Any]:
        del self._locks[name]
        return []

    return [(LockTable, "_pass_on", drop)]


def _hand_out_where_nobody_serves() -> list[Patch]:
    whole = Replica.settle

    def settle(self: Replica, sessions: dict[int, int], clock: int, founder: int, serving: bool) -> Any:
        return whole(self, sessions, clock, founder, True)

    return [(Replica, "settle", settle)]


def _apply_half_a_transaction() -> list[Patch]:
    def commit(self: ItemStore, planned: Mapping[str, bytes | None], version: int, writer: int) -> None:
        for key, value in list(planned.items())[: 1 if version % 8 == 0 else None]:
            self._write(key, value, version, writer)

    return [(ItemStore, "commit", commit)]


def _transfer_no_locks() -> list[Patch]:
    """Compared, it would be noticed, and fetched again and again."""
    whole = Replica.adopt

    def adopt(self: Replica, buckets: Any, rest: bytes) -> None:
        locks = self.locks.export()
        whole(self, buckets, rest)
        self.locks.adopt(locks)

    return [(Replica, "adopt", adopt), (CatchingUp, "_is_whole", lambda self, last: True)]


def _forget_what_was_deferred() -> list[Patch]:
    def forget(self: Deferral) -> Any:
        self.clear()
        return iter(())

    return [(Deferral, "take", forget)]


def _forget_the_clock_given_up() -> list[Patch]:
    return [(Copy, "_stamp", property(lambda self: self.replica.clock))]


def _ask_nobody_twice() -> list[Patch]:
    """An acquisition whose command was refused is taken for one that waits."""

    def fail(self: Requests, ticket: int, result: Any) -> list[Any]:
        return []

    return [(Requests, "fail", fail)]


SHARED_MUTATIONS: Mapping[str, tuple[Callable[[], list[Patch]], int]] = {
    "reuse fencing numbers": (_reuse_fencing_numbers, 300_003),
    "never end a lease": (_never_end_a_lease, 300_020),
    "renew what was released": (_renew_what_was_released, 300_001),
    "trust the lock's lease alone": (_trust_the_locks_lease_alone, 300_004),
    "forget who waits": (_forget_who_waits, 300_001),
    "hand out where nobody serves": (_hand_out_where_nobody_serves, 300_021),
    "apply half a transaction": (_apply_half_a_transaction, 300_003),
    "transfer no locks, compare no digest": (_transfer_no_locks, 300_003),
    "forget what was deferred": (_forget_what_was_deferred, 300_002),
    "forget the clock given up": (_forget_the_clock_given_up, 300_040),
    "take refused requests for waiting ones": (_ask_nobody_twice, 300_011),
}
"""Name -> (patches, a seed that catches it, or one near it)."""
