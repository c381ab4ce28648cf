# SPDX-License-Identifier: Apache-2.0
"""The shared data as a program sees it: a mapping that is the same on every node, transactions over it, watches.

Reading is local and immediate. Writing is ordered by the ring: it is visible, here as elsewhere, when its turn has
come, which `await` waits for. Callbacks run in the order of the stream and must not block.
"""

from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self

from .shared import (
    ABSENT,
    ANY_VERSION,
    Change,
    Committed,
    ConditionFailed,
    Item,
    Kind,
    Operation,
    Refused,
    Result,
    SharedData,
    Unknown,
)

WATCHES_MAX = 4096


class RequestRefused(Exception):
    """The group refused the request; `reason` is a shared.Refusal (the text says what it means)."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason.value)
        self.reason = refused.reason


class VersionConflict(Exception):
    """A condition did not hold: somebody else was first. `version` is the item's present one (0: there is none)."""

    def __init__(self, key: str, version: int) -> None:
        super().__init__(f"{key!r} is at version {version}: read it again and decide anew")
        self.key, self.version = key, version


class OutcomeUnknown(Exception):
    """Whether the request took effect is not known: this node was cut off meanwhile. Read and decide."""


class Requester(Protocol):
    """What carries requests to the group: the driver."""

    def request(self, kind: Kind, *arguments: Any) -> Awaitable[Result]:
        """Submit a request; the result comes when its turn does. Raises MalformedCommand, TooManyRequests."""

    def submit(self, kind: Kind, *arguments: Any, urgent: bool = False) -> None:
        """Submit a request nobody waits for; a failure is counted and logged."""


def succeeded(result: Result) -> Result:
    """The result, or the exception that fits it."""
    match result:
        case Refused():
            raise RequestRefused(result)
        case Unknown():
            raise OutcomeUnknown("the group's state was replaced before the outcome was seen")
        case _:
            return result


async def write(requester: Requester, operations: list[Any], conditions: list[Any]) -> Committed:
    """Carry out one transaction. Raises VersionConflict, RequestRefused, OutcomeUnknown."""
    result = succeeded(await requester.request(Kind.WRITE, conditions, operations))
    if isinstance(result, ConditionFailed):
        raise VersionConflict(conditions[result.condition][0], result.version)
    assert isinstance(result, Committed)
    return result


class Watch:
    """A registered callback; `cancel()` ends it."""

    def __init__(self, owner: "Data", prefix: str, callback: Callable[[list[Change]], None]) -> None:
        self._owner = owner
        self.prefix, self.callback = prefix, callback

    def cancel(self) -> None:
        """No more calls."""
        self._owner.forget(self)


