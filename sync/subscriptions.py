# SPDX-License-Identifier: Apache-2.0
"""Who wants to be called for what. Callbacks run in the order of the stream, and what they raise stops nobody else."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .events import Deliver, Left, PeerMessage, TokenVisit, Trace, View
from .shared import Replaced

log = logging.getLogger("sync")

USER_CHANNELS = range(16, 256)


class Subscriptions:
    """The part of a Ring that callbacks are registered with. They must return within a millisecond or so."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._on_batch: dict[int, list[Callable[[Deliver], None]]] = {}
        self._on_peer: dict[int, list[Callable[[PeerMessage], None]]] = {}
        self._on_view: list[Callable[[View], None]] = []
        self._on_token: list[Callable[[TokenVisit], None]] = []
        self._on_left: list[Callable[[Left], None]] = []
        self._on_replaced: list[Callable[[Replaced], None]] = []
        self._on_complete: list[Callable[[bool], None]] = []
        self._on_queues: list[Callable[[set[str]], None]] = []
        self._on_trace: list[Callable[[Trace], None]] = []

    def subscribe(self, channel: int, callback: Callable[[Deliver], None]) -> None:
        """Call with every batch delivered on a channel; batches come in the total order."""
        self._on_batch.setdefault(_user_channel(channel), []).append(callback)

    def subscribe_peer(self, channel: int, callback: Callable[[PeerMessage], None]) -> None:
        """Call with every direct message (`send`) on a channel."""
        self._on_peer.setdefault(_user_channel(channel), []).append(callback)

    def on_view(self, callback: Callable[[View], None]) -> None:
        """Call with every view, in its place in the order."""
        self._on_view.append(callback)

    def on_token(self, callback: Callable[[TokenVisit], None]) -> None:
        """Call whenever the token has been passed on."""
        self._on_token.append(callback)

    def on_left(self, callback: Callable[[Left], None]) -> None:
        """Call when this node is out of the ring."""
        self._on_left.append(callback)

    def on_replaced(self, callback: Callable[[Replaced], None]) -> None:
        """Call when this node's shared data were replaced after a merge: what it wrote meanwhile may be gone."""
        self._on_replaced.append(callback)

    def on_complete(self, callback: Callable[[bool], None]) -> None:
        """Call when this node's copy of the shared data becomes complete (True) or stops being it (False)."""
        self._on_complete.append(callback)

    def on_queues(self, callback: Callable[[set[str]], None]) -> None:
        """Call with the names of shared queues whose content changed."""
        self._on_queues.append(callback)

    def on_trace(self, callback: Callable[[Trace], None]) -> None:
        """Call with the core's transitions and drops (RingConfig.trace)."""
        self._on_trace.append(callback)

    def _call_all(self, callbacks: Sequence[Callable[[Any], None]], argument: Any) -> None:
        for callback in callbacks:
            try:
                callback(argument)
            except Exception:
                self.counters["callback_errors"] += 1
                log.exception("a callback failed on %r", type(argument).__name__)


def _user_channel(channel: int) -> int:
    if channel not in USER_CHANNELS:
        raise ValueError(f"channel {channel} is outside {USER_CHANNELS.start}..{USER_CHANNELS.stop - 1}")
    return channel
