# SPDX-License-Identifier: Apache-2.0
"""Copying the state to a member that has another one: only the buckets that differ, in parts, while writes go on.

The member sends FETCH with its bucket digests to one of the winners. That one freezes its state at its present
position in the ordered stream and answers with PARTs, at most PARTS_IN_FLIGHT unacknowledged, and a LAST with
everything that is not a data item and the digest of the whole. The member adopts it, drops the commands it had
deferred up to that position, applies the rest, and is complete.
"""

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from . import limits
from .items import Bucket, Item, bucket_of, digest_term
from .replica import Replica

DIGESTS = struct.Struct(f">{limits.BUCKETS}Q")
ENTRY_OVERHEAD_BYTES = 32  # of an item in a part, beside key and value


class MalformedTransfer(ValueError):
    """A peer message of the transfer that does not decode."""


class Step(IntEnum):
    """Messages of the transfer."""

    FETCH = 1
    PART = 2
    LAST = 3
    ACK = 4


class RoundId(NamedTuple):
    """The comparison a transfer belongs to: number of the view, comparisons in it so far."""

    view: int
    comparison: int
    mark: int
    """``View.mark``: in fast mode two branches may have a view of this number, and one knows of both."""


class Fetch(NamedTuple):
    """A member's request. `position`: the state must not be older than this place in the stream."""

    round: RoundId
    attempt: int
    position: int
    digests: tuple[int, ...]


class Part(NamedTuple):
    """Some entries: [bucket, [[key, value, version, writer]...]]..."""

    round: RoundId
    attempt: int
    number: int
    records: list[Any]


class Last(NamedTuple):
    """The end: position of the frozen state, everything but the items, digest of the whole."""

    round: RoundId
    attempt: int
    number: int
    position: int
    rest: bytes
    digest: bytes


class Ack(NamedTuple):
    """Part `number` has arrived."""

    round: RoundId
    attempt: int
    number: int


Message = Fetch | Part | Last | Ack


def encode(message: Message) -> bytes:
    """The bytes of a transfer message."""
    head = [*message.round, message.attempt]
    match message:
        case Fetch():
            fields = [Step.FETCH, *head, message.position, DIGESTS.pack(*message.digests)]
        case Part():
            fields = [Step.PART, *head, message.number, message.records]
        case Last():
            fields = [Step.LAST, *head, message.number, message.position, message.rest, message.digest]
        case Ack():
            fields = [Step.ACK, *head, message.number]
    packed: bytes = msgpack.packb(fields)
    return packed


def decode(payload: bytes | bytearray | memoryview) -> Message:
    """The transfer message in `payload`. Raises MalformedTransfer."""
    try:
        step, view, comparison, mark, attempt, *fields = msgpack.unpackb(payload, raw=False)
        place = (RoundId(_number(view), _number(comparison), _number(mark)), _number(attempt))
        if step == Step.FETCH:
            position, digests = fields
            return Fetch(*place, _number(position), DIGESTS.unpack(digests))
        if step == Step.PART:
            number, records = fields
            return Part(*place, _number(number), records)
        if step == Step.LAST:
            number, position, rest, digest = fields
            return Last(*place, _number(number), _number(position), bytes(rest), bytes(digest))
        if step == Step.ACK:
            (number,) = fields
            return Ack(*place, _number(number))
    except (ValueError, TypeError, struct.error, RecursionError) as error:
        raise MalformedTransfer(str(error)) from None
    raise MalformedTransfer(f"no step {step!r}")


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise MalformedTransfer(f"{value!r} is not a number")
    return value


class Sender:
    """Serves one member from a frozen state."""

    def __init__(self, replica: Replica, fetch: Fetch, position: int) -> None:
        self._fetch = fetch
        own = replica.items.digests()
        frozen = replica.items.freeze()
        differing = [(i, frozen[i]) for i in range(limits.BUCKETS) if own[i] != fetch.digests[i]]
        self._last = (position, replica.export_rest(), replica.digest())
        self._parts = _parts(differing)
        self._next = 0
        self._unacknowledged: set[int] = set()
        self._finished = False

    @property
    def round(self) -> RoundId:
        """The comparison this transfer belongs to."""
        return self._fetch.round

    def acknowledge(self, ack: Ack) -> None:
        """A part has arrived."""
        if ack.attempt == self._fetch.attempt:
            self._unacknowledged.discard(ack.number)

    def take(self) -> list[bytes]:
        """Messages that may be sent now."""
        messages: list[bytes] = []
        while not self._finished and len(self._unacknowledged) < limits.PARTS_IN_FLIGHT:
            records = next(self._parts, None)
            place = (self._fetch.round, self._fetch.attempt, self._next)
            if records is None:
                self._finished = True
                messages.append(encode(Last(*place, *self._last)))
            else:
                messages.append(encode(Part(*place, records)))
            self._unacknowledged.add(self._next)
            self._next += 1
        return messages

    @property
    def finished(self) -> bool:
        """Everything has been handed to the transport."""
        return self._finished


