# SPDX-License-Identifier: Apache-2.0
"""The live stream: one subscription to lbd and one reading a second, fanned out to any number of watchers.

State topics (status, nodes, vips, …) are sent whole whenever they change, and for a slow watcher a newer one replaces
the one still waiting: nobody's backlog grows. Events are kept in order up to a bound; what a slow watcher loses is
counted and told to it.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from lb.api.problems import ApiProblem
from lb.control import ControlError

WATCHERS_MAX = 64
EVENTS_WAITING_MAX = 512
REFRESH_S = 1.0
# After an event the state is read again at once, but a burst of events only once.
BURST_S = 0.05
RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 2.0
HEARTBEAT_S = 10.0

log = logging.getLogger("lb.api.hub")
Source = Callable[[], Awaitable[Any]]


def sse(kind: str, data: Any, number: int | None = None) -> bytes:
    """One server-sent event."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'), default=str)}\n\n".encode()


class Watcher:
    """What one client has still to be sent."""

    def __init__(self) -> None:
        self._topics: dict[str, bytes] = {}
        self._events: deque[bytes] = deque(maxlen=EVENTS_WAITING_MAX)
        self._lost = 0
        self._wake = asyncio.Event()
        self.ended = False

    def end(self) -> None:
        self.ended = True
        self._wake.set()

    def put_topic(self, topic: str, message: bytes) -> None:
        self._topics[topic] = message
        self._wake.set()

    def put_event(self, message: bytes) -> None:
        self._lost += len(self._events) == EVENTS_WAITING_MAX
        self._events.append(message)
        self._wake.set()

    async def take(self) -> bytes:
        """All that waits, in one piece; a comment line now and then, so that a dead client is noticed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        self._wake.clear()
        parts = [sse("lost", {"events": self._lost})] if self._lost else []
        parts += [*self._events, *self._topics.values()]
        self._lost = 0
        self._events.clear()
        self._topics.clear()
        return b"".join(parts) or b": still here\n\n"


class Hub:
    """Reads while somebody watches; costs nothing otherwise but the subscription."""

    def __init__(
        self,
        subscribe: Callable[[], AsyncIterator[dict[str, Any]]],
        sources: dict[str, Source],
        answers: Mapping[str, Callable[[], Awaitable[None]]] | None = None,
    ) -> None:
        self._subscribe = subscribe
        self._sources = sources
        self._answers = answers or {}
        self._answering: set[asyncio.Task[None]] = set()
        self._watchers: set[Watcher] = set()
        self._last: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.events_total = 0

    @property
    def watcher_count(self) -> int:
        return len(self._watchers)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._refresh())]

    async def stop(self) -> None:
        """Ends the reading and every client's stream."""
        for watcher in self._watchers:
            watcher.end()
        ending = [*self._tasks, *self._answering]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def watch(self) -> AsyncIterator[bytes]:
        """The stream for one client: first the whole state, then changes. Raises ApiProblem(too_many)."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise ApiProblem(
                "too_many", f"{WATCHERS_MAX} clients watch already", remedy="close one, or ask again later"
            )
        return self._stream(Watcher())

    async def _stream(self, watcher: Watcher) -> AsyncIterator[bytes]:
        for topic, message in self._last.items():
            watcher.put_topic(topic, message)
        self._watchers.add(watcher)
        self._changed.set()
        try:
            yield b"retry: 1000\n\n"
            while not watcher.ended:
                yield await watcher.take()
        finally:
            self._watchers.discard(watcher)

    async def _follow(self) -> None:
        """Passes lbd's events on; tells the watchers whether lbd is there."""
        pause = RECONNECT_FIRST_S
        while True:
            try:
                async for event in self._subscribe():
                    pause = RECONNECT_FIRST_S
                    self._event(event)
            except ControlError as problem:
                self._topic("link", {"lbd": False, "message": problem.message, "remedy": problem.remedy})
            self._changed.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECONNECT_MAX_S)

    def _event(self, event: dict[str, Any]) -> None:
        """Entries of the journal go to the watchers; any other notice only means that something is to be read anew."""
        self.events_total += 1
        if (answer := self._answers.get(str(event.get("kind")))) is not None:
            self._answer(answer)
            return
        self._changed.set()
        if "message" not in event:
            return
        number = event.get("id")
        message = sse("event", event, number if isinstance(number, int) else None)
        for watcher in self._watchers:
            watcher.put_event(message)

    def _answer(self, answer: Callable[[], Awaitable[None]]) -> None:
        """Does what lbd asks for, beside everything else; once at a time, what comes meanwhile is the same question."""
        if not self._answering:
            task = asyncio.ensure_future(self._answered(answer))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answered(self, answer: Callable[[], Awaitable[None]]) -> None:
        try:
            await answer()
        except Exception:
            log.exception("cannot answer lbd")

    async def _refresh(self) -> None:
        while True:
            if not self._watchers:
                self._last.clear()
                await self._changed.wait()
            begin = time.monotonic()
            self._changed.clear()
            await asyncio.sleep(BURST_S)
            if self._watchers:
                await self._read_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(REFRESH_S - (time.monotonic() - begin), 0)):
                    await self._changed.wait()

    async def _read_all(self) -> None:
        reachable = True
        for topic, source in self._sources.items():
            try:
                self._topic(topic, await source())
            except ControlError as problem:
                reachable = reachable and problem.code not in {"unavailable", "timeout"}
            except Exception:
                log.exception("cannot read %s for the live stream", topic)
        if reachable:
            self._topic("link", {"lbd": True})

    def _topic(self, topic: str, state: Any) -> None:
        message = sse(topic, state)
        if self._last.get(topic) == message:
            return
        self._last[topic] = message
        for watcher in self._watchers:
            watcher.put_topic(topic, message)
