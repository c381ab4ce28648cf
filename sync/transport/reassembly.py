# SPDX-License-Identifier: Apache-2.0
"""The receiving side of one session: which chunks have come, and the chunks and messages that are still being put
together.

Nothing in here is written to before the datagram's header has been authenticated.
"""

from typing import Final

from sync.memory import buffer
from sync.transport.burst import gather
from sync.transport.wire import (
    INDEX_AT,
    MESSAGE_LENGTH_MAX,
    SEGMENT_OVERHEAD,
    TAG_LENGTH,
    WINDOW_CHUNKS,
    Buffer,
    ChunkHeader,
    Refused,
    segment_count,
)

PARTIAL_BYTES_MAX: Final = 2 * MESSAGE_LENGTH_MAX
PARTIAL_MESSAGES_MAX: Final = 1024
PARTIAL_CHUNKS_MAX: Final = 1024


class PartialChunk:
    """The segments of one chunk; `held` has bit i set when segment i is here."""

    __slots__ = ("_slice_length", "full", "head", "header", "held", "sealed", "segment_size")

    def __init__(self, head: bytes, header: ChunkHeader) -> None:
        self.head = head
        self.header = header
        self.segment_size = header.segment_size
        self._slice_length = header.segment_size - SEGMENT_OVERHEAD
        self.full = (1 << segment_count(header.length, header.segment_size)) - 1
        self.clear()

    def clear(self) -> None:
        """Forget every segment."""
        self.held = 0
        self.sealed = bytearray(self.header.length + TAG_LENGTH)

    def put(self, data: Buffer) -> bool:
        """Take a segment, or a run of them; True when the chunk is complete."""
        first, count = data[INDEX_AT], -(-len(data) // self.segment_size)
        at, slices = first * self._slice_length, gather(data, self.segment_size)
        self.sealed[at : at + len(slices)] = slices
        self.held |= (1 << count) - 1 << first
        return self.held == self.full


class PartialMessage:
    """A message of several chunks."""

    __slots__ = ("data", "missing")

    def __init__(self, length: int) -> None:
        self.data = buffer(length)
        self.missing = length


class ReceiveWindow:
    """What has been received from one peer incarnation. `low` is the lowest sequence not yet settled."""

    __slots__ = ("_done", "_partial_bytes", "chunks", "low", "messages")

    def __init__(self) -> None:
        self.low = 0
        self._done = 0
        self._partial_bytes = 0
        self.chunks: dict[int, PartialChunk] = {}
        self.messages: dict[int, PartialMessage] = {}

    @property
    def done(self) -> int:
        """Bit i set: chunk low + i is complete."""
        return self._done

    def advance(self, floor: int, message_floor: int) -> None:
        """The sender has given up on, or settled, everything below these."""
        if floor > self.low:
            self._done >>= floor - self.low
            self.low = floor
            self._settle()
            for sequence in [s for s in self.chunks if s < floor]:
                self._forget_chunk(sequence)
        if self.messages:
            for number in [n for n in self.messages if n < message_floor]:
                self._partial_bytes -= len(self.messages.pop(number).data)

    def seen(self, sequence: int) -> bool:
        """Whether this chunk is complete already; Refused when it lies beyond the window."""
        distance = sequence - self.low
        if distance < 0:
            return True
        if distance >= WINDOW_CHUNKS:
            raise Refused("beyond_window")
        return bool(self._done >> distance & 1)

    def partial(self, sequence: int, head: bytes, header: ChunkHeader) -> PartialChunk:
        """The chunk under assembly for an authenticated header; a header cut smaller starts it anew."""
        chunk = self.chunks.get(sequence)
        if chunk is not None:
            if chunk.head == head or header.segment_size >= chunk.segment_size:
                return chunk
            self._forget_chunk(sequence)
        if len(self.chunks) >= PARTIAL_CHUNKS_MAX or self._partial_bytes + header.length > PARTIAL_BYTES_MAX:
            raise Refused("reassembly_full")
        chunk = self.chunks[sequence] = PartialChunk(head, header)
        self._partial_bytes += header.length
        return chunk

    def target(self, header: ChunkHeader) -> memoryview:
        """Where the payload of a chunk that is not its whole message belongs: the right part of that message."""
        partial = self.messages.get(header.message)
        if partial is None:
            if (
                len(self.messages) >= PARTIAL_MESSAGES_MAX
                or self._partial_bytes + header.message_length > PARTIAL_BYTES_MAX
            ):
                raise Refused("reassembly_full")
            partial = self.messages[header.message] = PartialMessage(header.message_length)
            self._partial_bytes += header.message_length
        if len(partial.data) != header.message_length:
            raise Refused("malformed")
        return partial.data[header.offset : header.offset + header.length]

    def accept(self, sequence: int, header: ChunkHeader, payload: Buffer) -> Buffer | None:
        """Settle a chunk with its authentic payload; the message, once this was the last part of it."""
        message: Buffer | None = payload
        if header.length != header.message_length:
            self.target(header)[:] = payload
            message = self._complete(header)
        if sequence in self.chunks:
            self._forget_chunk(sequence)
        if sequence == self.low and not self._done:
            self.low += 1
        else:
            self._done |= 1 << (sequence - self.low)
            self._settle()
        return message

    def _complete(self, header: ChunkHeader) -> Buffer | None:
        partial = self.messages[header.message]
        partial.missing -= header.length
        if partial.missing > 0:
            return None
        del self.messages[header.message]
        self._partial_bytes -= header.message_length
        return partial.data

    def _forget_chunk(self, sequence: int) -> None:
        self._partial_bytes -= self.chunks.pop(sequence).header.length

    def _settle(self) -> None:
        """Move `low` past the run of complete chunks above it."""
        run = (~self._done & (self._done + 1)).bit_length() - 1
        self._done >>= run
        self.low += run
