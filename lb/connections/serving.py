# SPDX-License-Identifier: Apache-2.0
"""What giving connections and giving conntrack entries to another gateway have in common: asks answered in the
background, so many and no more, each with an END, at a bounded rate."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from lb.connections.transfer import End, Kind, Send, end_of, message_of

# About 400,000 connections a second: a million in under three seconds, and half a core idle beside it.
BYTES_PER_S_MAX = 32 << 20
# What was not used of the rate is made up for this long.
SLACK_S = 0.1


class Pace:
    """Sleeps as long as the rate asks for. Begins now."""

    def __init__(self) -> None:
        self._due = asyncio.get_running_loop().time()

    async def sent(self, size: int) -> None:
        """So many bytes have gone: wait until more may."""
        now = asyncio.get_running_loop().time
        self._due = max(self._due, now() - SLACK_S) + size / BYTES_PER_S_MAX
        await asyncio.sleep(max(0.0, self._due - now()))


class Serving:
    """Answers asks. `ready()` says whether this gateway's own table is complete; more than `asks_max` at once, and
    those that come before it is, are refused. `entries` counts what was sent."""

    def __init__(self, send: Send, ready: Callable[[], bool], *, asks_max: int, name: str) -> None:
        self._send = send
        self._ready = ready
        self._asks_max = asks_max
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused = 0
        self.entries = 0

    def _answer(self, peer: int, transfer: int, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
        refuse = len(self._tasks) >= self._asks_max or not self._ready()
        self.refused += refuse
        work = self._finish(peer, transfer, 0, End.REFUSED) if refuse else serve()
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name} to node {peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all that is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _finish(self, peer: int, transfer: int, count: int, end: End) -> None:
        # An asker that is gone does not mind; one that did not get this asks again after its silence.
        with contextlib.suppress(OSError):
            await self._send(peer, message_of(Kind.END, transfer, end_of(count, end)))
