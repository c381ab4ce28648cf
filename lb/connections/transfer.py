# SPDX-License-Identifier: Apache-2.0
"""Connection tables from gateway to gateway: the whole table to a joiner, single buckets to repair a difference.

Whoever needs entries asks one other gateway, which reads its map in a thread and sends them as reliable unicast, at a
bounded rate and beside the ring, so that no token waits. Records that arrive over the ring meanwhile are newer than
what is transferred and are not overwritten. When all is there, entries that only the asker has are dropped, except
its own (its packet path may have opened them while it was away): those are returned for publishing.

Here are the messages; giver.py and taker.py are the two sides.
"""

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from ebpf.layout import LAYOUT_VERSION
from lb.connections.exchange import Payload
from lb.connections.records import DIGEST_BUCKETS, Keys, RecordsError, Values, bucket_of, hash_keys

_HEADER = struct.Struct("<2sBBI")
_ASK = struct.Struct("<B7x32s")
_END = struct.Struct("<QB7x")
_MAGIC = b"CT"

Send = Callable[[int, bytes], Awaitable[object]]


class TransferError(Exception):
    """A table did not come to its end; another giver may do better. `silent`: this one did not say a word."""

    def __init__(self, text: str, *, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent


class Kind(IntEnum):
    """Messages of a transfer."""

    ASK = 1
    PART = 2
    END = 3


class End(IntEnum):
    """How a transfer ended at the giver."""

    COMPLETE = 0
    REFUSED = 1  # too many at once, or its own table is not complete
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Scope:
    """Which entries are meant: of one owner or (0) of all, in some digest buckets or (None) in all."""

    owner: int = 0
    buckets: tuple[int, ...] | None = None

    def pack(self) -> bytes:
        """Fixed-size bytes."""
        bits = np.zeros(DIGEST_BUCKETS, np.uint8)
        bits[slice(None) if self.buckets is None else list(self.buckets)] = 1
        return _ASK.pack(self.owner, np.packbits(bits).tobytes())

    @classmethod
    def unpack(cls, data: Payload) -> "Scope":
        """The inverse of `pack`. Raises RecordsError."""
        if len(data) != _ASK.size:
            raise RecordsError(f"connection transfer: an ask of {len(data)} bytes")
        owner, bits = _ASK.unpack(data)
        chosen = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8)))
        return cls(owner, None if len(chosen) == DIGEST_BUCKETS else tuple(int(bucket) for bucket in chosen))

    def select(self, keys: Keys, values: Values) -> npt.NDArray[np.bool_]:
        """Which entries are in scope."""
        chosen: npt.NDArray[np.bool_] = np.ones(len(keys), np.bool_)
        if self.owner:
            chosen &= values["owner"] == self.owner
        if self.buckets is not None:
            wanted = np.zeros(DIGEST_BUCKETS, np.bool_)
            wanted[list(self.buckets)] = True
            chosen &= wanted[bucket_of(hash_keys(keys))]
        return chosen


EVERYTHING = Scope()


def message_of(kind: Kind, transfer: int, body: bytes) -> bytes:
    """A message as it is sent."""
    return _HEADER.pack(_MAGIC, kind, LAYOUT_VERSION & 0xFF, transfer) + body


def end_of(count: int, end: End) -> bytes:
    """The body of an END: so many entries were sent, and how it ended."""
    return _END.pack(count, end)


def read_end(body: Payload) -> tuple[int, End]:
    """The inverse of `end_of`; what is none counts as a failure."""
    if len(body) != _END.size:
        return 0, End.FAILED
    count, code = _END.unpack(body)
    return count, End(code) if code in End.__members__.values() else End.FAILED


def read_message(data: Payload) -> tuple[Kind, int, memoryview]:
    """Kind, number of the transfer and body. Raises RecordsError."""
    if len(data) < _HEADER.size:
        raise RecordsError("connection transfer: too short")
    magic, kind, layout, transfer = _HEADER.unpack_from(data)
    if magic != _MAGIC or kind not in Kind.__members__.values():
        raise RecordsError("connection transfer: not a message of this kind")
    if layout != LAYOUT_VERSION & 0xFF:
        raise RecordsError(f"connection transfer: layout {layout}, this gateway has {LAYOUT_VERSION}")
    return Kind(kind), transfer, memoryview(data)[_HEADER.size :]
