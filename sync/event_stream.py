# SPDX-License-Identifier: Apache-2.0
"""What happens to a node, as events to iterate over: views, the standing of its data, messages nobody subscribed to."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from .events import Left, View
from .shared import Complete, LockLost, Replaced
from .subscriptions import Subscriptions

EVENTS_MAX = 1024  # per iterator; older ones are dropped and counted


class Message(NamedTuple):
    """An ordered message on a channel nobody subscribed to, for the event iterator."""

    channel: int
    origin: int
    position: int
    payload: bytes


RingEvent = View | Message | Complete | Replaced | LockLost | Left


class EventStream(Subscriptions):
    """The part of a Ring that is iterated over. Any number of iterators, each with a queue of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.view: View | None = None
        self._leaving = False
        """Asked to leave by its program: the iterators end with that."""
        self._iterators: list[asyncio.Queue[RingEvent]] = []

    async def __aiter__(self) -> AsyncIterator[RingEvent]:
        """Views, changes of the shared data's standing, lost locks, and messages on channels without a subscriber."""
        events: asyncio.Queue[RingEvent] = asyncio.Queue(EVENTS_MAX)
        self._iterators.append(events)
        if self.view is not None:
            events.put_nowait(self.view)
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Left) and self._leaving:
                    return
        finally:
            self._iterators.remove(events)

    def _publish(self, event: RingEvent) -> None:
        for events in self._iterators:
            if events.full():
                events.get_nowait()
                self.counters["events_dropped"] += 1
            events.put_nowait(event)