class Data:
    """All data items. Keys are texts of up to 512 bytes, values bytes of up to 1 MiB."""

    def __init__(self, shared: SharedData, requester: Requester) -> None:
        self._shared, self._requester = shared, requester
        self._watches: list[Watch] = []

    # --- reading, locally ---

    @property
    def complete(self) -> bool:
        """True while this node's copy is the group's state; false from joining until the snapshot has come."""
        return self._shared.complete

    @property
    def version(self) -> int:
        """Lamport clock of the copy: no item has a higher version."""
        return self._shared.replica.clock

    def item(self, key: str) -> Item | None:
        """Value, version and writer, or None."""
        return self._shared.replica.items.get(key)

    def get(self, key: str, default: bytes | None = None) -> bytes | None:
        """The value, or `default`."""
        item = self.item(key)
        return item.value if item is not None else default

    def items(self, prefix: str = "") -> Iterator[tuple[str, Item]]:
        """Items whose key begins with `prefix`, in the order of their keys."""
        return iter(sorted(self._shared.replica.items.scan(prefix)))

    def __getitem__(self, key: str) -> bytes:
        item = self.item(key)
        if item is None:
            raise KeyError(key)
        return item.value

    def __contains__(self, key: str) -> bool:
        return self.item(key) is not None

    def __len__(self) -> int:
        return len(self._shared.replica.items)

    # --- writing, through the ring ---

    def __setitem__(self, key: str, value: bytes) -> None:
        """Write without waiting; the value is visible when the ring has ordered it."""
        self._requester.submit(Kind.WRITE, [], [[Operation.SET, key, value]])

    def hasten(self, key: str, value: bytes) -> None:
        """Write without waiting, and let the token hurry: others wait for this to be visible."""
        self._requester.submit(Kind.WRITE, [], [[Operation.SET, key, value]], urgent=True)

    def __delitem__(self, key: str) -> None:
        """Delete without waiting."""
        self._requester.submit(Kind.WRITE, [], [[Operation.DELETE, key]])

    async def put(self, key: str, value: bytes, *, version: int | None = None) -> int:
        """Write and wait; the new version. With `version` only if the item is at it (0: does not exist)."""
        return (await self._write([Operation.SET, key, value], version)).version

    async def delete(self, key: str, *, version: int | None = None) -> None:
        """Delete and wait; with `version` only if the item is at it. Deleting what is not there is no error."""
        await self._write([Operation.DELETE, key], version)

    async def patch(self, key: str, offset: int, part: bytes, *, version: int | None = None) -> int:
        """Overwrite bytes from `offset` on, possibly extending the value; the new version."""
        return (await self._write([Operation.PATCH, key, offset, part], version)).version

    async def add(self, key: str, addend: int) -> int:
        """Add to an 8-byte counter, which begins at 0; the sum."""
        return (await self._write([Operation.ADD, key, addend], None)).counters[0]

    async def _write(self, operation: list[Any], version: int | None) -> Committed:
        conditions = [] if version is None else [[operation[1], version]]
        return await write(self._requester, [operation], conditions)

    # --- watching ---

    def watch(self, prefix: str, callback: Callable[[list[Change]], None], *, from_version: int | None = None) -> Watch:
        """Call with every batch of changes to keys with `prefix`.

        With `from_version` the changes after it come first, at once, the latest per key. If that is further back than
        is remembered, or 0, all present items come instead: what is gone by then is not among them.
        """
        if len(self._watches) >= WATCHES_MAX:
            raise RuntimeError(f"{WATCHES_MAX} watches exist (WATCHES_MAX): cancel some")
        watch = Watch(self, prefix, callback)
        if from_version is not None:
            store = self._shared.replica.items
            past = store.changes_since(from_version, prefix) if from_version else None
            if past is None:
                past = [Change(key, item, item.version) for key, item in self.items(prefix)]
            if past:
                callback(past)
        self._watches.append(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        """End a watch."""
        if watch in self._watches:
            self._watches.remove(watch)

    def watchers_of(self, changes: list[Change]) -> Iterator[tuple[Callable[[list[Change]], None], list[Change]]]:
        """For the driver: what to tell whom."""
        for watch in list(self._watches):
            concerned = [c for c in changes if c.key.startswith(watch.prefix)] if watch.prefix else changes
            if concerned:
                yield watch.callback, concerned


class Transaction:
    """Writes that become visible together, everywhere, or not at all.

        async with ring.transaction() as change:
            change.require("a", version)
            change["a"] = b"1"
            del change["b"]

    Leaving the block commits; raises VersionConflict, RequestRefused or OutcomeUnknown. An exception inside discards.
    """

    def __init__(self, requester: Requester) -> None:
        self._requester = requester
        self._conditions: list[Any] = []
        self._operations: list[Any] = []
        self.result: Committed | None = None

    def require(self, key: str, version: int) -> None:
        """Commit only if the item is at `version` (0: does not exist)."""
        self._conditions.append([key, version])

    def require_absent(self, key: str) -> None:
        """Commit only if there is no such item."""
        self.require(key, ABSENT)

    def require_present(self, key: str) -> None:
        """Commit only if there is such an item, whatever its version."""
        self.require(key, ANY_VERSION)

    def __setitem__(self, key: str, value: bytes) -> None:
        self._operations.append([Operation.SET, key, value])

    def __delitem__(self, key: str) -> None:
        self._operations.append([Operation.DELETE, key])

    def patch(self, key: str, offset: int, part: bytes) -> None:
        """Overwrite bytes from `offset` on."""
        self._operations.append([Operation.PATCH, key, offset, part])

    def add(self, key: str, addend: int) -> None:
        """Add to a counter; the sums are in `result.counters`, in order."""
        self._operations.append([Operation.ADD, key, addend])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.result = await write(self._requester, self._operations, self._conditions)
