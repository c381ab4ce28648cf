# SPDX-License-Identifier: Apache-2.0
"""The sending side: messages waiting, chunks in flight, and how fast and how long to try.

The retransmission timeout follows RFC 6298 (smoothed round-trip time plus four deviations, Karn's rule, exponential
back-off), with a floor and a ceiling in milliseconds instead of seconds since the failure detector hangs on it. The
congestion window is that of RFC 5681 (slow start, additive increase, halved at most once per round trip) counted in
bytes.
"""

from collections import deque
from itertools import islice
from math import inf
from typing import Final

from sync.transport.wire import BURST_LENGTH_MAX, WINDOW_CHUNKS, Buffer

CONGESTION_INITIAL: Final = 8 * BURST_LENGTH_MAX
PROMPT_EVERY: Final = 8  # chunks; the acknowledgement of others may wait a little
SMALL_RESERVE: Final = BURST_LENGTH_MAX
CONGESTION_MIN: Final = BURST_LENGTH_MAX
ANSWER_PART: Final = 0.5  # of the failure budget: to answer in, at least, when a message sent with patience is repeated
LOSSY_S: Final = 5.0  # after a repetition every message is acknowledged for so long
REORDER_CHUNKS: Final = 3  # a chunk is taken for lost when one this much younger has arrived
MESSAGE_DISTANCE_MAX: Final = 1 << 31


class Message:
    """A message on its way; `offset`: first byte not yet cut into a chunk; `open_chunks`: not acknowledged."""

    __slots__ = (
        "channel",
        "first_sent_at",
        "greetings",
        "handle",
        "length",
        "number",
        "offset",
        "open_chunks",
        "patience",
        "payload",
        "progress_at",
        "submitted_at",
    )

    def __init__(self, handle: int, channel: int, payload: Buffer, patience: float = 0.0) -> None:
        self.handle = handle
        self.channel = channel
        self.payload = payload
        self.length = len(payload)
        self.patience = patience  # seconds before the first repetition, if that is more than the timeout
        self.number = 0  # 0 until the first chunk leaves
        self.offset = 0
        self.open_chunks = 0
        self.submitted_at = inf
        self.greetings = 0  # sent to the peer before this message was there to be sent
        self.first_sent_at = inf
        self.progress_at = -inf  # when the peer last acknowledged a part of it


class Chunk:
    """A chunk in flight, laid out as it travels. `missing` has a bit per segment the peer does not hold."""

    __slots__ = (
        "asked_at",
        "attempts",
        "cut_smaller",
        "data",
        "deadline",
        "first_sent_at",
        "least_missing",
        "length",
        "message",
        "missing",
        "offset",
        "prompt",
        "retransmitted",
        "segment_size",
        "sent_at",
        "sequence",
        "unhurried",
    )

    def __init__(self, sequence: int, message: Message, offset: int, length: int) -> None:
        self.sequence = sequence
        self.message = message
        self.offset = offset
        self.length = length
        self.data: Buffer = b""
        self.segment_size = 0
        self.missing = 1
        self.least_missing = 1  # segments; only what goes below this is progress
        self.attempts = 0
        self.prompt = True  # whether the acknowledgement is wanted at once
        self.unhurried = False  # whether it is wanted of a repetition only
        self.retransmitted = False
        self.cut_smaller = False  # because it did not get through as it was
        self.first_sent_at = inf
        self.asked_at = -inf  # when it was repeated first, if it was sent with patience
        self.sent_at = 0.0
        self.deadline = inf


class RoundTrip:
    """RFC 6298 in seconds. As in Linux the floor bounds the term for the deviation; the ceiling bounds the whole."""

    __slots__ = ("_ceiling", "_floor", "smoothed", "timeout", "variation")

    def __init__(self, floor: float, ceiling: float) -> None:
        self.smoothed = 0.0
        self.variation = 0.0
        self.limit(floor, ceiling)

    def limit(self, floor: float, ceiling: float) -> None:
        self._floor = floor
        self._ceiling = ceiling
        self._set_timeout()

    def sample(self, duration: float) -> None:
        if self.smoothed == 0.0:
            self.smoothed = duration
            self.variation = duration / 2
        else:
            self.variation += (abs(self.smoothed - duration) - self.variation) / 4
            self.smoothed += (duration - self.smoothed) / 8
        self._set_timeout()

    def _set_timeout(self) -> None:
        self.timeout = min(self.smoothed + max(4 * self.variation, self._floor), self._ceiling)

    def backed_off(self, attempts: int) -> float:
        """Seconds to wait after transmission number `attempts` (1, 2, …)."""
        return min(self.timeout * (1 << min(attempts - 1, 16)), self._ceiling)


