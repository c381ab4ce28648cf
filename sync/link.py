# SPDX-License-Identifier: Apache-2.0
"""The transport as the ring sees it: whatever keeps a message from being delivered is a failure on delivery."""

from __future__ import annotations

from collections import deque
from math import inf

from sync.ring.messages import Buffers
from sync.transport.effects import Backlogged
from sync.transport.transport import Transport


class PeerLink:
    """Sends for the ring. Nothing fails sooner than after the failure budget, not even what cannot be tried at all.

    Whoever is excluded relies on that: until then its lease may last.
    """

    def __init__(self, transport: Transport, failure_after: float) -> None:
        self._transport = transport
        self._failure_after = failure_after
        self._hopeless: deque[tuple[float, int]] = deque()
        """(when it fails, handle), in order: what the ring said within the last failure budget, at most."""
        self._last_handle = 0

    def send(self, now: float, peer: int, channel: int, buffers: Buffers, patience: float = 0.0) -> int:
        payload = buffers[0] if len(buffers) == 1 else buffers
        try:
            return self._transport.send(now, peer, channel, payload, patience=patience)
        except (Backlogged, KeyError):
            self._last_handle -= 1
            self.fail_later(now, self._last_handle)
            return self._last_handle

    def send_unreliable(self, now: float, peer: int, channel: int, payload: bytes) -> None:
        self._transport.send_unreliable(now, peer, channel, payload)

    def seek(self, now: float, peer: int) -> None:
        self._transport.seek(now, peer)

    def cancel(self, handle: int) -> None:
        if handle > 0:
            self._transport.cancel(handle)
        if self._hopeless:
            self._hopeless = deque(entry for entry in self._hopeless if entry[1] != handle)

    def ask(self, now: float, peer: int, handle: int) -> None:
        if handle > 0:
            self._transport.ask(now, peer, handle)

    def fail_later(self, now: float, handle: int) -> None:
        """This message is not even under way."""
        self._hopeless.append((now + self._failure_after, handle))

    def deadline(self) -> float:
        """When ``failed`` has something to say; infinity if never."""
        return self._hopeless[0][0] if self._hopeless else inf

    def failed(self, now: float) -> list[int]:
        """Handles of what has failed by now."""
        handles = []
        while self._hopeless and self._hopeless[0][0] <= now:
            handles.append(self._hopeless.popleft()[1])
        return handles
