# SPDX-License-Identifier: Apache-2.0
"""The transport's datagrams as bytes, and the one decoder that checks them before anything else looks at them.

Network byte order throughout. Every datagram begins with the same prefix:

    version u8 | kind u8 | source u8 | destination u8 | cluster u32 | key id u16
    source incarnation u64 | destination incarnation u64 | sequence u64

The sequence counts up per kind and destination for as long as an incarnation lives and never repeats; together with
kind, destination and cut (see `nonce`) it is the AEAD nonce. What follows depends on the kind:

    WHOLE       chunk header, payload, tag: a chunk that fits one datagram
    SEGMENT     chunk header, header tag, index u8, flags u8, slice: the slices of a chunk together are payload + tag
    ACK         low u64, bitmap size u16, report count u8, bitmap, reports (sequence u64, held u64), tag
    HELLO       challenge u64, echo u64, tag; both 0: begin with the path that this came over
    UNRELIABLE  channel u8, payload, tag

Every segment of a chunk repeats the chunk header and its tag, so each can be recognised alone, in any order, and a
spoofer who has not seen that header cannot add a segment to it; the slices are checked together when the chunk is
complete.
"""

from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

Buffer = bytes | bytearray | memoryview

VERSION: Final = 1

WHOLE: Final = 1
SEGMENT: Final = 2
ACK: Final = 3
HELLO: Final = 4
UNRELIABLE: Final = 5
# Not a kind on the wire: the nonce purpose of a segmented chunk's payload, whose header has a nonce of its own.
CHUNK_BODY: Final = 0x82

SEQUENCE_MAX: Final = (1 << 63) - 1  # so that one above the highest still fits its field
MESSAGE_LENGTH_MAX: Final = 64 * 1024 * 1024
# UDP's own limit over IPv4; segmentation offload takes no more than this and no more segments than that at once.
BURST_LENGTH_MAX: Final = 65507
SEGMENT_COUNT_MAX: Final = 64
# The smallest datagram worth cutting chunks into: what IPv6 guarantees on every path (1280 less 40 + 8).
DATAGRAM_MIN: Final = 1232
TAG_LENGTH: Final = 16
# Chunks a sender may have outstanding beyond the receiver's lowest missing one.
WINDOW_CHUNKS: Final = 2048
REPORT_COUNT_MAX: Final = 8
PROMPT: Final = 1  # chunk flag: acknowledge at once, the sender waits for it
UNHURRIED: Final = 2  # chunk flag: acknowledge a repetition only, the sender expects to hear of it in another way
ASK: Final = 1  # segment flag: last of this transmission, tell me what is missing

PREFIX: Final = Struct("!BBBBIHQQQ")
CHUNK: Final = Struct("!BBBBIHQQQHIBBHHQII")
_CHUNK_FLAGS: Final = (0, PROMPT, UNHURRIED)
_CHUNK_REST: Final = Struct("!HIBBHHQII")
_ACK_REST: Final = Struct("!QHB")
_REPORT: Final = Struct("!QQ")
_HELLO_REST: Final = Struct("!QQ")
_NONCE: Final = Struct("!BBHQ")

PREFIX_LENGTH: Final = PREFIX.size
CHUNK_LENGTH: Final = CHUNK.size
INDEX_AT: Final = CHUNK_LENGTH + TAG_LENGTH
FLAGS_AT: Final = INDEX_AT + 1
SEGMENT_OVERHEAD: Final = FLAGS_AT + 1
WHOLE_OVERHEAD: Final = CHUNK_LENGTH + TAG_LENGTH
UNRELIABLE_OVERHEAD: Final = PREFIX_LENGTH + 1 + TAG_LENGTH
_ACK_AT: Final = PREFIX_LENGTH + _ACK_REST.size
# Even cut into the smallest datagrams a chunk must still be one burst.
_CHUNK_LENGTH_MAX: Final = BURST_LENGTH_MAX // DATAGRAM_MIN * (DATAGRAM_MIN - SEGMENT_OVERHEAD) - TAG_LENGTH
_HELLO_LENGTH: Final = PREFIX_LENGTH + _HELLO_REST.size + TAG_LENGTH

nonce = _NONCE.pack  # (kind, destination, cut, sequence) -> 12 bytes


class Refused(Exception):
    """A datagram that goes no further; `reason` names the counter in `Counters`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Prefix(NamedTuple):
    """What every datagram begins with; lengths and ranges are already checked."""

    version: int
    kind: int
    source: int
    destination: int
    cluster: int
    key_id: int
    source_incarnation: int
    destination_incarnation: int
    sequence: int


class ChunkHeader(NamedTuple):
    """Where a chunk belongs: in the window, in its message, and how it is cut (segment_size 0: not at all)."""

    floor_distance: int  # sequence less the lowest sequence the sender still wants acknowledged
    message_floor_distance: int  # message number less the lowest message number still under way
    channel: int
    flags: int  # PROMPT, UNHURRIED or nothing
    segment_size: int  # bytes of a full segment's datagram
    length: int  # bytes of payload in this chunk
    message: int
    message_length: int
    offset: int


class Acknowledgement(NamedTuple):
    """All chunks below `low` are settled, and `low + i` for each bit i of `done`; reports: segments held of a chunk."""

    low: int
    done: int
    reports: tuple[tuple[int, int], ...]


def cluster_number(name: str) -> int:
    """The 32-bit number that stands for a cluster's name in every datagram."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4, person=b"rainlb cluster").digest(), "big")


