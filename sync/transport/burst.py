# SPDX-License-Identifier: Apache-2.0
"""A chunk laid out as the datagrams that carry it, and back.

A chunk's segments are written once, one behind the other, in one buffer: the kernel (or the network card) takes it as
one burst with UDP_SEGMENT, a single segment sent again is a slice of it, and a receiver with UDP_GRO gets it back in
one piece. Both directions are a strided copy, so a burst of 44 segments costs little more than one.
"""

import numpy as np

from sync.transport.wire import ASK, FLAGS_AT, INDEX_AT, SEGMENT_OVERHEAD, TAG_LENGTH, Buffer, segment_count


def lay_out(head: bytes, payload: Buffer, tag: bytes, segment_size: int) -> memoryview:
    """The segments of payload + tag, each behind `head` (chunk header and its tag); the last one asks for a report."""
    slice_length = segment_size - SEGMENT_OVERHEAD
    length = len(payload)
    count = segment_count(length, segment_size)
    out = np.empty(length + len(tag) + count * SEGMENT_OVERHEAD, dtype=np.uint8)
    full = length // slice_length
    if full:
        rows = out[: full * segment_size].reshape(full, segment_size)
        rows[:, :INDEX_AT] = np.frombuffer(head, dtype=np.uint8)
        rows[:, INDEX_AT] = np.arange(full, dtype=np.uint8)
        rows[:, FLAGS_AT] = 0
        rows[:, SEGMENT_OVERHEAD:] = np.frombuffer(payload, dtype=np.uint8, count=full * slice_length).reshape(full, -1)
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


def gather(data: Buffer, head: Buffer, length: int, segment_size: int) -> bytearray | None:
    """payload + tag out of a buffer that holds exactly one whole burst in order; None if it holds anything else."""
    slice_length = segment_size - SEGMENT_OVERHEAD
    count = segment_count(length, segment_size)
    if len(data) != length + TAG_LENGTH + count * SEGMENT_OVERHEAD:
        return None
    full = count - 1
    rows = np.frombuffer(data, dtype=np.uint8, count=full * segment_size).reshape(full, segment_size)
    last = memoryview(data)[full * segment_size :]
    if last[:INDEX_AT] != head or last[INDEX_AT] != full:
        return None
    if not (
        (rows[:, :INDEX_AT] == np.frombuffer(head, dtype=np.uint8)).all()
        and (rows[:, INDEX_AT] == np.arange(full, dtype=np.uint8)).all()
    ):
        return None
    out = bytearray(full * slice_length + len(last) - SEGMENT_OVERHEAD)
    target = np.frombuffer(out, dtype=np.uint8, count=full * slice_length).reshape(full, slice_length)
    target[:] = rows[:, SEGMENT_OVERHEAD:]
    out[full * slice_length :] = last[SEGMENT_OVERHEAD:]
    return out
