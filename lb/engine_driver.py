# SPDX-License-Identifier: Apache-2.0
"""Brings changes from the event loop to the packet engine, which works in a thread.

What arrives while the engine is busy is merged, so that a hundred backends that die together cost two updates, not a
hundred.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from lb.memory import give_back
from lb.model import ClusterConfig
from lb.packet_engine import EngineError, PacketEngine

log = logging.getLogger("lb.engine")


class EngineDriver:
    """`request` takes changes, `settled` waits until they are in the maps. `failed` is told why they are not."""

    def __init__(self, engine: PacketEngine, failed: Callable[[str], None]) -> None:
        self.updates = 0
        self.failures = 0
        self._engine = engine
        self._failed = failed
        self._config: ClusterConfig | None = None
        self._facts: dict[str, Any] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._error: EngineError | None = None
        self._task: asyncio.Task[None] | None = None

    def request(self, config: ClusterConfig | None = None, **facts: Any) -> None:
        """`facts` are fields of `lb.engine_plan.Facts`; a later value replaces one that waits."""
        self._config = config or self._config
        self._facts |= facts
        self._idle.clear()
        self._work.set()

    async def settled(self) -> None:
        """Returns once everything requested so far is in the maps. Raises EngineError if the last update failed."""
        await self._idle.wait()
        if self._error is not None:
            raise self._error

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="engine")

    async def stop(self) -> None:
        """Finishes what was requested."""
        if self._task is not None:
            await self._idle.wait()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            config, facts = self._config, self._facts
            self._config, self._facts = None, {}
            try:
                await asyncio.to_thread(self._engine.update, config, **facts)
                self.updates += 1
                give_back()
                self._error = None
            except EngineError as error:
                self.failures += 1
                self._error = error
                log.error("%s", error)
                self._failed(str(error))
            if not self._work.is_set():
                self._idle.set()