def decode_prefix(data: Buffer) -> Prefix:
    """The prefix of a datagram, or Refused. Says nothing yet about who wrote it."""
    if len(data) < PREFIX_LENGTH + TAG_LENGTH:
        raise Refused("too_short")
    prefix = Prefix._make(PREFIX.unpack_from(data))
    if prefix.version != VERSION:
        raise Refused("other_version")
    if not WHOLE <= prefix.kind <= UNRELIABLE:
        raise Refused("unknown_kind")
    if (
        prefix.source == 0
        or prefix.destination == 0
        or prefix.source_incarnation == 0
        or prefix.sequence > SEQUENCE_MAX
    ):
        raise Refused("malformed")
    return prefix


def decode_chunk(data: Buffer, prefix: Prefix) -> ChunkHeader:
    """The chunk header of a WHOLE or SEGMENT datagram with every length and range checked, or Refused."""
    if len(data) < CHUNK_LENGTH + TAG_LENGTH:
        raise Refused("too_short")
    header = ChunkHeader._make(_CHUNK_REST.unpack_from(data, PREFIX_LENGTH))
    if (
        header.floor_distance > prefix.sequence
        or header.message_floor_distance > header.message
        or header.message_length > MESSAGE_LENGTH_MAX
        or header.offset + header.length > header.message_length
        or (header.length == 0 and header.message_length != 0)
        or header.flags not in _CHUNK_FLAGS
    ):
        raise Refused("malformed")
    if prefix.kind == WHOLE:
        if header.segment_size != 0 or len(data) != WHOLE_OVERHEAD + header.length:
            raise Refused("malformed")
    else:
        _check_segment(data, header)
    return header


def _check_segment(data: Buffer, header: ChunkHeader) -> None:
    slice_length = header.segment_size - SEGMENT_OVERHEAD
    if slice_length <= 0 or len(data) <= SEGMENT_OVERHEAD or header.length == 0:
        raise Refused("malformed")
    stream = header.length + TAG_LENGTH
    count = segment_count(header.length, header.segment_size)
    index = data[INDEX_AT]
    if not 1 < count <= SEGMENT_COUNT_MAX or index >= count:
        raise Refused("malformed")
    if len(data) != SEGMENT_OVERHEAD + min(slice_length, stream - index * slice_length):
        raise Refused("malformed")


def segment_count(length: int, segment_size: int) -> int:
    """Segments that a chunk of `length` bytes and its tag fill."""
    return -(-(length + TAG_LENGTH) // (segment_size - SEGMENT_OVERHEAD))


def chunk_length_max(datagram_max: int) -> int:
    """Payload bytes of the largest chunk for a path: what one segmentation-offload burst carries."""
    count = min(SEGMENT_COUNT_MAX, BURST_LENGTH_MAX // datagram_max)
    whole = datagram_max - WHOLE_OVERHEAD
    return min(max(whole, count * (datagram_max - SEGMENT_OVERHEAD) - TAG_LENGTH), _CHUNK_LENGTH_MAX)


def encode_ack(prefix: bytes, low: int, done: int, reports: list[tuple[int, int]]) -> bytes:
    """An acknowledgement without its tag."""
    size = (done.bit_length() + 7) // 8
    parts = [prefix, _ACK_REST.pack(low, size, len(reports)), done.to_bytes(size, "little")]
    parts.extend(_REPORT.pack(sequence, held) for sequence, held in reports)
    return b"".join(parts)


def decode_ack(data: Buffer) -> Acknowledgement:
    """The body of an ACK datagram (tag still attached), or Refused."""
    if len(data) < _ACK_AT + TAG_LENGTH:
        raise Refused("too_short")
    low, size, count = _ACK_REST.unpack_from(data, PREFIX_LENGTH)
    at = _ACK_AT + size
    if size > WINDOW_CHUNKS // 8 or count > REPORT_COUNT_MAX or len(data) != at + count * _REPORT.size + TAG_LENGTH:
        raise Refused("malformed")
    done = int.from_bytes(data[_ACK_AT:at], "little") if size else 0
    if not count:
        return Acknowledgement(low, done, ())
    return Acknowledgement(low, done, tuple(_REPORT.iter_unpack(data[at:-TAG_LENGTH])))


def encode_hello(prefix: bytes, challenge: int, echo: int) -> bytes:
    """A greeting without its tag."""
    return prefix + _HELLO_REST.pack(challenge, echo)


def decode_hello(data: Buffer) -> tuple[int, int]:
    """(challenge, echo) of a HELLO datagram, or Refused."""
    if len(data) != _HELLO_LENGTH:
        raise Refused("malformed")
    challenge, echo = _HELLO_REST.unpack_from(data, PREFIX_LENGTH)
    return challenge, echo


def decode_unreliable(data: Buffer) -> int:
    """The channel of an UNRELIABLE datagram, or Refused."""
    if len(data) < UNRELIABLE_OVERHEAD:
        raise Refused("too_short")
    return data[PREFIX_LENGTH]
