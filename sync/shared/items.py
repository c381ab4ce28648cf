# SPDX-License-Identifier: Apache-2.0
"""Data items: a dictionary in buckets, with versions, digests kept up to date, and cheap consistent snapshots.

A snapshot shares the buckets; the first write to a shared bucket copies it. So a snapshot costs nothing when it is
taken, however large the table, and writes go on beside it.
"""

import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from . import limits
from .commands import Operation
from .results import Refusal

COUNTER_BYTES = 8


class Item(NamedTuple):
    """A value, the version that wrote it, the node that wrote it, and its term in the bucket's digest."""

    value: bytes
    version: int
    writer: int
    term: int


class Change(NamedTuple):
    """`key` became `item` (None: deleted) in `version`."""

    key: str
    item: Item | None
    version: int


class RefusedWrite(Exception):
    """A transaction that cannot be applied; it has changed nothing."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


Bucket = dict[str, Item]
DIGEST_MASK = (1 << 64) - 1


def bucket_of(key: str) -> int:
    """Number of the bucket that holds `key`."""
    return zlib.crc32(key.encode()) % limits.BUCKETS


def digest_term(key: str, value: bytes, version: int, writer: int) -> int:
    """64 bits for one item. Terms add up modulo 2^64 to a bucket's digest, so one write updates it in place."""
    head = b"%d %d %d " % (version, writer, len(value))
    return int.from_bytes(blake2b(head + value + key.encode(), digest_size=8).digest(), "big")


