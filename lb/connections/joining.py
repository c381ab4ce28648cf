# SPDX-License-Identifier: Apache-2.0
"""How a gateway comes by its group's table when it joins: fetched from one member after another, until one has given it
whole. Until then the gateway is not complete. The same for connections and for the kernel's connection tracking."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from lb.connections.transfer import TransferError
from sync.events import View

FETCH_RETRY_S = 0.2
FETCH_ATTEMPTS_MAX = 50
log = logging.getLogger("lb.replication")


class Joining:
    """`fetch(giver)` fills this gateway's `table` with what that member has, and raises TransferError; never two at
    once. `on_complete(bool)` is told when the table becomes complete or stops being it."""

    def __init__(
        self, node: int, table: str, fetch: Callable[[int], Awaitable[None]], on_complete: Callable[[bool], None]
    ) -> None:
        self._node = node
        self._table = table
        self._fetch = fetch
        self._on_complete = on_complete
        self._unable: set[int] = set()
        self._silent: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._one_fetch = asyncio.Lock()
        # The last one that was committed.
        self.view: View | None = None
        self.complete = False

    @property
    def fetching(self) -> bool:
        """Whether the table is on its way."""
        return self._task is not None and not self._task.done()

    def take_view(self, view: View) -> None:
        """A view was committed: who joins fetches the table."""
        self.view = view
        self._unable &= set(view.members)
        self._silent &= set(view.members)
        if self._node in view.joined:
            self._set_complete(False)
            self.fetch_anew()
        elif not self.complete and not self.fetching:
            # The group's first view here: there is nobody who would know more.
            self._set_complete(True)

    def fetch_anew(self) -> None:
        """Fetch the table, from the beginning, whoever may have refused before."""
        if self._task is not None:
            self._task.cancel()
        self._unable.clear()
        self._silent.clear()
        self._task = asyncio.get_running_loop().create_task(self._fetch_table(), name=f"fetch {self._table}")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _givers(self) -> list[int]:
        """Members that may have the whole table, those that have not refused yet first. Who says nothing at all has
        none."""
        view = self.view
        if view is None:
            return []
        able = [node for node in view.members if node != self._node and node not in view.joined | self._silent]
        return [node for node in able if node not in self._unable] or able

    async def _fetch_table(self) -> None:
        # One that was cancelled for this one first comes to its end.
        async with self._one_fetch:
            await self._fetch_from_somebody()
        self._set_complete(True)

    async def _fetch_from_somebody(self) -> None:
        for _ in range(FETCH_ATTEMPTS_MAX):
            givers = self._givers()
            if not givers:
                return  # nobody is left who would know more than this gateway
            try:
                await self._fetch(givers[0])
                return
            except TransferError as error:
                (self._silent if error.silent else self._unable).add(givers[0])
                log.warning("%s", error)
            await asyncio.sleep(FETCH_RETRY_S)
        log.error("no gateway gave its %s in %d attempts: going on without", self._table, FETCH_ATTEMPTS_MAX)

    def _set_complete(self, complete: bool) -> None:
        if complete != self.complete:
            self.complete = complete
            self._on_complete(complete)
