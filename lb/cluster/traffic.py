# SPDX-License-Identifier: Apache-2.0
"""Rates of services and backends, told to the gateways whose operators are watching: any of them shows the sum.

The API process of each gateway measures; the daemons only carry what it says, as bytes, over the ring. Nothing is
measured or sent while nobody watches: a gateway that is asked for rates says so with its own, which wakes the others.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgpack

from lb.cluster.reports import Reports
from lb.control import ControlError
from lb.methods import Params
from sync.events import Deliver

CHANNEL_TRAFFIC = 21
FRESH_S = 3.5
TELL_INTERVAL_S = 0.4
TOLD_BYTES_MAX = 256 << 10


class Carrier(Protocol):
    """The part of the ring that is used."""

    def offer(self, channel: int, payload: bytes) -> bool: ...

    def subscribe(self, channel: int, callback: Callable[[Deliver], None]) -> None: ...


class TrafficExchange:
    """`wanted` is called when another gateway wants to know this one's rates."""

    def __init__(
        self, node: int, ring: Carrier, wanted: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.shed = 0
        self._node = node
        self._ring = ring
        self._wanted = wanted
        self._clock = clock
        self._others: Reports[bytes] = Reports(FRESH_S, clock)
        self._tell_at = 0.0
        ring.subscribe(CHANNEL_TRAFFIC, self._take)

    def exchange(self, params: Params, members: Iterable[int]) -> dict[str, Any]:
        """Tell the others `own` and, with `wanted`, ask for theirs; what they told lately, and how many they are.

        Raises ControlError.
        More often than TELL_INTERVAL_S, or without room on the ring, nothing is told: counted, and soon made good.
        """
        own, wanted = params.get("own"), params.get("wanted")
        if not isinstance(own, bytes) or len(own) > TOLD_BYTES_MAX or not isinstance(wanted, bool):
            message = f"own must be at most {TOLD_BYTES_MAX} bytes, wanted true or false"
            raise ControlError("bad_request", message, field="own")
        now = self._clock()
        if now >= self._tell_at and self._ring.offer(CHANNEL_TRAFFIC, msgpack.packb([wanted, own])):
            self._tell_at = now + TELL_INTERVAL_S
        else:
            self.shed += 1
        present = set(members) - {self._node}
        return {"others": self._others.among(present), "members": len(present) + 1}

    def _take(self, batch: Deliver) -> None:
        if batch.origin == self._node:
            return
        with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
            wanted, told = msgpack.unpackb(bytes(batch.payloads()[-1]))
            if isinstance(told, bytes):
                self._others.take(batch.origin, told)
            if wanted is True:
                self._wanted()