class Congestion:
    """Bytes that may be in flight to one peer."""

    __slots__ = ("_limit", "_reduced_at", "_threshold", "window")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threshold: float = limit
        self._reduced_at = -inf
        self.window: float = min(CONGESTION_INITIAL, limit)

    def acknowledged(self, length: int) -> None:
        if self.window < self._limit:
            grown = length if self.window < self._threshold else length * BURST_LENGTH_MAX / self.window
            self.window = min(self.window + grown, self._limit)

    def lost(self, now: float, round_trip: float) -> None:
        if now - self._reduced_at > round_trip:
            self._reduced_at = now
            self.window = self._threshold = max(self.window / 2, CONGESTION_MIN)


class SendWindow:
    """Messages and chunks towards one peer. Sequences and numbers go on over sessions: they are part of the nonces."""

    __slots__ = (
        "bulk",
        "bytes_in_flight",
        "in_flight",
        "live",
        "next_number",
        "next_sequence",
        "queued_bytes",
        "small",
    )

    def __init__(self) -> None:
        self.next_sequence = 1
        self.next_number = 1
        self.in_flight: dict[int, Chunk] = {}  # in order of sequence
        self.live: dict[int, Message] = {}  # messages with a number, in its order
        self.small: deque[Message] = deque()  # not yet numbered, one chunk each
        self.bulk: deque[Message] = deque()  # larger ones; the first may be under way
        self.bytes_in_flight = 0
        self.queued_bytes = 0

    @property
    def floor(self) -> int:
        """The lowest sequence the peer still has to acknowledge."""
        return next(iter(self.in_flight), self.next_sequence)

    @property
    def message_floor(self) -> int:
        return next(iter(self.live), self.next_number)

    @property
    def queued(self) -> int:
        return len(self.small) + len(self.bulk)

    def enqueue(self, message: Message, *, small: bool) -> None:
        (self.small if small else self.bulk).append(message)
        self.queued_bytes += message.length

    def has_room(self, congestion_window: float) -> bool:
        """Whether another chunk may leave now. Small messages have a reserve that bulk cannot use up."""
        return (
            self.bytes_in_flight < congestion_window + (SMALL_RESERVE if self.small else 0)
            and self.next_sequence - self.floor < WINDOW_CHUNKS
            and self.next_number - self.message_floor < MESSAGE_DISTANCE_MAX
        )

    def next_message(self) -> Message | None:
        """The message whose chunk leaves next: small ones first, in order; then bulk, one after the other."""
        if self.small:
            return self.small[0]
        return self.bulk[0] if self.bulk else None

    def open_chunk(self, message: Message, length_max: int) -> Chunk:
        """Cut the next chunk off a message and put it in flight."""
        if message.number == 0:
            message.number = self.next_number
            self.next_number += 1
            self.live[message.number] = message
        length = min(message.length - message.offset, length_max)
        chunk = Chunk(self.next_sequence, message, message.offset, length)
        self.next_sequence += 1
        message.offset += length
        message.open_chunks += 1
        self.in_flight[chunk.sequence] = chunk
        self.bytes_in_flight += length
        return chunk

    def dequeue_cut(self, message: Message) -> None:
        """Take a message whose last chunk has been cut off its queue."""
        queue = self.small if self.small and self.small[0] is message else self.bulk
        queue.popleft()
        self.queued_bytes -= message.length

    def close_chunk(self, chunk: Chunk) -> bool:
        """The chunk is acknowledged; True when its message is delivered with it."""
        del self.in_flight[chunk.sequence]
        self.bytes_in_flight -= chunk.length
        message = chunk.message
        message.open_chunks -= 1
        if message.open_chunks == 0 and message.offset == message.length:
            del self.live[message.number]
            return True
        return False

    def settled(self, low: int, done: int) -> list[Chunk]:
        """The chunks in flight that an acknowledgement covers."""
        covered = []
        for sequence, chunk in self.in_flight.items():
            if sequence < low or (done and done >> (sequence - low) & 1):
                covered.append(chunk)
            elif not done:
                break
        return covered

    def drop(self, message: Message) -> None:
        """Take a message out, whatever its state."""
        for queue in (self.small, self.bulk):
            if message in queue:
                queue.remove(message)
                self.queued_bytes -= message.length
        if message.number:
            self.live.pop(message.number, None)
            for sequence in [s for s, chunk in self.in_flight.items() if chunk.message is message]:
                self.bytes_in_flight -= self.in_flight.pop(sequence).length

    def waiting(self) -> list[Message]:
        """Messages of which nothing has left yet."""
        return [message for message in (*self.small, *self.bulk) if message.number == 0]

    def waiting_since(self) -> float:
        """When the oldest of them was submitted; infinity if there is none."""
        oldest = inf
        if self.small:
            oldest = self.small[0].submitted_at
        for message in islice(self.bulk, 2):  # only the first may have left in part
            if message.number == 0:
                return min(oldest, message.submitted_at)
        return oldest

    def unfinished(self, *, queued: bool) -> list[Message]:
        """Messages under way, and with `queued` those that wait."""
        messages = list(self.live.values())
        if queued:
            messages += self.waiting()
        return messages