class ItemStore:
    """All data items of one replica. Iteration order is never significant: only digests and lookups are."""

    def __init__(self) -> None:
        self._buckets: list[Bucket] = [{} for _ in range(limits.BUCKETS)]
        self._digests = [0] * limits.BUCKETS
        self._shared = bytearray(limits.BUCKETS)  # 1: a snapshot refers to the bucket
        self._count = 0
        self._value_bytes = 0
        self._recent: deque[tuple[int, str]] = deque(maxlen=limits.CHANGES_KEPT)
        self._recent_from = 0  # every change after this version is in _recent
        self.changes: list[Change] = []  # since the owner last emptied it

    def __len__(self) -> int:
        return self._count

    @property
    def value_bytes(self) -> int:
        """Bytes in all values together."""
        return self._value_bytes

    def get(self, key: str) -> Item | None:
        """The item, or None."""
        return self._buckets[bucket_of(key)].get(key)

    def version(self, key: str) -> int:
        """The item's version, 0 if there is none."""
        item = self.get(key)
        return item.version if item is not None else 0

    def scan(self, prefix: str = "") -> Iterator[tuple[str, Item]]:
        """Items whose key begins with `prefix`, in no particular order."""
        for bucket in self._buckets:
            for key, item in bucket.items():
                if key.startswith(prefix):
                    yield key, item

    # --- writing ---

    def plan(self, operations: Sequence[Sequence[Any]]) -> tuple[dict[str, bytes | None], list[int]]:
        """What the operations come to: new value or None (delete) by key, and the results of the ADDs.

        Later operations see the effect of earlier ones. Raises RefusedWrite; changes nothing.
        """
        planned: dict[str, bytes | None] = {}
        counters: list[int] = []
        for operation in operations:
            code, key = operation[0], operation[1]
            if code == Operation.SET:
                planned[key] = operation[2]
            elif code == Operation.DELETE:
                planned[key] = None
            else:
                current = planned[key] if key in planned else self._value(key)
                if code == Operation.PATCH:
                    planned[key] = _patched(current, operation[2], operation[3])
                else:
                    total = _added(current, operation[2])
                    counters.append(total)
                    planned[key] = total.to_bytes(COUNTER_BYTES, "big", signed=True)
        self._check_room(planned)
        return planned, counters

    def commit(self, planned: Mapping[str, bytes | None], version: int, writer: int) -> None:
        """Make planned writes visible as `version`."""
        for key, value in planned.items():
            self._write(key, value, version, writer)

    def _value(self, key: str) -> bytes | None:
        item = self.get(key)
        return item.value if item is not None else None

    def _check_room(self, planned: Mapping[str, bytes | None]) -> None:
        count, size = self._count, self._value_bytes
        for key, value in planned.items():
            current = self._value(key)
            if current is not None:
                count, size = count - 1, size - len(current)
            if value is not None:
                count, size = count + 1, size + len(value)
        grows = count > self._count or size > self._value_bytes
        if grows and (count > limits.ITEMS_MAX or size > limits.STORE_BYTES_MAX):
            raise RefusedWrite(Refusal.STORE_FULL)

    def _write(self, key: str, value: bytes | None, version: int, writer: int) -> None:
        index = bucket_of(key)
        bucket = self._own(index)
        old = bucket.get(key)
        if old is not None:
            self._digests[index] = (self._digests[index] - old.term) & DIGEST_MASK
            self._value_bytes -= len(old.value)
            self._count -= 1
        elif value is None:
            return
        item = None
        if value is None:
            del bucket[key]
        else:
            item = Item(value, version, writer, digest_term(key, value, version, writer))
            bucket[key] = item
            self._digests[index] = (self._digests[index] + item.term) & DIGEST_MASK
            self._value_bytes += len(value)
            self._count += 1
        self._remember(key, version)
        self.changes.append(Change(key, item, version))

    def _own(self, index: int) -> Bucket:
        if self._shared[index]:
            self._shared[index] = 0
            self._buckets[index] = dict(self._buckets[index])
        return self._buckets[index]

    def _remember(self, key: str, version: int) -> None:
        if len(self._recent) == limits.CHANGES_KEPT:
            self._recent_from = self._recent[0][0]
        self._recent.append((version, key))

    def changes_since(self, version: int, prefix: str = "") -> list[Change] | None:
        """Latest state of every key with `prefix` changed after `version`, oldest change first; None: too long ago."""
        if version < self._recent_from:
            return None
        latest: dict[str, int] = {}
        for changed, key in self._recent:
            if changed > version and key.startswith(prefix):
                latest.pop(key, None)
                latest[key] = changed
        return [Change(key, self.get(key), changed) for key, changed in latest.items()]

    # --- comparing, copying, repairing ---

    def digests(self) -> list[int]:
        """One 64-bit digest a bucket, as kept up to date by the writes."""
        return list(self._digests)

    def recompute(self, index: int) -> int:
        """Digest of one bucket from its present content: shows damage that the running digest cannot."""
        terms = (digest_term(k, i.value, i.version, i.writer) for k, i in self._buckets[index].items())
        return sum(terms) & DIGEST_MASK

    def audit(self, index: int) -> bool:
        """Compare one bucket with its running digest and adopt what is found; False if they differed."""
        found = self.recompute(index)
        sound = found == self._digests[index]
        self._digests[index] = found
        return sound

    def freeze(self) -> list[Bucket]:
        """The buckets as they are now; nobody will write to them."""
        self._shared = bytearray(b"\x01") * limits.BUCKETS
        return list(self._buckets)

    def replace(self, buckets: Mapping[int, Bucket], version: int) -> None:
        """Adopt whole buckets from another replica; the differences become changes in `version`."""
        for index, bucket in buckets.items():
            old = self._buckets[index]
            self._buckets[index] = bucket
            self._shared[index] = 0
            self._digests[index] = sum(item.term for item in bucket.values()) & DIGEST_MASK
            self._count += len(bucket) - len(old)
            self._value_bytes += sum(len(i.value) for i in bucket.values()) - sum(len(i.value) for i in old.values())
            self.changes.extend(Change(key, None, version) for key in old.keys() - bucket.keys())
            self.changes.extend(Change(k, i, version) for k, i in bucket.items() if old.get(k) != i)
        # The path from older versions to here is not known: a watch from one is served by a full replay.
        self._recent.clear()
        self._recent_from = version


def _patched(current: bytes | None, offset: int, patch: bytes) -> bytes:
    if current is None:
        raise RefusedWrite(Refusal.NO_SUCH_ITEM)
    if offset > len(current):
        raise RefusedWrite(Refusal.PATCH_BEYOND_END)
    value = current[:offset] + patch + current[offset + len(patch) :]
    if len(value) > limits.VALUE_BYTES_MAX:
        raise RefusedWrite(Refusal.VALUE_TOO_LARGE)
    return value


def _added(current: bytes | None, addend: int) -> int:
    if current is not None and len(current) != COUNTER_BYTES:
        raise RefusedWrite(Refusal.NOT_A_COUNTER)
    total = (int.from_bytes(current, "big", signed=True) if current is not None else 0) + addend
    if not -(1 << 63) <= total < 1 << 63:
        raise RefusedWrite(Refusal.COUNTER_OVERFLOW)
    return total
