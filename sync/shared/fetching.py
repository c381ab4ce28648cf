# SPDX-License-Identifier: Apache-2.0
"""The asking side of a transfer, and what must wait meanwhile."""

from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from ..events import View
from . import limits, transfer
from .commands import Command
from .items import Bucket

FETCH_TIMEOUT_S = 1.0  # without progress of a transfer, before another donor is asked
NO_DIGEST = 1 << 63  # a bucket digest that asks for the bucket whatever it holds


class Deferred(NamedTuple):
    """A command or a view whose turn comes when the copy is complete."""

    position: int
    origin: int
    what: Command | View
    size: int


class Deferral:
    """Parts of the stream that wait for the state they belong to, at most DEFERRED_BYTES_MAX."""

    def __init__(self) -> None:
        self._places: deque[Deferred] = deque()
        self._bytes = 0

    def add(self, place: Deferred) -> bool:
        """Keep one; False if that is too much: then nothing is kept, and a newer state must be fetched."""
        self._places.append(place)
        self._bytes += place.size
        if self._bytes <= limits.DEFERRED_BYTES_MAX:
            return True
        self.clear()
        return False

    def clear(self) -> None:
        """Forget all."""
        self._places.clear()
        self._bytes = 0

    def take(self) -> Iterator[Deferred]:
        """Everything in order, and forget it."""
        places, self._places, self._bytes = self._places, deque(), 0
        return iter(places)


class Fetcher:
    """One wish for the group's state as of `position` or later, through as many donors as it takes."""

    def __init__(self, local: int) -> None:
        self._local = local
        self._attempt = 0
        self._failed = 0
        self._everything = False
        self._receiver: transfer.Receiver | None = None
        self.position = -1
        self.deadline = inf  # when `fail` is due

    def begin(self, position: int) -> None:
        """A new wish."""
        self.position = position
        self._failed = 0
        self._everything = False

    def stop(self) -> None:
        """No wish any more, or not now."""
        self._receiver, self.deadline = None, inf
        self._failed = 0

    def distrust(self) -> None:
        """The result did not have the donor's digest: ask for all buckets, not only for those that seem to differ."""
        self._everything = True
        self.fail()

    def fail(self) -> None:
        """The donor did not deliver: the next request goes to another."""
        self._failed += 1

    def request(
        self, now: float, place: transfer.RoundId, donors: Sequence[int], digests: Sequence[int]
    ) -> tuple[int, bytes] | None:
        """Whom to send what; None when there is nobody (left) to ask, and the members must compare what they have."""
        self.deadline = now + FETCH_TIMEOUT_S
        if not donors or self._failed > len(donors):
            self._receiver, self._failed = None, 0
            return None
        self._attempt += 1
        self._receiver = transfer.Receiver(place, self._attempt)
        known = (NO_DIGEST,) * limits.BUCKETS if self._everything else tuple(digests)
        donor = donors[(self._local + self._failed) % len(donors)]
        return donor, transfer.encode(transfer.Fetch(place, self._attempt, self.position, known))

    def on_part(self, now: float, part: transfer.Part) -> bytes | None:
        """Stage a part; the acknowledgement, or None if it belongs to no present transfer."""
        if self._receiver is None or not self._receiver.expects(part):
            return None
        self.deadline = now + FETCH_TIMEOUT_S
        return self._receiver.add(part)

    def on_last(self, last: transfer.Last) -> bool:
        """Note the end; False if it belongs to no present transfer."""
        if self._receiver is None or not self._receiver.expects(last):
            return False
        self._receiver.end(last)
        return True

    def result(self) -> tuple[dict[int, Bucket], transfer.Last] | None:
        """The fetched state once all of it is there."""
        last = self._receiver.complete() if self._receiver is not None else None
        return (self._receiver.buckets, last) if self._receiver is not None and last is not None else None