def _parts(buckets: Sequence[tuple[int, Bucket]]) -> Iterator[list[Any]]:
    records: list[Any] = []
    size = 0
    for index, bucket in buckets:
        entries: list[Any] = []
        records.append([index, entries])
        for key, item in bucket.items():
            entries.append([key, item.value, item.version, item.writer])
            size += len(item.value) + len(key) + ENTRY_OVERHEAD_BYTES
            if size >= limits.PART_BYTES:
                yield records
                entries = []
                records, size = [[index, entries]], 0
    if records:
        yield records


class Receiver:
    """Collects one transfer; its messages may come in any order and twice."""

    def __init__(self, round_id: RoundId, attempt: int) -> None:
        self.round, self.attempt = round_id, attempt
        self._received: set[int] = set()
        self._last: Last | None = None
        self.buckets: dict[int, Bucket] = {}

    def expects(self, message: Part | Last) -> bool:
        """Does the message belong to this transfer?"""
        return (message.round, message.attempt) == (self.round, self.attempt)

    def add(self, part: Part) -> bytes:
        """Stage the entries; the answer is the acknowledgement. Raises MalformedTransfer."""
        self._received.add(part.number)
        try:
            for index, entries in part.records:
                bucket = self.buckets.setdefault(index, {})
                for key, value, version, writer in entries:
                    if bucket_of(key) != index:
                        raise MalformedTransfer(f"{key!r} is not of bucket {index}")
                    bucket[key] = Item(value, version, writer, digest_term(key, value, version, writer))
        except (ValueError, TypeError, AttributeError) as error:
            raise MalformedTransfer(str(error)) from None
        return encode(Ack(part.round, part.attempt, part.number))

    def end(self, last: Last) -> None:
        """The last message has come; others may still be on their way."""
        self._last = last

    def complete(self) -> Last | None:
        """The last message once everything before it is there."""
        if self._last is not None and len(self._received) == self._last.number:
            return self._last
        return None


class Donor:
    """The serving side: requests that wait for their place in the stream, and transfers under way."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._fetches: dict[int, Fetch] = {}
        self._senders: dict[int, Sender] = {}

    @property
    def asked(self) -> bool:
        """Is a request waiting?"""
        return bool(self._fetches)

    def ask(self, peer: int, fetch: Fetch) -> None:
        """A member wants our state; its latest request counts."""
        if len(self._fetches) < limits.FETCHES_MAX or peer in self._fetches:
            self._fetches[peer] = fetch

    def serve(self, place: RoundId, position: int) -> list[tuple[int, bytes]]:
        """Begin the transfers whose time has come: our copy is complete at `position`, in round `place`."""
        messages: list[tuple[int, bytes]] = []
        for peer, fetch in list(self._fetches.items()):
            if fetch.round < place:
                del self._fetches[peer]
            elif fetch.round == place and fetch.position <= position:
                del self._fetches[peer]
                self._senders[peer] = Sender(self._replica, fetch, position)
                messages += self._continue(peer)
        return messages

    def acknowledge(self, peer: int, ack: Ack) -> list[tuple[int, bytes]]:
        """A part has arrived: what may be sent next."""
        sender = self._senders.get(peer)
        if sender is None or sender.round != ack.round:
            return []
        sender.acknowledge(ack)
        return self._continue(peer)

    def stop(self) -> None:
        """A view or a comparison has ended every transfer under way; those who still need one ask again."""
        self._senders.clear()

    def _continue(self, peer: int) -> list[tuple[int, bytes]]:
        sender = self._senders[peer]
        messages = [(peer, message) for message in sender.take()]
        if sender.finished:
            del self._senders[peer]
        return messages
