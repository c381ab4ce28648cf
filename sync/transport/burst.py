# SPDX-License-Identifier: Apache-2.0
"""A chunk laid out as the datagrams that carry it, and back.

A chunk's segments are written once, one behind the other, in one buffer: the kernel (or the network card) takes it as
one burst with UDP_SEGMENT, a single segment sent again is a slice of it, and a receiver with UDP_GRO gets it back in
one piece. Both directions are a strided copy, so a burst of 44 segments costs little more than one.
"""

from typing import Final

import numpy as np

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

_HEAD: Final = np.dtype((np.void, INDEX_AT))
_INDEXES: Final = bytes(range(SEGMENT_COUNT_MAX))
_INDEX_AND_FLAGS: Final = np.array([(index, 0) for index in range(SEGMENT_COUNT_MAX)], dtype=np.uint8)


def lay_out(head: bytes, payload: Buffer, tag: bytes, segment_size: int) -> memoryview:
    """The segments of payload + tag, each behind `head` (chunk header and its tag); the last one asks for a report."""
    slice_length = segment_size - SEGMENT_OVERHEAD
    length = len(payload)
    count = segment_count(length, segment_size)
    out = np.empty(length + len(tag) + count * SEGMENT_OVERHEAD, dtype=np.uint8)
    full = length // slice_length
    np.ndarray((full,), _HEAD, out, 0, (segment_size,))[:] = np.frombuffer(head, _HEAD)
    np.ndarray((full, 2), np.uint8, out, INDEX_AT, (segment_size, 1))[:] = _INDEX_AND_FLAGS[:full]
    rows = np.ndarray((full, slice_length), np.uint8, out, SEGMENT_OVERHEAD, (segment_size, 1))
    rows[:] = np.ndarray((full, slice_length), np.uint8, payload)
    view = memoryview(out.data)
    rest = bytes(payload[full * slice_length :]) + tag
    for index in range(full, count):
        at = index * segment_size
        piece = rest[(index - full) * slice_length : (index - full + 1) * slice_length]
        view[at : at + SEGMENT_OVERHEAD + len(piece)] = head + bytes((index, 0)) + piece
    view[(count - 1) * segment_size + FLAGS_AT] = ASK
    return view


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
    heads = np.ndarray((count,), _HEAD, data, 0, (segment_size,))
    indexes = np.ndarray((count,), np.uint8, data, INDEX_AT, (segment_size,))
    return bool(heads.tobytes() == head * count and indexes.tobytes() == _INDEXES[first : first + count])


def is_whole(data: Buffer, header: ChunkHeader) -> bool:
    """Whether a run is all of its chunk."""
    count = segment_count(header.length, header.segment_size)
    return len(data) == header.length + TAG_LENGTH + count * SEGMENT_OVERHEAD


def gather(data: Buffer, header: ChunkHeader, target: memoryview) -> bytes:
    """Copy the payload of a run that is a whole chunk to `target`; its tag. The payload is as yet unchecked."""
    segment_size, length = header.segment_size, header.length
    slice_length = segment_size - SEGMENT_OVERHEAD
    full = length // slice_length
    rows = np.ndarray((full, slice_length), np.uint8, data, SEGMENT_OVERHEAD, (segment_size, 1))
    np.ndarray((full, slice_length), np.uint8, target)[:] = rows
    view, count = memoryview(data), segment_count(length, segment_size)
    rest = b"".join(view[at * segment_size + SEGMENT_OVERHEAD : (at + 1) * segment_size] for at in range(full, count))
    target[full * slice_length :] = rest[:-TAG_LENGTH]
    return rest[-TAG_LENGTH:]


def gather_run(data: Buffer, segment_size: int, target: bytearray) -> int:
    """Copy the slices of a run to where they belong in `target`, payload and tag of the chunk; how many they are."""
    slice_length = segment_size - SEGMENT_OVERHEAD
    first, count = data[INDEX_AT], -(-len(data) // segment_size)
    rows = np.ndarray((count - 1, slice_length), np.uint8, data, SEGMENT_OVERHEAD, (segment_size, 1))
    np.ndarray((count - 1, slice_length), np.uint8, target, first * slice_length)[:] = rows
    last = memoryview(data)[(count - 1) * segment_size + SEGMENT_OVERHEAD :]
    at = (first + count - 1) * slice_length
    target[at : at + len(last)] = last
    return count
