# SPDX-License-Identifier: Apache-2.0
"""A chunk laid out as the datagrams that carry it, and back.

A chunk's segments are written once, one behind the other, in one buffer: the kernel (or the network card) takes it as
one burst with UDP_SEGMENT, a single segment sent again is a slice of it, and a receiver with UDP_GRO gets it back in
one piece. Both directions cut and join all segments in a few calls: 3 to 5 µs for a burst of 44, copying included.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from struct import Struct
from typing import Final

from sync.transport.wire import (
    ASK,
    FLAGS_AT,
    INDEX_AT,
    SEGMENT_COUNT_MAX,
    SEGMENT_OVERHEAD,
    TAG_LENGTH,
    Buffer,
    ChunkHeader,
    segment_count,
)

_INDEXES: Final = bytes(range(SEGMENT_COUNT_MAX))
_CUTS_KEPT: Final = 128  # pairs of segment size and count; a few kilobytes each


@lru_cache(_CUTS_KEPT)
def _cut(first: int, length: int, step: int, count: int) -> Callable[[Buffer], tuple[Buffer, ...]]:
    """Cuts `count` slices of `length` bytes, `step` apart, out of a buffer, and puts an empty one before them.

    One call for all: an interpreted loop would cost more than the copying. The empty one makes a join with a separator
    begin with it, and a tuple even of a single slice.
    """
    return itemgetter(slice(0), *(slice(at, at + length) for at in range(first, first + count * step, step)))


@lru_cache(_CUTS_KEPT)
def _heads(segment_size: int, count: int) -> Callable[[Buffer], tuple[bytes, ...]]:
    """Reads the heads of a run of segments, of which the last may be shorter than the others."""
    return Struct(f"{INDEX_AT}s{segment_size - INDEX_AT}x" * (count - 1) + f"{INDEX_AT}s").unpack_from


def lay_out(head: bytes, payload: Buffer, tag: bytes, segment_size: int) -> memoryview:
    """The segments of payload + tag, each behind `head` (chunk header and its tag); the last one asks for a report."""
    slice_length = segment_size - SEGMENT_OVERHEAD
    length = len(payload)
    count, full = segment_count(length, segment_size), length // slice_length
    slices = list(_cut(0, slice_length, slice_length, count)(payload))
    rest = bytes(payload[full * slice_length :]) + tag
    slices[1 + full :] = [rest[at : at + slice_length] for at in range(0, len(rest), slice_length)]
    out = bytearray(head + bytes(SEGMENT_OVERHEAD - INDEX_AT)).join(slices)
    out[INDEX_AT::segment_size] = _INDEXES[:count]
    out[(count - 1) * segment_size + FLAGS_AT] = ASK
    return memoryview(out)


def select(burst: Buffer, segment_size: int, missing: int) -> Buffer:
    """The segments of `burst` whose bits are set in `missing`, laid out as a burst; the last one asks for a report."""
    count = -(-len(burst) // segment_size)
    if missing == (1 << count) - 1:
        return burst
    wanted = [index for index in range(count) if missing >> index & 1]
    part = bytearray().join(burst[index * segment_size : (index + 1) * segment_size] for index in wanted)
    part[(len(wanted) - 1) * segment_size + FLAGS_AT] = ASK
    return part


def is_run(data: Buffer, head: bytes, header: ChunkHeader) -> bool:
    """Whether a buffer holds consecutive segments of one chunk, every one with this head, and nothing else."""
    segment_size = header.segment_size
    total = segment_count(header.length, segment_size)
    first, count = data[INDEX_AT], -(-len(data) // segment_size)
    length = count * segment_size
    if first + count == total:
        length = header.length + TAG_LENGTH + total * SEGMENT_OVERHEAD - first * segment_size
    if first + count > total or len(data) != length:
        return False
    heads = _heads(segment_size, count)(data)
    return heads == (head,) * count and bytes(data[INDEX_AT::segment_size]) == _INDEXES[first : first + count]


def is_whole(data: Buffer, header: ChunkHeader) -> bool:
    """Whether a run is all of its chunk."""
    count = segment_count(header.length, header.segment_size)
    return len(data) == header.length + TAG_LENGTH + count * SEGMENT_OVERHEAD


def gather(data: Buffer, segment_size: int) -> bytes:
    """The slices of a run, one behind the other: payload and tag, or a part of them."""
    count = -(-len(data) // segment_size)
    return b"".join(_cut(SEGMENT_OVERHEAD, segment_size - SEGMENT_OVERHEAD, segment_size, count)(data))
