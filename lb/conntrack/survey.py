# SPDX-License-Identifier: Apache-2.0
"""Compares the kernel's table with what peers have been told, once in a while and after a loss, and tells the rest."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

import numpy as np

from lb.conntrack.entries import Entries, Hasher, Kind, pack_entries
from lb.conntrack.handover import Table, take
from lb.conntrack.listener import monotonic_s
from lb.conntrack.told import Told

# Half of the shortest timeout of an assured entry that goes on (a UDP stream's two minutes), with room for a slow one.
INTERVAL_S = 30.0
# A survey asked for comes no sooner than this after the last one.
INTERVAL_MIN_S = 3.0
# A survey takes no more of a processor than a fiftieth: a large table is compared more rarely.
SHARE_MAX = 0.02
ENTRIES_AT_ONCE_MAX = 4096
log = logging.getLogger("lb.conntrack")


class Survey:
    """`table()` gives what is worth telling, in pieces; `publish` tells peers and waits for room; `due()` says whether
    there is anybody to tell."""

    def __init__(
        self,
        table: Callable[[], Table],
        told: Told,
        hasher: Hasher,
        executor: Executor,
        publish: Callable[[bytes, int], Awaitable[None]],
        due: Callable[[], bool],
    ) -> None:
        self._table = table
        self._told = told
        self._hasher = hasher
        self._executor = executor
        self._publish = publish
        self._due = due
        self._wanted = asyncio.Event()
        self.surveys = 0
        self.failed = 0
        self.told = 0
        self.seconds = 0.0

    def soon(self) -> None:
        """Peers may lack something: do not wait for the next time."""
        self._wanted.set()

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        while True:
            pause = max(INTERVAL_S, self.seconds / SHARE_MAX)
            try:
                # Gateways that were started together do not read their tables together.
                async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            if self._due():
                begun = loop.time()
                await self._survey()
                self.seconds = loop.time() - begun
                await asyncio.sleep(INTERVAL_MIN_S)

    async def _survey(self) -> None:
        loop, pieces = asyncio.get_running_loop(), self._table()
        self._told.begin_survey()
        try:
            while (news := await loop.run_in_executor(self._executor, self._next, pieces)) is not None:
                if len(news):
                    await self._publish(pack_entries(news), len(news))
                    self.told += len(news)
            self._told.end_survey()
            self.surveys += 1
        except OSError as error:
            self.failed += 1
            log.warning("%s; peers are told of the rest at the next survey", error)
        except Exception:
            self.failed += 1
            log.exception("a survey of the conntrack table ended early")
        finally:
            self._told.abandon_survey()
            self._executor.submit(pieces.close)

    def _next(self, pieces: Table) -> Entries | None:
        """What is news of the next part of the table; None at its end. In the reading thread."""
        entries = take(pieces, ENTRIES_AT_ONCE_MAX)
        if not len(entries):
            return None
        now_s = monotonic_s()
        news = entries[self._told.news(entries, now_s)]
        news["kind"] = Kind.REFRESHED
        self._told.note(news, self._hasher(news), now_s)
        return np.asarray(news)
