# SPDX-License-Identifier: Apache-2.0
"""Connection records as they travel between gateways: pure functions over numpy arrays, never over single records.

A message is an 8-byte header and records of `ebpf.layout.RECORD`. Times are each gateway's own (CLOCK_MONOTONIC is not
comparable), so a receiver stamps what it takes in. Ids are cluster-wide, so a record means the same everywhere.
"""

import struct

import numpy as np
import numpy.typing as npt

from ebpf.layout import CONNECTION, FLOW_KEY, LAYOUT_VERSION, RECORD, RecordKind, Replicate, State
from lb.connections.batch import Batch, raw

Records = npt.NDArray[np.void]
Keys = npt.NDArray[np.void]
Values = npt.NDArray[np.void]
Hashes = npt.NDArray[np.uint64]

# Plain numbers: numpy widens an array of bytes before it compares it with a member of an enumeration.
_KIND_FIRST, _KIND_LAST = int(RecordKind.OPENED), int(RecordKind.MOVED)
_STATE_FIRST, _STATE_LAST = int(State.SYN), int(State.RESET)
_REPLICATE_NONE = int(Replicate.NONE)
DIGEST_BUCKETS = 256
_LIVE_STATES = (State.ESTABLISHED, State.UDP)
# Odd 64-bit constants with well spread bits (the golden ratio's and splitmix64's).
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD)


class RecordsError(ValueError):
    """A peer's message is not what it should be."""


_BATCH = Batch(b"CR", LAYOUT_VERSION, RECORD, "connection records", "records", RecordsError)


def pack_records(records: Records) -> bytes:
    """One message with these records (any stride)."""
    return _BATCH.pack(records)


def unpack_records(message: bytes | bytearray | memoryview) -> Records:
    """The records of a message, read-only and without a copy. Raises RecordsError with what is wrong."""
    return _BATCH.unpack(message)


def to_send(records: Records, node: int) -> Records:
    """Those of the drained records that peers are to learn: this node's, of services that replicate."""
    wanted = records["replicate"] != _REPLICATE_NONE
    wanted &= records["node"] == node
    return records if wanted.all() else records[wanted]


def well_formed(records: Records) -> npt.NDArray[np.bool_]:
    """Which records may be written into the map: known kind and state, with owner and target."""
    kind, value = records["kind"], records["value"]
    state = value["state"]
    good: npt.NDArray[np.bool_] = kind >= _KIND_FIRST
    good &= kind <= _KIND_LAST
    good &= state >= _STATE_FIRST
    good &= state <= _STATE_LAST
    good &= value["owner"] != 0
    good &= value["service"] != 0
    return good


def to_entries(records: Records, now_s: int) -> tuple[Keys, Values]:
    """Keys and values for the map, contiguous, padding zeroed, stamped with this gateway's time."""
    keys = raw(records["key"], FLOW_KEY).copy().view(FLOW_KEY)
    values = raw(records["value"], CONNECTION).copy().view(CONNECTION)
    # Keys are compared as bytes: padding that is not zero would make an entry nobody finds.
    keys["pad"] = 0
    values["pad"] = 0
    values["last_seen_s"] = now_s
    values["opened_s"] = now_s
    return keys, values


def from_entries(keys: Keys, values: Values, node: int) -> Records:
    """Records that tell a peer of entries this gateway has."""
    records = np.zeros(len(keys), RECORD)
    raw(records["key"], FLOW_KEY)[:] = raw(keys, FLOW_KEY)
    raw(records["value"], CONNECTION)[:] = raw(values, CONNECTION)
    records["kind"], records["node"], records["replicate"] = RecordKind.OPENED, node, Replicate.ALL
    return records


def live(values: Values) -> npt.NDArray[np.bool_]:
    """Entries of connections that are established and not closing."""
    state = values["state"]
    established: npt.NDArray[np.bool_] = state == _LIVE_STATES[0]
    established |= state == _LIVE_STATES[1]
    return established


def hash_keys(keys: Keys) -> Hashes:
    """A 64-bit hash of each key; equal on every gateway. Not for adversaries: it only compares tables."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), FLOW_KEY.itemsize // 8)
    hashes = np.zeros(len(keys), np.uint64)
    for column, multiplier in enumerate(_MULTIPLIERS):
        hashes ^= words[:, column]
        hashes *= np.uint64(multiplier)
        hashes ^= hashes >> np.uint64(32)
    return hashes


def hash_entries(keys: Keys, values: Values) -> Hashes:
    """As `hash_keys`, with what must agree of the value: target, owner and service."""
    packed = values["target"].astype(np.uint64) << np.uint64(32)
    packed |= values["service"].astype(np.uint64) << np.uint64(8)
    packed |= values["owner"].astype(np.uint64)
    hashes = hash_keys(keys) ^ packed
    hashes *= np.uint64(_MULTIPLIERS[1])
    hashes ^= hashes >> np.uint64(29)
    return hashes


class Digest:
    """An order-independent fingerprint of a set of entries, in buckets so that a difference can be narrowed down.

    Adding entries is commutative: two gateways that hold the same entries have the same digest.
    """

    def __init__(self) -> None:
        self.buckets = np.zeros(DIGEST_BUCKETS, np.uint64)
        self.count = 0

    def add(self, keys: Keys, values: Values) -> None:
        """Take in entries, each once."""
        hashes = hash_entries(keys, values)
        np.add.at(self.buckets, bucket_of(hash_keys(keys)), hashes)
        self.count += len(keys)

    def pack(self) -> bytes:
        """Fixed-size bytes."""
        return struct.pack("<Q", self.count) + self.buckets.astype("<u8").tobytes()

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> "Digest":
        """The inverse of `pack`. Raises RecordsError."""
        if len(data) != 8 + 8 * DIGEST_BUCKETS:
            raise RecordsError(f"connection digest: {len(data)} bytes")
        digest = cls()
        digest.count = struct.unpack_from("<Q", data)[0]
        digest.buckets = np.frombuffer(data, "<u8", DIGEST_BUCKETS, 8).astype(np.uint64)
        return digest

    def differing(self, other: "Digest") -> npt.NDArray[np.intp]:
        """Numbers of the buckets that do not agree."""
        return np.flatnonzero(self.buckets != other.buckets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and self.count == other.count and not len(self.differing(other))

    __hash__ = None  # type: ignore[assignment]


def bucket_of(key_hashes: Hashes) -> npt.NDArray[np.intp]:
    """The digest bucket of each key."""
    return (key_hashes >> np.uint64(56)).astype(np.intp)
